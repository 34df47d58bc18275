# On-policy distillation, every step in jobs of its own (execution.mode: staged). In: student, teacher, data, the point
# after the step before. Out: the step's rollouts and scores, in shards, and the state after it, with the step's whole
# rollouts and scores beside it (results/runs/<run>/seed<s>/).


rule generate_rollouts:
    input:
        unpack(start_of),
        student=model_of("student"),
        teacher=model_of("teacher"),
        prompts=prompts_of,
    output:
        rollouts=ROLLOUTS,
    log:
        "logs/generate_rollouts/{run}.seed{seed}.{step}{part}.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("generate_rollouts"),
        launch=launch(),
        ledger=optional("--ledger", "ledger"),
    shell:
        "{params.launch} generate-rollouts --student {input.student} --teacher {input.teacher} --prompts {input.prompts}"
        " --state {input.state} {params.ledger} --spec {params.spec:q} --out {output.rollouts} 2> {log}"


rule score_rollouts:
    input:
        student=model_of("student"),
        teacher=model_of("teacher"),
        rollouts=ROLLOUTS,
    output:
        scores=SCORES,
    log:
        "logs/score_rollouts/{run}.seed{seed}.{step}{part}.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("score_rollouts"),
        launch=launch(),
    shell:
        "{params.launch} score-rollouts --student {input.student} --teacher {input.teacher} --rollouts {input.rollouts}"
        " --spec {params.spec:q} --out {output.scores} 2> {log}"


rule update_policy:
    input:
        unpack(start_of),
        student=model_of("student"),
        teacher=model_of("teacher"),
        prompts=prompts_of,
        rollouts=expand(ROLLOUTS, part=PLAN.parts, allow_missing=True),
        scores=expand(SCORES, part=PLAN.parts, allow_missing=True),
    output:
        state=STATE,
    log:
        "logs/update_policy/{run}.seed{seed}.{step}.log",
    conda:
        "../../envs/effopd.yaml"
    threads: ranks_of_run
    params:
        spec=spec("update_policy"),
        launch=launch(ranks_of_run),
        ledger=optional("--ledger", "ledger"),
        rollouts=repeated("--rollouts", "rollouts"),
        scores=repeated("--scores", "scores"),
        run_folder=RUN,
    shell:
        "{params.launch} update-policy --student {input.student} --teacher {input.teacher} --prompts {input.prompts}"
        " --state {input.state} {params.ledger} {params.rollouts} {params.scores} --run-folder {params.run_folder}"
        " --spec {params.spec:q} --out {output.state} 2> {log}"
