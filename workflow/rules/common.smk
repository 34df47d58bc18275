# Helpers for the other files here: the checked plan, each job's tracked parameters, and the paths in a chain
# of states. No rules.
import sys
from pathlib import Path

from effopd.workflow.estimates.experiment import dry_run_estimate
from effopd.workflow.job_specs import Plan
from effopd.workflow.experiment import FIGURES, LOCAL_THEORY_TABLES, TABLES
from effopd.workflow import session
from effopd.common.device import check_machine
from effopd.common.errors import UserError
from effopd.workflow.launch import command as launch_command
from snakemake.exceptions import WorkflowError

CONFIG_FILES = [] if workflow.config_settings.replace_workflow_config else [Path("config/config.yaml")]
if workflow.config_settings.configfiles:
    CONFIG_FILES = [path for path in CONFIG_FILES if path.exists()] + workflow.config_settings.configfiles

try:
    PLAN = Plan.of_files(CONFIG_FILES, workflow.config_settings.config_args)
    PLAN.check_endpoints()
    DATA_FILES = {task: PLAN.data_files(task) for task in [PLAN.task_name, *PLAN.other_tasks]}
    MODEL_FILES = {model: PLAN.model_files(model) for model in PLAN.config["models"]}
except UserError as error:
    raise WorkflowError(str(error)) from None

session.announce(PLAN.config["runtime"])
if workflow.output_settings.dryrun:
    logger.info("\n".join(f"estimate: {line}" for line in dry_run_estimate(PLAN)))
# Snakemake follows each chain of states by recursion, a few frames a job.
sys.setrecursionlimit(sys.getrecursionlimit() + 20 * PLAN.longest_chain())

TASK_DATA = "results/data/{task}/manifest.json"
TASK_PROMPTS = "results/data/{task}/prompts-{model}/manifest.json"
DATA = TASK_DATA.format(task=PLAN.task_name)
PROMPTS = expand(TASK_PROMPTS, task=PLAN.task_name, allow_missing=True)[0]
MODEL = "results/models/{model}/manifest.json"
MODEL_EVALUATION = "results/evaluation/models/{model}.json"
TASK_EVALUATION = "results/evaluation/tasks/{task}/{run}/seed{seed}/{step}.json"
TASK_MODEL_EVALUATION = "results/evaluation/tasks/{task}/models/{model}.json"
PREFLIGHT = "results/preflight/{pair}.json"
RUN = "results/runs/{run}/seed{seed}"
STATE = "results/runs/{run}/seed{seed}/state/{step}/state.json"
ROLLOUTS = "results/runs/{run}/seed{seed}/rollouts/step{step}{part}.json"
SCORES = "results/runs/{run}/seed{seed}/scores/step{step}{part}.json"
LINEARIZATION = "results/dynamics/models/{student}/linearized-{teacher}/manifest.json"
LEDGER = "results/runs/{run}/seed{seed}/extrapolation/{step}/ledger.json"
VALIDATION = "results/validation/{run}/seed{seed}/{step}.json"
PREDICTION = "results/predictions/{prediction}/seed{seed}/{step}/prediction.json"
WEIGHTS_ANALYSIS = "results/dynamics/{subject}/weights.json"
EXPLORER = "results/dynamics.html"
INTERVENTIONS = "results/dynamics/{subject}/interventions.json"


def begin_run(log):
    """Claim the results folder and start the warm server.

    Ends the run with one line if another run has the folder, or this machine lacks what its jobs compute with.

    `log` are the files that are written about this run, Snakemake's own among them.
    """
    own = next((path for path in log if path.endswith(".snakemake.log")), None)
    try:
        if workflow.local_exec:  # on a cluster the nodes say what they lack, in `preflight` before anything is trained
            specs = [job.params.spec for job in workflow.dag.needrun_jobs() if job.params.get("launch")]
            check_machine(PLAN.config["runtime"]["device"], specs, not workflow.deployment_settings.deployment_method)
        session.begin(Path("results"), PLAN.config["runtime"], workflow.local_exec, own)
    except UserError as error:
        raise WorkflowError(str(error)) from None
    # Snakemake's default rate limit has every finished job start a timer that goes on to the end, with a pass of the
    # scheduler a second. Any other limit that is asked for holds.
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    if limit and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None


