# EffOPD: trains a base model, a teacher and students by on-policy distillation, with and without weight
# extrapolation, and compares them: results/report.html. See README.md; `snakemake --cores all` runs it.
from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"  # reads the configuration strictly, before Snakemake does


configfile: "config/config.yaml"


wildcard_constraints:
    task=r"[a-z][a-z0-9_]*",
    model=r"[a-z][a-z0-9_]*",
    sample=r"[a-z][a-z0-9_]*-[0-9a-f]{8}",
    run=r"[a-z][a-z0-9_]*",
    pair=r"[a-z][a-z0-9_]*-[a-z][a-z0-9_]*-[0-9a-f]{8}",
    seed=r"[0-9]+",
    step=r"[0-9]+",
    part=r"(\.shard[0-9]+of[0-9]+)?",
    prediction=r"[a-z][a-z0-9_]*",
    coefficient=r"[-+.0-9e]+",
    subject=r"[a-z][a-z0-9_]*/[a-z][a-z0-9_]*",
    figure=r"[a-z][a-z0-9_]*",


include: "workflow/rules/jobs.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/preflight.smk"
include: f"workflow/rules/{PLAN.config['execution']['mode']}.smk"
include: "workflow/rules/extrapolation.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/other_tasks.smk"
include: "workflow/rules/predictions.smk"
include: "workflow/rules/dynamics.smk"
include: "workflow/rules/local_theory.smk"
include: "workflow/rules/report.smk"


# On a cluster these run where the workflow was started: seconds on a core, no model; `fetch_model`, as nodes often have
# no way to the hub. `select_candidate` does not, as it reads and writes whole models.
localrules:
    all,
    fetch_model,
    write_config,
    collect_run,
    make_tables,
    make_source_table,
    make_task_table,
    make_dynamics_tables,
    make_local_theory_tables,
    plot_figure,
    plot_weight_figure,
    compare_with_paper,
    write_explorer,
    write_report,


rule all:
    input:
        paths.CONFIG,
        paths.REPORT,
        INPUTS.kept_artifacts(),
        INPUTS.tables(),
        INPUTS.source_table(),
        INPUTS.task_table(),
        INPUTS.dynamics_tables(),
        INPUTS.dynamics_pages(),
        INPUTS.figures("svg", "png"),
        INPUTS.collected("cost", "metrics"),


onstart:
    begin_run(log)


onsuccess:
    session.end()


onerror:
    session.end()
