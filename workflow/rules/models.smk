# Models. In: data. Out: Hugging Face folders with a manifest (results/models/<name>/).


rule pretrain_model:
    input:
        data=DATA,
    output:
        manifest=MODEL,
    params:
        spec=spec("pretrain_model"),
        launch=launch,
    threads: ranks_of
    wildcard_constraints:
        model=names_of("pretrain_model"),
    log:
        "logs/pretrain_model/{model}.log",
    benchmark:
        "logs/benchmarks/pretrain_model/{model}.tsv"
    conda:
        "../../envs/effopd.yaml"
    shell:
        "{params.launch} pretrain-model --data {input.data} --spec {params.spec:q} --out {output.manifest} 2> {log}"


rule train_rl:
    input:
        data=DATA,
        init=parent_of,
    output:
        manifest=MODEL,
    params:
        spec=spec("train_rl"),
        launch=launch,
    threads: ranks_of
    wildcard_constraints:
        model=names_of("train_rl"),
    log:
        "logs/train_rl/{model}.log",
    benchmark:
        "logs/benchmarks/train_rl/{model}.tsv"
    conda:
        "../../envs/effopd.yaml"
    shell:
        "{params.launch} train-rl --data {input.data} --init {input.init}"
        " --spec {params.spec:q} --out {output.manifest} 2> {log}"
