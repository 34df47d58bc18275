# On-policy distillation, every step in jobs of its own (execution.mode: staged). In: student, teacher, data, the point
# after the step before. Out: the step's rollouts and scores, in shards, and the state after it, with the step's whole
# rollouts and scores beside it (results/runs/<run>/seed<s>/).


use rule model_job as generate_rollouts with:
    input:
        INPUTS.permission,
        unpack(INPUTS.start),
        student=INPUTS.student,
        teacher=INPUTS.teacher,
        prompts=INPUTS.prompts,
    output:
        rollouts=paths.ROLLOUTS,
    log:
        "logs/generate_rollouts/{run}.seed{seed}.{step}{part}.log",
    params:
        command="generate-rollouts",
        spec=PARAMS.spec("generate_rollouts"),


use rule model_job as score_rollouts with:
    input:
        student=INPUTS.student,
        teacher=INPUTS.teacher,
        rollouts=paths.ROLLOUTS,
    output:
        scores=paths.SCORES,
    log:
        "logs/score_rollouts/{run}.seed{seed}.{step}{part}.log",
    params:
        command="score-rollouts",
        spec=PARAMS.spec("score_rollouts"),


use rule model_job as update_policy with:
    input:
        INPUTS.permission,
        unpack(INPUTS.start),
        student=INPUTS.student,
        teacher=INPUTS.teacher,
        prompts=INPUTS.prompts,
        rollouts=expand(paths.ROLLOUTS, part=PLAN.parts, allow_missing=True),
        scores=expand(paths.SCORES, part=PLAN.parts, allow_missing=True),
    output:
        state=paths.STATE,
    log:
        "logs/update_policy/{run}.seed{seed}.{step}.log",
    threads: PARAMS.ranks_of_run
    params:
        command="update-policy",
        spec=PARAMS.spec("update_policy"),
        launch=PARAMS.launch(PARAMS.ranks_of_run),
        extra=f"--run-folder {paths.RUN}",
