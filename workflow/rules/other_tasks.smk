# Other tasks (`evaluation.tasks`): evaluated on, never trained on. In: their test problems as prompts, a model, or the last
# state of a run. Out: accuracy with the per-item outcomes (results/evaluation/tasks/<task>/), and a table of all
# (results/tables/tasks.csv).


rule evaluate_on_task:
    input:
        unpack(end_of),
        student=model_of("student"),
        prompts=task_prompts_of,
    output:
        evaluation=TASK_EVALUATION,
    log:
        "logs/evaluate_on_task/{task}.{run}.seed{seed}.{step}.log",
    wildcard_constraints:
        task="|".join(PLAN.other_tasks) or "(?!)",
        run="|".join(PLAN.runs),
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=task_evaluation_spec,
        launch=launch(),
        ledger=optional("--ledger", "ledger"),
    shell:
        "{params.launch} evaluate --student {input.student} --prompts {input.prompts}"
        " --state {input.state} {params.ledger} --spec {params.spec:q} --out {output.evaluation} 2> {log}"


rule evaluate_model_on_task:
    input:
        model=MODEL,
        prompts=TASK_PROMPTS,
    output:
        evaluation=TASK_MODEL_EVALUATION,
    log:
        "logs/evaluate_model_on_task/{task}.{model}.log",
    wildcard_constraints:
        task="|".join(PLAN.other_tasks) or "(?!)",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=model_task_evaluation_spec,
        launch=launch(),
    shell:
        "{params.launch} evaluate --student {input.model} --prompts {input.prompts}"
        " --state {input.model} --spec {params.spec:q} --out {output.evaluation} 2> {log}"


rule make_task_table:
    input:
        evaluations=task_evaluations,
        prompts=expand(TASK_PROMPTS, task=PLAN.other_tasks, model=PLAN.config["models"]),
    output:
        table="results/tables/tasks.csv",
    log:
        "logs/make_task_table.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("make_task_table"),
    shell:
        "effopd make-task-table --results results --spec {params.spec:q} --out {output.table} 2> {log}"
