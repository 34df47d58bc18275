# Helpers for the other files here: the checked plan, each job's tracked parameters, and the paths in a chain
# of states. No rules.
from pathlib import Path

from effopd.plan import FIGURES, TABLES, Plan
from effopd.runtime import session
from effopd.runtime.errors import UserError
from snakemake.exceptions import WorkflowError

try:
    PLAN = Plan(config)
except UserError as error:
    raise WorkflowError(str(error)) from None

session.announce(PLAN.config["runtime"])

DATA = f"results/data/{PLAN.config['task']['name']}/manifest.json"
MODEL = "results/models/{model}/manifest.json"
RUN = "results/runs/{run}/seed{seed}"
STATE = "results/runs/{run}/seed{seed}/state/{step}/state.json"
LEDGER = "results/runs/{run}/seed{seed}/extrapolation/{step}/ledger.json"


def begin_run():
    """Claim the results folder and start the warm server. Ends the run with one line where another run has it."""
    try:
        session.begin(Path("results"), PLAN.config["runtime"])
    except UserError as error:
        raise WorkflowError(str(error)) from None


def end_run():
    session.end()


def spec(stage):
    """A params function: the canonical JSON of all that decides the stage's result."""

    def params(wildcards):
        return PLAN.spec(stage, **wildcards)

    return params


def folder_of_tables(wildcards, output):
    """The folder that the tables are written to."""
    return str(Path(output[0]).parent)


def model_of(role):
    """An input function: the manifest of a run's student or teacher."""

    def manifest(wildcards):
        return expand(MODEL, model=PLAN.runs[wildcards.run]["training"][role])

    return manifest


def point(run, seed, step):
    """What defines the weights after a step: the state and, after a trigger, its ledger; the student at step 0."""
    if step == 0:
        return {"state": expand(MODEL, model=PLAN.runs[run]["training"]["student"])}
    where = {"run": run, "seed": seed, "step": step}
    files = {"state": STATE.format(**where)}
    if step in PLAN.triggers(run):
        files["ledger"] = LEDGER.format(**where)
    return files


def start_of(wildcards):
    """The point from which a segment starts."""
    return point(wildcards.run, wildcards.seed, PLAN.previous_boundary(wildcards.run, int(wildcards.step)))


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


def names_of(stage):
    """A regular expression of the models that a stage makes; one that matches nothing where there are none."""
    names = [name for name in PLAN.config["models"] if PLAN.model_stage(name) == stage]
    return "|".join(names) or "(?!)"


def parent_of(wildcards):
    """An input function: the manifest of the model that a model is trained from."""
    return expand(MODEL, model=PLAN.model_parent(wildcards.model))


def evaluation_spec(wildcards):
    return PLAN.evaluate_run_spec(wildcards.run)


def states_of(wildcards):
    """Every state of a run and seed."""
    return expand(STATE, step=PLAN.boundaries(wildcards.run), **wildcards)


def ledgers_of(wildcards):
    """Every ledger of a run and seed."""
    return expand(LEDGER, step=PLAN.triggers(wildcards.run), **wildcards)


def evaluations(wildcards):
    """The evaluation of every kept state."""
    pattern = "results/evaluation/{}/seed{}/{}.json"
    return [pattern.format(*place) for place in PLAN.points()]


def all_ledgers(wildcards):
    """The ledger of every trigger."""
    return [path for run in PLAN.runs for path in expand(LEDGER, run=run, seed=PLAN.seeds, step=PLAN.triggers(run))]


def ranks_of(wildcards):
    """The processes of a model's training job."""
    return PLAN.config["models"][wildcards.model]["ranks"]


def launch(wildcards):
    """The command that starts a model's training job: torch's launcher where it has several ranks."""
    ranks = ranks_of(wildcards)
    if ranks == 1:
        return "effopd"
    return f"python -m torch.distributed.run --standalone --nproc_per_node {ranks} -m effopd"
