# The local theory (docs/dynamics.md). In: a student and its teacher; a run's states. Out: b, the leading eigenpairs of A and
# the logit residuals (results/dynamics/models/<student>/linearized-<teacher>/), each run's updates against what they
# predict (results/dynamics/<run>/seed<s>/local_theory.json), and tables of both.


use rule model_job as linearize_student with:
    input:
        student=expand(paths.MODEL, model="{student}"),
        teacher=expand(paths.MODEL, model="{teacher}"),
        prompts=expand(INPUTS.prompts_pattern, model="{student}"),
    output:
        manifest=paths.LINEARIZATION,
    log:
        "logs/linearize_student/{student}.{teacher}.log",
    wildcard_constraints:
        student=r"[a-z][a-z0-9_]*",
        teacher=r"[a-z][a-z0-9_]*",
    params:
        command="linearize-student",
        spec=PARAMS.spec("linearize_student"),


use rule model_job as compare_local_theory with:
    input:
        unpack(INPUTS.history),
        student=INPUTS.student,
        teacher=INPUTS.teacher,
        linearization=INPUTS.linearization,
    output:
        manifest=paths.LOCAL_THEORY,
    log:
        "logs/compare_local_theory/{run}.seed{seed}.log",
    params:
        command="compare-local-theory",
        spec=PARAMS.spec("compare_local_theory"),


use rule results_job as make_local_theory_tables with:
    input:
        INPUTS.linearizations(),
        INPUTS.local_theories(),
    output:
        expand(paths.TABLE, table=LOCAL_THEORY_TABLES),
    log:
        "logs/make_local_theory_tables.log",
    params:
        command="make-local-theory-tables",
        spec=PARAMS.spec("make_local_theory_tables"),
        out=folder_of_outputs,
