# Data. Out: the task's splits and pretraining corpus (results/data/<task>/).


rule make_data:
    output:
        DATA,
    params:
        spec=spec("make_data"),
    log:
        "logs/make_data.log",
    conda:
        "../../envs/effopd.yaml"
    shell:
        "effopd make-data --spec {params.spec:q} --out {output} 2> {log}"
