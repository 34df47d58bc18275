# Tables, figures and report. In: evaluations, ledgers, metrics, costs and what is known of weights. Out: results/tables/,
# results/figures/, results/report.html, the interactive page results/dynamics.html, and results/config.yaml.


rule write_config:
    output:
        "results/config.yaml",
    log:
        "logs/write_config.log",
    priority: 1  # first, so that `effopd status` knows the plan
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("write_config"),
    shell:
        "effopd write-config --spec {params.spec:q} --out {output} 2> {log}"


rule make_tables:
    input:
        evaluations=evaluations,
        models=expand([MODEL, MODEL_EVALUATION], model=PLAN.config["models"]),
        ledgers=all_ledgers,
        predictions=predictions,
        costs=expand(
            "results/runs/{run}/seed{seed}/{table}.parquet", run=PLAN.runs, seed=PLAN.seeds, table=["cost", "metrics"]
        ),
    output:
        expand("results/tables/{table}.csv", table=TABLES),
    log:
        "logs/make_tables.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("make_tables"),
        folder=folder_of_tables,
    shell:
        "effopd make-tables --results results --spec {params.spec:q} --out {params.folder} 2> {log}"


rule make_source_table:
    input:
        evaluations=evaluations,
        models=expand(MODEL_EVALUATION, model=PLAN.config["models"]),
        prompts=expand(PROMPTS, model=PLAN.config["models"]),
    output:
        table="results/tables/sources.csv",
    log:
        "logs/make_source_table.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("make_source_table"),
    shell:
        "effopd make-task-table --results results --spec {params.spec:q} --out {output.table} 2> {log}"


rule plot_figure:
    input:
        tables=rules.make_tables.output,
    output:
        svg="results/figures/{figure}.svg",
        png="results/figures/{figure}.png",
    log:
        "logs/plot_figure/{figure}.log",
    wildcard_constraints:
        figure="|".join(FIGURES),
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("plot_figure"),
    shell:
        "effopd plot-figure --results results --spec {params.spec:q} --out {output.svg} 2> {log}"


rule plot_weight_figure:
    input:
        data=weight_figure_data,
    output:
        svg="results/figures/{figure}.svg",
        png="results/figures/{figure}.png",
    log:
        "logs/plot_weight_figure/{figure}.log",
    wildcard_constraints:
        figure="|".join(PLAN.weight_figures()) or "(?!)",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("plot_figure"),
    shell:
        "effopd plot-figure --results results --spec {params.spec:q} --out {output.svg} 2> {log}"


rule compare_with_paper:
    input:
        tables=rules.make_dynamics_tables.output,
    output:
        table="results/tables/paper_claims.csv",
    log:
        "logs/compare_with_paper.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("compare_with_paper"),
    shell:
        "effopd compare-with-paper --results results --spec {params.spec:q} --out {output.table} 2> {log}"


rule write_explorer:
    input:
        analyses=expand(WEIGHTS_ANALYSIS, subject=PLAN.dynamics_subjects()),
    output:
        page=EXPLORER,
    log:
        "logs/write_explorer.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("write_explorer"),
    shell:
        "effopd write-explorer --results results --spec {params.spec:q} --out {output.page} 2> {log}"


rule write_report:
    input:
        tables=rules.make_tables.output,
        sources=source_table(),
        tasks=task_table(),
        dynamics=dynamics_pages,
        figures=expand("results/figures/{figure}.svg", figure=PLAN.figures()),
        metrics=expand("results/runs/{run}/seed{seed}/metrics.parquet", run=PLAN.runs, seed=PLAN.seeds),
    output:
        report(
            "results/report.html",
            caption="../report/report.rst",
            category="Report",
        ),
    log:
        "logs/write_report.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=spec("write_report"),
    shell:
        "effopd write-report --results results --spec {params.spec:q} --out {output} 2> {log}"
