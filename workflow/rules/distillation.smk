# On-policy distillation. In: student, teacher, data, the point where a segment starts. Out: the state where it ends,
# with every step's rollouts and scores beside it (results/runs/<run>/seed<s>/).


rule train_segment:
    input:
        unpack(start_of),
        student=model_of("student"),
        teacher=model_of("teacher"),
        data=DATA,
    output:
        state=STATE,
    log:
        "logs/train_segment/{run}.seed{seed}.{step}.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("train_segment"),
        ledger=optional("--ledger", "ledger"),
        run_folder=RUN,
    shell:
        "effopd train-segment --student {input.student} --teacher {input.teacher} --data {input.data}"
        " --state {input.state} {params.ledger} --run-folder {params.run_folder}"
        " --spec {params.spec:q} --out {output.state} 2> {log}"
