# Preflight. In: the models and prompts of runs that share a student, a teacher and settings. Out: that they may be
# trained together (results/preflight/<pair>.json; what was measured is beside it). A failed check stops these runs.
#
# Every first step depends on it, and Snakemake reruns what depends on a job that reruns. So nothing is tracked here that
# does not retrain these runs anyway: the models and prompts, and, in the name, the settings of training that are
# checked. The rest (code, `preflight`, the states still to be written) reaches the job without being tracked.


use rule model_job as preflight with:
    input:
        student=INPUTS.student,
        teacher=INPUTS.teacher,
        prompts=INPUTS.prompts,
    output:
        passed=paths.PREFLIGHT,
    log:
        "logs/preflight/{pair}.log",
    retries: 0  # a second look finds the same
    params:
        command="preflight",
        spec=PARAMS.untracked_spec("preflight"),
