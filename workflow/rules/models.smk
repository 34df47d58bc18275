# Models. In: data, prompts, the hub or local folders. Out: Hugging Face folders with a manifest
# (results/models/<name>/); samples of their answers for others to learn (results/samples/<model>-<digest>/).


use rule job as fetch_model with:
    input:
        INPUTS.model_files,
    output:
        manifest=paths.MODEL,
    log:
        "logs/fetch_model/{model}.log",
    wildcard_constraints:
        model=one_of(INPUTS.made_by("fetch_model")),
    params:
        command="fetch-model",
        spec=PARAMS.spec("fetch_model"),


use rule model_job as pretrain_model with:
    input:
        data=INPUTS.data,
    output:
        manifest=paths.MODEL,
    log:
        "logs/pretrain_model/{model}.log",
    wildcard_constraints:
        model=one_of(INPUTS.made_by("pretrain_model")),
    threads: PARAMS.ranks_of_model
    params:
        command="pretrain-model",
        spec=PARAMS.spec("pretrain_model"),
        launch=PARAMS.launch(PARAMS.ranks_of_model),


use rule pretrain_model as train_rl with:
    input:
        unpack(INPUTS.parent),
    log:
        "logs/train_rl/{model}.log",
    wildcard_constraints:
        model=one_of(INPUTS.made_by("train_rl")),
    params:
        command="train-rl",
        spec=PARAMS.spec("train_rl"),


use rule model_job as sample_responses with:
    input:
        unpack(INPUTS.sampled),
    output:
        samples=paths.SAMPLES,
    log:
        "logs/sample_responses/{sample}.log",
    wildcard_constraints:
        sample=one_of(PLAN.samples),
    params:
        command="sample-responses",
        spec=PARAMS.spec("sample_responses"),


use rule pretrain_model as train_sft with:
    input:
        unpack(INPUTS.fine_tuned),
    log:
        "logs/train_sft/{model}.log",
    wildcard_constraints:
        model=one_of(INPUTS.made_by("train_sft")),
    params:
        command="train-sft",
        spec=PARAMS.spec("train_sft"),