def end_run():
    session.end()


def spec(stage):
    """A params function: the canonical JSON of all that decides the stage's result."""

    def params(wildcards):
        return PLAN.spec(stage, **wildcards)

    return params


def untracked_spec(stage):
    """A params function like `spec`, whose changes rerun nothing: Snakemake does not track what depends on `threads`."""

    def params(wildcards, threads):
        return PLAN.spec(stage, **wildcards)

    return params


def folder_of_tables(wildcards, output):
    """The folder that the tables are written to."""
    return str(Path(output[0]).parent)


def data_files_of(wildcards):
    """An input function: the local files that a task's data is made from."""
    return DATA_FILES[wildcards.task]


def trained_on(wildcards):
    """An input function: of another task, the data that is trained on, as `training`."""
    return {} if wildcards.task == PLAN.task_name else {"training": DATA}


def model_of(role):
    """An input function: the manifest of a run's student or teacher."""

    def manifest(wildcards):
        return MODEL.format(model=PLAN.runs[wildcards.run]["training"][role])

    return manifest


def prompts_of(wildcards):
    """An input function: the prompts of a run, which its student's tokenizer made."""
    return PROMPTS.format(model=PLAN.runs[wildcards.run]["training"]["student"])


def models_of_pair(role):
    """An input function: the manifest of the student or teacher that checks are of."""

    def manifest(wildcards):
        run = PLAN.preflights()[wildcards.pair][0]
        return MODEL.format(model=PLAN.runs[run]["training"][role])

    return manifest


def prompts_of_pair(wildcards):
    """An input function: the prompts of the student that checks are of."""
    return PROMPTS.format(model=PLAN.runs[PLAN.preflights()[wildcards.pair][0]]["training"]["student"])


def parent_prompts_of(wildcards):
    """An input function: the prompts of the model that a model is trained from."""
    return PROMPTS.format(model=PLAN.model_parent(wildcards.model))


def point(run, seed, step):
    """What defines the weights after a step: the state and, after a trigger, its ledger; the student at step 0."""
    if step == 0:
        return {"state": MODEL.format(model=PLAN.runs[run]["training"]["student"])}
    where = {"run": run, "seed": seed, "step": step}
    files = {"state": STATE.format(**where)}
    if step in PLAN.triggers(run):
        files["ledger"] = LEDGER.format(**where)
    return files


def start_of(wildcards):
    """The point from which a segment, or a staged step, starts; at step 0, what says that it may."""
    step = PLAN.previous_state(wildcards.run, int(wildcards.step))
    permission = {"preflight": PREFLIGHT.format(pair=PLAN.preflight(wildcards.run))} if step == 0 else {}
    return {**point(wildcards.run, wildcards.seed, step), **permission}


def end_of(wildcards):
    """The point at a step."""
    return point(wildcards.run, wildcards.seed, int(wildcards.step))


def anchor_of(wildcards):
    """The point from which the update at a trigger is measured, as `anchor` and `anchor_ledger`."""
    step = PLAN.previous_trigger(wildcards.run, int(wildcards.step))
    files = point(wildcards.run, wildcards.seed, step)
    names = {"state": "anchor", "ledger": "anchor_ledger"}
    return {names[name]: path for name, path in files.items()}


def optional(option, name):
    """A params function: `--option path` where the job has an input of that name, else nothing."""

    def argument(wildcards, input):
        path = getattr(input, name, "")
        return f"{option} {path}" if path else ""

    return argument


def repeated(option, name):
    """A params function: `--option path` for each of the job's inputs of that name."""

    def arguments(wildcards, input):
        return " ".join(f"{option} {path}" for path in getattr(input, name))

    return arguments


def candidates_of(wildcards):
    """What the gate said at a trigger: in one file, or in one for each coefficient."""
    coefficients = [f"{c:g}" for c in PLAN.candidates(wildcards.run)]
    if not coefficients:
        return expand(rules.evaluate_candidates.output.candidates, **wildcards)
    return expand(rules.evaluate_candidate.output.candidate, coefficient=coefficients, **wildcards)


