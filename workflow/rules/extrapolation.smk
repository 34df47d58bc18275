# Extrapolation. In: the state at a trigger, the anchor, the gate's data and teacher. Out: the gate's values and the
# decision that says how far training jumps (results/runs/<run>/seed<s>/extrapolation/<step>/).


use rule model_job as evaluate_candidates with:
    input:
        unpack(INPUTS.anchor),
        state=paths.STATE,
        student=INPUTS.student,
        teacher=INPUTS.teacher,
        prompts=INPUTS.prompts,
    output:
        candidates=paths.CANDIDATES,
    log:
        "logs/evaluate_candidates/{run}.seed{seed}.{step}.log",
    params:
        command="evaluate-candidates",
        spec=PARAMS.spec("evaluate_candidates"),


use rule evaluate_candidates as evaluate_candidate with:
    output:
        candidate=paths.CANDIDATE,
    log:
        "logs/evaluate_candidate/{run}.seed{seed}.{step}.{coefficient}.log",
    params:
        command="evaluate-candidate",
        spec=PARAMS.spec("evaluate_candidate"),


use rule job as select_candidate with:
    input:
        unpack(INPUTS.anchor),
        state=paths.STATE,
        candidates=INPUTS.candidates,
    output:
        decision=paths.DECISION,
    log:
        "logs/select_candidate/{run}.seed{seed}.{step}.log",
    params:
        command="select-candidate",
        spec=PARAMS.spec("select_candidate"),
