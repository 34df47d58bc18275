# On-policy distillation, a job a segment (execution.mode: colocated). In: student, teacher, data, the point where a
# segment starts. Out: the state where it ends, with every step's rollouts and scores beside it
# (results/runs/<run>/seed<s>/).


rule train_segment:
    input:
        unpack(start_of),
        student=model_of("student"),
        teacher=model_of("teacher"),
        prompts=prompts_of,
    output:
        state=STATE,
    log:
        "logs/train_segment/{run}.seed{seed}.{step}.log",
    conda:
        "../../envs/effopd.yaml"
    threads: ranks_of_run
    params:
        spec=spec("train_segment"),
        launch=launch(ranks_of_run),
        ledger=optional("--ledger", "ledger"),
        run_folder=RUN,
    shell:
        "{params.launch} train-segment --student {input.student} --teacher {input.teacher} --prompts {input.prompts}"
        " --state {input.state} {params.ledger} --run-folder {params.run_folder}"
        " --spec {params.spec:q} --out {output.state} 2> {log}"
