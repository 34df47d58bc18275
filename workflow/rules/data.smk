# Data. Out: the task's splits and pretraining corpus (results/data/<task>/), and the prompts that a model's tokenizer
# makes of them (results/data/<task>/prompts-<model>/).


rule make_data:
    input:
        files=DATA_FILES,
    output:
        data=DATA,
    log:
        "logs/make_data.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("make_data"),
    shell:
        "effopd make-data --spec {params.spec:q} --out {output.data} {input.files:q} 2> {log}"


rule tokenize_prompts:
    input:
        data=DATA,
        model=MODEL,
    output:
        prompts=PROMPTS,
    log:
        "logs/tokenize_prompts/{model}.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("tokenize_prompts"),
    shell:
        "effopd tokenize-prompts --data {input.data} --model {input.model}"
        " --spec {params.spec:q} --out {output.prompts} 2> {log}"
