# Tables, figures and report. In: evaluations, decisions, metrics, costs and what is known of weights. Out: results/tables/,
# results/figures/, results/report.html, the interactive page results/dynamics.html, and results/config.yaml.


use rule job as write_config with:
    output:
        paths.CONFIG,
    log:
        "logs/write_config.log",
    priority: 1  # first, so that `effopd status` knows the plan
    params:
        command="write-config",
        spec=PARAMS.spec("write_config"),


use rule results_job as make_tables with:
    input:
        INPUTS.evaluations(),
        INPUTS.models(),
        INPUTS.decisions(),
        INPUTS.predictions(),
        INPUTS.collected("cost", "metrics"),
    output:
        INPUTS.tables(),
    log:
        "logs/make_tables.log",
    params:
        command="make-tables",
        spec=PARAMS.spec("make_tables"),
        out=folder_of_outputs,


use rule results_job as make_source_table with:
    input:
        INPUTS.evaluations(),
        INPUTS.model_evaluations(),
        INPUTS.every_prompts([PLAN.task_name]),
    output:
        table="results/tables/sources.csv",
    log:
        "logs/make_source_table.log",
    params:
        command="make-task-table",
        spec=PARAMS.spec("make_source_table"),


use rule results_job as plot_figure with:
    input:
        INPUTS.tables(),
    output:
        svg="results/figures/{figure}.svg",
        png="results/figures/{figure}.png",
    log:
        "logs/plot_figure/{figure}.log",
    wildcard_constraints:
        figure=one_of(FIGURES),
    params:
        command="plot-figure",
        spec=PARAMS.spec("plot_figure"),


use rule plot_figure as plot_weight_figure with:
    input:
        INPUTS.figure_of_weights,
    log:
        "logs/plot_weight_figure/{figure}.log",
    wildcard_constraints:
        figure=one_of(PLAN.weight_figures()),


use rule results_job as compare_with_paper with:
    input:
        INPUTS.dynamics_tables(),
    output:
        table="results/tables/paper_claims.csv",
    log:
        "logs/compare_with_paper.log",
    params:
        command="compare-with-paper",
        spec=PARAMS.spec("compare_with_paper"),


use rule results_job as write_explorer with:
    input:
        INPUTS.weight_analyses(),
    output:
        page=paths.EXPLORER,
    log:
        "logs/write_explorer.log",
    params:
        command="write-explorer",
        spec=PARAMS.spec("write_explorer"),


use rule results_job as write_report with:
    input:
        INPUTS.tables(),
        INPUTS.source_table(),
        INPUTS.task_table(),
        INPUTS.dynamics_pages(),
        INPUTS.figures("svg"),
        INPUTS.collected("metrics"),
    output:
        report(
            paths.REPORT,
            caption="../report/report.rst",
            category="Report",
        ),
    log:
        "logs/write_report.log",
    params:
        command="write-report",
        spec=PARAMS.spec("write_report"),
