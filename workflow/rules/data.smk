# Data. Out: the task's splits and pretraining corpus (results/data/<task>/).


rule make_data:
    output:
        DATA,
    log:
        "logs/make_data.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("make_data"),
    shell:
        "effopd make-data --spec {params.spec:q} --out {output} 2> {log}"
