# Models. In: data, prompts, the hub or local folders. Out: Hugging Face folders with a manifest
# (results/models/<name>/).


rule fetch_model:
    input:
        files=model_files_of,
    output:
        manifest=MODEL,
    log:
        "logs/fetch_model/{model}.log",
    wildcard_constraints:
        model=names_of("fetch_model"),
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("fetch_model"),
    shell:
        "effopd fetch-model --spec {params.spec:q} --out {output.manifest} 2> {log}"


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
    threads: ranks_of_model
    params:
        spec=spec("pretrain_model"),
        launch=launch(ranks_of_model),
    shell:
        "{params.launch} pretrain-model --data {input.data} --spec {params.spec:q} --out {output.manifest} 2> {log}"


rule train_rl:
    input:
        prompts=parent_prompts_of,
        init=parent_of,
    output:
        manifest=MODEL,
    log:
        "logs/train_rl/{model}.log",
    wildcard_constraints:
        model=names_of("train_rl"),
    conda:
        "../../envs/effopd.yaml"
    threads: ranks_of_model
    params:
        spec=spec("train_rl"),
        launch=launch(ranks_of_model),
    shell:
        "{params.launch} train-rl --prompts {input.prompts} --init {input.init}"
        " --spec {params.spec:q} --out {output.manifest} 2> {log}"
