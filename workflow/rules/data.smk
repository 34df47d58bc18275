# Data. Out: a task's splits and pretraining corpus (results/data/<task>/), and the prompts that a model's tokenizer makes
# of them (results/data/<task>/prompts-<model>/). The task is the one that is trained on, or another one that is only
# evaluated on: of that the test split alone, without problems of the data that is trained on.


use rule job as make_data with:
    input:
        INPUTS.data_files,
        unpack(INPUTS.training_data),
    output:
        data=paths.DATA,
    log:
        "logs/make_data/{task}.log",
    wildcard_constraints:
        task=one_of(INPUTS.tasks),
    priority: 1  # first, so that data that cannot be had is known before anything is trained
    params:
        command="make-data",
        spec=PARAMS.spec("make_data"),
        extra=quoted(INPUTS.data_files),


use rule job as tokenize_prompts with:
    input:
        data=paths.DATA,
        model=paths.MODEL,
    output:
        prompts=paths.PROMPTS,
    log:
        "logs/tokenize_prompts/{task}.{model}.log",
    wildcard_constraints:
        task=one_of(INPUTS.tasks),
    params:
        command="tokenize-prompts",
        spec=PARAMS.spec("tokenize_prompts"),
