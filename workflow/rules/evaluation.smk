# Evaluation. In: a point of a run, or a model. Out: accuracy and reverse KL on the held-out problems, with the per-item
# outcomes (results/evaluation/), and each run's metrics and costs in one table (results/runs/<run>/seed<s>/).


use rule model_job as evaluate with:
    input:
        unpack(INPUTS.end),
        student=INPUTS.student,
        teacher=INPUTS.teacher,
        prompts=INPUTS.prompts,
    output:
        evaluation=paths.EVALUATION,
    log:
        "logs/evaluate/{run}.seed{seed}.{step}.log",
    wildcard_constraints:
        run=one_of(PLAN.runs),
    params:
        command="evaluate",
        spec=PARAMS.evaluation_spec(),


use rule evaluate as evaluate_model with:
    input:
        student=paths.MODEL,
        teacher=INPUTS.reference_teacher(),
        prompts=INPUTS.prompts_pattern,
    output:
        evaluation=paths.MODEL_EVALUATION,
    log:
        "logs/evaluate_model/{model}.log",
    params:
        extra=f"--state {paths.MODEL}",


use rule job as collect_run with:
    input:
        unpack(INPUTS.history),
    output:
        metrics=expand(paths.COLLECTED, table="metrics", allow_missing=True),
        cost=expand(paths.COLLECTED, table="cost", allow_missing=True),
    log:
        "logs/collect_run/{run}.seed{seed}.log",
    params:
        command="collect-run",
        inputs="",
        spec=PARAMS.spec("collect_run"),
        extra=f"--run-folder {paths.RUN}",
