# Data. Out: a task's splits and pretraining corpus (results/data/<task>/), and the prompts that a model's tokenizer makes
# of them (results/data/<task>/prompts-<model>/). The task is the one that is trained on, or another one that is only
# evaluated on: of that the test split alone, without problems of the data that is trained on.


rule make_data:
    input:
        unpack(trained_on),
        files=data_files_of,
    output:
        data=TASK_DATA,
    log:
        "logs/make_data/{task}.log",
    wildcard_constraints:
        task="|".join(DATA_FILES),
    priority: 1  # first, so that data that cannot be had is known before anything is trained
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("make_data"),
        training=optional("--training", "training"),
    shell:
        "effopd make-data {params.training} --spec {params.spec:q} --out {output.data} {input.files:q} 2> {log}"


rule tokenize_prompts:
    input:
        data=TASK_DATA,
        model=MODEL,
    output:
        prompts=TASK_PROMPTS,
    log:
        "logs/tokenize_prompts/{task}.{model}.log",
    wildcard_constraints:
        task="|".join(DATA_FILES),
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("tokenize_prompts"),
    shell:
        "effopd tokenize-prompts --data {input.data} --model {input.model}"
        " --spec {params.spec:q} --out {output.prompts} 2> {log}"
