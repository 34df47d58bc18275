# Parameter dynamics. In: the kept states and ledgers of a run and seed, or a model with its checkpoints (a subject:
# <run>/seed<s> or models/<name>). Out: what training did to the weights, interventions (results/dynamics/<subject>/),
# and tables of all subjects.


rule analyze_weights:
    input:
        unpack(kept_of),
        base=training_of("student"),
    output:
        analysis=WEIGHTS_ANALYSIS,
    log:
        "logs/analyze_weights/{subject}.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("analyze_weights"),
        launch=launch(),
        states=repeated("--states", "states"),
        ledgers=repeated("--ledgers", "ledgers"),
    shell:
        "{params.launch} analyze-weights --base {input.base} {params.states} {params.ledgers}"
        " --spec {params.spec:q} --out {output.analysis} 2> {log}"


rule evaluate_interventions:
    input:
        unpack(kept_of),
        base=training_of("student"),
        teacher=training_of("teacher"),
        prompts=subject_prompts_of,
    output:
        interventions=INTERVENTIONS,
    log:
        "logs/evaluate_interventions/{subject}.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("evaluate_interventions"),
        launch=launch(),
        states=repeated("--states", "states"),
        ledgers=repeated("--ledgers", "ledgers"),
    shell:
        "{params.launch} evaluate-interventions --base {input.base} --teacher {input.teacher}"
        " --prompts {input.prompts} {params.states} {params.ledgers}"
        " --spec {params.spec:q} --out {output.interventions} 2> {log}"


rule make_dynamics_tables:
    input:
        subjects=dynamics_artifacts,
    output:
        expand("results/tables/{table}.csv", table=PLAN.dynamics_tables()),
    log:
        "logs/make_dynamics_tables.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("make_dynamics_tables"),
        folder=folder_of_tables,
    shell:
        "effopd make-dynamics-tables --results results --spec {params.spec:q} --out {params.folder} 2> {log}"
