# Parameter dynamics. In: the kept states and decisions of a run and seed, or a model with its checkpoints (a subject:
# <run>/seed<s> or models/<name>). Out: what training did to the weights, interventions (results/dynamics/<subject>/),
# and tables of all subjects.


use rule model_job as analyze_weights with:
    input:
        unpack(INPUTS.kept),
        base=INPUTS.student,
    output:
        analysis=paths.WEIGHT_ANALYSIS,
    log:
        "logs/analyze_weights/{subject}.log",
    params:
        command="analyze-weights",
        spec=PARAMS.spec("analyze_weights"),


use rule model_job as evaluate_interventions with:
    input:
        unpack(INPUTS.kept),
        base=INPUTS.student,
        teacher=INPUTS.teacher,
        prompts=INPUTS.prompts,
    output:
        interventions=paths.INTERVENTIONS,
    log:
        "logs/evaluate_interventions/{subject}.log",
    params:
        command="evaluate-interventions",
        spec=PARAMS.spec("evaluate_interventions"),


use rule results_job as make_dynamics_tables with:
    input:
        INPUTS.dynamics(),
    output:
        INPUTS.dynamics_tables(),
    log:
        "logs/make_dynamics_tables.log",
    params:
        command="make-dynamics-tables",
        spec=PARAMS.spec("make_dynamics_tables"),
        out=folder_of_outputs,