def names_of(stage):
    """A regular expression of the models that a stage makes; one that matches nothing where there are none."""
    names = [name for name in PLAN.config["models"] if PLAN.model_stage(name) == stage]
    return "|".join(names) or "(?!)"


def model_files_of(wildcards):
    """An input function: the local files that a pretrained model is; none for one of the hub."""
    return MODEL_FILES[wildcards.model]


def parent_of(wildcards):
    """An input function: the manifest of the model that a model is trained from."""
    return MODEL.format(model=PLAN.model_parent(wildcards.model))


def evaluation_spec(wildcards):
    return PLAN.evaluate_run_spec(wildcards.run)


def validation_spec(wildcards):
    return PLAN.evaluate_run_spec(wildcards.run, split="validation")


def prediction_evaluation_spec(wildcards):
    return PLAN.evaluate_run_spec(PLAN.predicted_from(wildcards.prediction))


def task_evaluation_spec(wildcards):
    return PLAN.evaluate_run_spec(wildcards.run, task=wildcards.task)


def model_task_evaluation_spec(wildcards):
    return PLAN.evaluate_model_spec(task=wildcards.task)


def task_prompts_of(wildcards):
    """An input function: the prompts that a run's student makes of another task."""
    return TASK_PROMPTS.format(task=wildcards.task, model=PLAN.roles(wildcards.run)[0])


def task_evaluations(wildcards=None):
    """The evaluation of every model and of every last state on the other tasks."""
    of_models = expand(TASK_MODEL_EVALUATION, task=PLAN.other_tasks, model=PLAN.config["models"])
    points = [{"run": run, "seed": seed, "step": step} for run, seed, step in PLAN.last_points()]
    return of_models + [TASK_EVALUATION.format(task=task, **where) for task in PLAN.other_tasks for where in points]


def source_table():
    """The table by source of the test problems; nothing where they have but one."""
    return rules.make_source_table.output if PLAN.several_sources else []


def task_table():
    """The table of the other tasks; nothing where there are none."""
    return rules.make_task_table.output if PLAN.other_tasks else []


def model_behind(role):
    """An input function: the manifest of the student or teacher of the run that a prediction is from."""

    def manifest(wildcards):
        run = PLAN.predicted_from(wildcards.prediction)
        return MODEL.format(model=PLAN.runs[run]["training"][role])

    return manifest


def prompts_behind(wildcards):
    """An input function: the prompts of the run that a prediction is from."""
    run = PLAN.predicted_from(wildcards.prediction)
    return PROMPTS.format(model=PLAN.runs[run]["training"]["student"])


def behind(wildcards):
    """What a prediction at a step is made from: kept states, their ledgers and, where it asks for them, validations."""
    name, step = wildcards.prediction, int(wildcards.step)
    run, seed = PLAN.predicted_from(name), wildcards.seed
    points = [point(run, seed, s) for s in PLAN.states_behind(name, step)]
    return {
        "states": [p["state"] for p in points],
        "ledgers": [p["ledger"] for p in points if "ledger" in p],
        "validations": expand(VALIDATION, run=run, seed=seed, step=PLAN.validated_behind(name, step)),
    }


def predictions(wildcards=None):
    """All predicted weights."""
    return [PREDICTION.format(prediction=name, seed=seed, step=step) for name, seed, step in PLAN.predicted_points()]


def states_of(wildcards):
    """Every state of a run and seed."""
    return expand(STATE, step=PLAN.boundaries(wildcards.run), **wildcards)


def ledgers_of(wildcards):
    """Every ledger of a run and seed."""
    return expand(LEDGER, step=PLAN.triggers(wildcards.run), **wildcards)


def evaluations(wildcards):
    """The evaluation of every kept state, and of all predicted weights."""
    pattern = "results/evaluation/{}/seed{}/{}.json"
    return [pattern.format(*place) for place in [*PLAN.points(), *PLAN.predicted_points()]]


