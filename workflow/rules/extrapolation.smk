# Extrapolation. In: the state at a trigger, the anchor, the gate's data and teacher. Out: the gate's values and the
# ledger that says how far training jumps (results/runs/<run>/seed<s>/extrapolation/<step>/).


rule evaluate_candidates:
    input:
        unpack(anchor_of),
        state=STATE,
        student=model_of("student"),
        teacher=model_of("teacher"),
        prompts=prompts_of,
    output:
        candidates="results/runs/{run}/seed{seed}/extrapolation/{step}/candidates.json",
    log:
        "logs/evaluate_candidates/{run}.seed{seed}.{step}.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("evaluate_candidates"),
        launch=launch(),
        anchor_ledger=optional("--anchor-ledger", "anchor_ledger"),
    shell:
        "{params.launch} evaluate-candidates --student {input.student} --teacher {input.teacher} --prompts {input.prompts}"
        " --state {input.state} --anchor {input.anchor} {params.anchor_ledger}"
        " --spec {params.spec:q} --out {output.candidates} 2> {log}"


rule evaluate_candidate:
    input:
        unpack(anchor_of),
        state=STATE,
        student=model_of("student"),
        teacher=model_of("teacher"),
        prompts=prompts_of,
    output:
        candidate="results/runs/{run}/seed{seed}/extrapolation/{step}/candidates/{coefficient}.json",
    log:
        "logs/evaluate_candidate/{run}.seed{seed}.{step}.{coefficient}.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("evaluate_candidate"),
        launch=launch(),
        anchor_ledger=optional("--anchor-ledger", "anchor_ledger"),
    shell:
        "{params.launch} evaluate-candidate --student {input.student} --teacher {input.teacher} --prompts {input.prompts}"
        " --state {input.state} --anchor {input.anchor} {params.anchor_ledger}"
        " --spec {params.spec:q} --out {output.candidate} 2> {log}"


rule select_candidate:
    input:
        unpack(anchor_of),
        state=STATE,
        candidates=candidates_of,
    output:
        ledger=LEDGER,
    log:
        "logs/select_candidate/{run}.seed{seed}.{step}.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("select_candidate"),
        anchor_ledger=optional("--anchor-ledger", "anchor_ledger"),
        candidates=repeated("--candidates", "candidates"),
    shell:
        "effopd select-candidate --state {input.state} --anchor {input.anchor} {params.anchor_ledger}"
        " {params.candidates} --spec {params.spec:q} --out {output.ledger} 2> {log}"
