# The local theory (docs/dynamics.md). In: a student and its teacher; a run's states. Out: b, the leading eigenpairs of A and
# the logit residuals (results/dynamics/models/<student>/linearized-<teacher>/), each run's updates against what they
# predict (results/dynamics/<run>/seed<s>/local_theory.json), and tables of both.


rule linearize_student:
    input:
        student=expand(MODEL, model="{student}"),
        teacher=expand(MODEL, model="{teacher}"),
        prompts=expand(PROMPTS, model="{student}"),
    output:
        manifest=LINEARIZATION,
    log:
        "logs/linearize_student/{student}.{teacher}.log",
    wildcard_constraints:
        student=r"[a-z][a-z0-9_]*",
        teacher=r"[a-z][a-z0-9_]*",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("linearize_student"),
        launch=launch(),
    shell:
        "{params.launch} linearize-student --student {input.student} --teacher {input.teacher}"
        " --prompts {input.prompts} --spec {params.spec:q} --out {output.manifest} 2> {log}"


rule compare_local_theory:
    input:
        student=model_of("student"),
        teacher=model_of("teacher"),
        linearization=linearization_of,
        states=states_of,
        ledgers=ledgers_of,
    output:
        manifest="results/dynamics/{run}/seed{seed}/local_theory.json",
    log:
        "logs/compare_local_theory/{run}.seed{seed}.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("compare_local_theory"),
        launch=launch(),
        states=repeated("--states", "states"),
        ledgers=repeated("--ledgers", "ledgers"),
    shell:
        "{params.launch} compare-local-theory --student {input.student} --teacher {input.teacher}"
        " --linearization {input.linearization} {params.states} {params.ledgers}"
        " --spec {params.spec:q} --out {output.manifest} 2> {log}"


rule make_local_theory_tables:
    input:
        linearizations=[LINEARIZATION.format(student=s, teacher=t) for s, t in PLAN.linearized],
        comparisons=local_theories,
    output:
        expand("results/tables/{table}.csv", table=LOCAL_THEORY_TABLES),
    log:
        "logs/make_local_theory_tables.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("make_local_theory_tables"),
        folder=folder_of_tables,
    shell:
        "effopd make-local-theory-tables --results results --spec {params.spec:q} --out {params.folder} 2> {log}"
