# Models. In: data. Out: Hugging Face folders with a manifest (results/models/<name>/).


rule pretrain_model:
    input:
        data=DATA,
    output:
        manifest=MODEL,
    log:
        "logs/pretrain_model/{model}.log",
    wildcard_constraints:
        model=names_of("pretrain_model"),
    conda:
        "../../envs/effopd.yaml"
    threads: ranks_of
    params:
        spec=spec("pretrain_model"),
        launch=launch,
    shell:
        "{params.launch} pretrain-model --data {input.data} --spec {params.spec:q} --out {output.manifest} 2> {log}"


rule train_rl:
    input:
        data=DATA,
        init=parent_of,
    output:
        manifest=MODEL,
    log:
        "logs/train_rl/{model}.log",
    wildcard_constraints:
        model=names_of("train_rl"),
    conda:
        "../../envs/effopd.yaml"
    threads: ranks_of
    params:
        spec=spec("train_rl"),
        launch=launch,
    shell:
        "{params.launch} train-rl --data {input.data} --init {input.init}"
        " --spec {params.spec:q} --out {output.manifest} 2> {log}"
