# Evaluation. In: a point of a run, or a model. Out: accuracy and reverse KL on the held-out problems, with the per-item
# outcomes (results/evaluation/), and each run's metrics and costs in one table (results/runs/<run>/seed<s>/).


rule evaluate:
    input:
        unpack(end_of),
        student=model_of("student"),
        teacher=model_of("teacher"),
        prompts=prompts_of,
    output:
        evaluation="results/evaluation/{run}/seed{seed}/{step}.json",
    log:
        "logs/evaluate/{run}.seed{seed}.{step}.log",
    wildcard_constraints:
        run="|".join(PLAN.runs),
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=evaluation_spec,
        launch=launch(),
        ledger=optional("--ledger", "ledger"),
    shell:
        "{params.launch} evaluate --student {input.student} --teacher {input.teacher} --prompts {input.prompts}"
        " --state {input.state} {params.ledger} --spec {params.spec:q} --out {output.evaluation} 2> {log}"


rule evaluate_model:
    input:
        model=MODEL,
        teacher=expand(MODEL, model=PLAN.reference_teacher()),
        prompts=PROMPTS,
    output:
        evaluation=MODEL_EVALUATION,
    log:
        "logs/evaluate_model/{model}.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=PLAN.evaluate_model_spec(),
        launch=launch(),
    shell:
        "{params.launch} evaluate --student {input.model} --teacher {input.teacher} --prompts {input.prompts}"
        " --state {input.model} --spec {params.spec:q} --out {output.evaluation} 2> {log}"


rule collect_run:
    input:
        states=states_of,
        ledgers=ledgers_of,
    output:
        metrics="results/runs/{run}/seed{seed}/metrics.parquet",
        cost="results/runs/{run}/seed{seed}/cost.parquet",
    log:
        "logs/collect_run/{run}.seed{seed}.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("collect_run"),
        run_folder=RUN,
    shell:
        "effopd collect-run --run-folder {params.run_folder} --spec {params.spec:q}" " --out {output.metrics} 2> {log}"