def training_of(role):
    """An input function: the manifest of the student (a subject's base) or teacher of the run that a subject is of."""

    def manifest(wildcards):
        return MODEL.format(model=PLAN.runs[PLAN.dynamics_run(wildcards.subject)]["training"][role])

    return manifest


def subject_prompts_of(wildcards):
    """An input function: the prompts of the run that a subject is of."""
    return PROMPTS.format(model=PLAN.runs[PLAN.dynamics_run(wildcards.subject)]["training"]["student"])


def kept_of(wildcards):
    """What a subject kept: the states and ledgers of a run and seed, or a model."""
    folder, name = wildcards.subject.split("/")
    if folder == "models":
        return {"states": [MODEL.format(model=name)], "ledgers": []}
    points = [point(folder, name.removeprefix("seed"), step) for step in PLAN.boundaries(folder)]
    return {"states": [p["state"] for p in points], "ledgers": [p["ledger"] for p in points if "ledger" in p]}


def dynamics_artifacts(wildcards=None):
    """What is known of every subject's weights."""
    patterns = [WEIGHTS_ANALYSIS, INTERVENTIONS] if PLAN.config["dynamics"]["interventions"] else [WEIGHTS_ANALYSIS]
    return expand(patterns, subject=PLAN.dynamics_subjects())


def kept_artifacts():
    """What is made again when it is deleted, though everything made from it is there."""
    states = [STATE.format(run=run, seed=seed, step=step) for run, seed, step in PLAN.points()]
    models = [pattern.format(model=model) for model in PLAN.config["models"] for pattern in (MODEL, MODEL_EVALUATION)]
    data = expand(TASK_DATA, task=DATA_FILES)
    measured = [*evaluations(None), *task_evaluations(), *dynamics_artifacts()]
    return [*data, *models, *states, *all_ledgers(None), *predictions(), *measured]


def all_ledgers(wildcards):
    """The ledger of every trigger."""
    return [path for run in PLAN.runs for path in expand(LEDGER, run=run, seed=PLAN.seeds, step=PLAN.triggers(run))]


def ranks_of_model(wildcards):
    """The processes of a model's training job."""
    return PLAN.config["models"][wildcards.model]["ranks"]


def ranks_of_run(wildcards):
    """The processes of a run's training jobs."""
    return PLAN.runs[wildcards.run]["training"]["ranks"]


def linearization_of(wildcards):
    """The linearization of a run's student, towards its teacher."""
    student, teacher = PLAN.roles(wildcards.run)
    return LINEARIZATION.format(student=student, teacher=teacher)


def local_theories(wildcards=None):
    """What the local theory says of every run and seed that is looked into; nothing where it is off."""
    if not PLAN.linearized:
        return []
    return expand(rules.compare_local_theory.output, run=PLAN.dynamics_runs, seed=PLAN.dynamics_seeds)


def local_theory_tables():
    """The tables of the local theory; none where it is off."""
    return rules.make_local_theory_tables.output if PLAN.linearized else []


def weight_figure_data(wildcards):
    """What a figure on weights is drawn from."""
    if wildcards.figure == "local_theory":
        return rules.make_local_theory_tables.output
    return [*rules.make_dynamics_tables.output, *expand(WEIGHTS_ANALYSIS, subject=PLAN.dynamics_subjects())]


def dynamics_pages(wildcards=None):
    """What the report says and links of the weights; nothing where they are not looked into."""
    if not PLAN.dynamics_subjects():
        return []
    return [*rules.compare_with_paper.output, EXPLORER, *local_theory_tables()]


def launch(ranks=None):
    """A params function: the command that starts a verb's processes, one or its ranks, with the job's resources.

    Snakemake does not track params that depend on `threads` or `resources`: where a job runs changes no result.
    """

    def command(wildcards, threads, resources):
        on_cpu = PLAN.config["runtime"]["device"] == "cpu"
        try:
            return launch_command(
                ranks(wildcards) if ranks else 1,
                gpus=0 if on_cpu else resources.get("gpu", 0),
                nodes=resources.get("nodes", 1),
                mpi=resources.get("mpi"),
                cpus=resources.get("cpus_per_task", threads),
            )
        except UserError as error:
            raise WorkflowError(str(error)) from None

    return command
