# Preflight. In: the models and prompts of runs that share a student, a teacher and settings. Out: that they may be
# trained together (results/preflight/<pair>.json; what was measured is beside it). A failed check stops these runs.
#
# Every first step depends on it, and Snakemake reruns what depends on a job that reruns. So nothing is tracked here that
# does not retrain these runs anyway: the models and prompts, and, in the name, the settings of training that are
# checked. The rest (code, `preflight`, the states still to be written) reaches the job without being tracked.


rule preflight:
    input:
        student=models_of_pair("student"),
        teacher=models_of_pair("teacher"),
        prompts=prompts_of_pair,
    output:
        passed=PREFLIGHT,
    log:
        "logs/preflight/{pair}.log",
    retries: 0  # a second look finds the same
    conda:
        "../../envs/effopd.yaml"
    params:
        spec=untracked_spec("preflight"),
        launch=launch(),
    shell:
        "{params.launch} preflight --student {input.student} --teacher {input.teacher} --prompts {input.prompts}"
        " --spec {params.spec:q} --out {output.passed} 2> {log}"
