# Other tasks (`evaluation.tasks`): evaluated on, never trained on. In: their test problems as prompts, a model, or the last
# state of a run. Out: accuracy with the per-item outcomes (results/evaluation/tasks/<task>/), and a table of all
# (results/tables/tasks.csv).


use rule evaluate as evaluate_on_task with:
    input:
        unpack(INPUTS.end),
        student=INPUTS.student,
        prompts=INPUTS.task_prompts,
    output:
        evaluation=paths.TASK_EVALUATION,
    log:
        "logs/evaluate_on_task/{task}.{run}.seed{seed}.{step}.log",
    wildcard_constraints:
        task=one_of(PLAN.other_tasks),
        run=one_of(PLAN.runs),


use rule evaluate_model as evaluate_model_on_task with:
    input:
        student=paths.MODEL,
        prompts=paths.PROMPTS,
    output:
        evaluation=paths.TASK_MODEL_EVALUATION,
    log:
        "logs/evaluate_model_on_task/{task}.{model}.log",
    wildcard_constraints:
        task=one_of(PLAN.other_tasks),


use rule results_job as make_task_table with:
    input:
        INPUTS.task_evaluations(),
        INPUTS.every_prompts(PLAN.other_tasks),
    output:
        table="results/tables/tasks.csv",
    log:
        "logs/make_task_table.log",
    params:
        command="make-task-table",
        spec=PARAMS.spec("make_task_table"),
