# On-policy distillation, one job per segment (execution.mode: colocated). In: student, teacher, data, the point where a
# segment starts. Out: the state where it ends, with every step's rollouts and scores beside it
# (results/runs/<run>/seed<s>/).


use rule model_job as train_segment with:
    input:
        INPUTS.permission,
        unpack(INPUTS.start),
        student=INPUTS.student,
        teacher=INPUTS.teacher,
        prompts=INPUTS.prompts,
    output:
        state=paths.STATE,
    log:
        "logs/train_segment/{run}.seed{seed}.{step}.log",
    threads: PARAMS.ranks_of_run
    params:
        command="train-segment",
        spec=PARAMS.spec("train_segment"),
        launch=PARAMS.launch(PARAMS.ranks_of_run),
        extra=f"--run-folder {paths.RUN}",
