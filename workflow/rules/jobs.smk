# What all jobs are, for the other files here to `use` with inputs, output, log and params of their own. A command gets the
# named inputs as options (`student=` as `--student`); those without a name only have to be there. These three make nothing.


rule job:
    log:
        "logs/job.log",
    conda:
        "../../envs/effopd.yaml"
    params:
        launch="effopd",
        command="",
        inputs=named_inputs,
        extra="",
        spec="",
        out=only_output,
    shell:
        "{params.launch} {params.command} {params.inputs} {params.extra}"
        " --spec {params.spec:q} --out {params.out} 2> {log}"


# A job with a model, on a GPU where there is one.
use rule job as model_job with:
    log:
        "logs/model_job.log",
    params:
        launch=PARAMS.launch(),


# A job that looks for what it reads in the results folder.
use rule job as results_job with:
    log:
        "logs/results_job.log",
    params:
        extra="--results results",
