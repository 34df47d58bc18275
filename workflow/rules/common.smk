# What the other files here use: the checked plan, what its jobs are made from (INPUTS) and are told (PARAMS), and the
# patterns of paths. No rules, and nothing that needs a test: that is in the package, in effopd.workflow.
import sys
from contextlib import contextmanager
from pathlib import Path

from effopd.common.device import check_machine
from effopd.common.errors import UserError
from effopd.workflow import paths, session
from effopd.workflow.estimates.experiment import dry_run_estimate
from effopd.workflow.experiment import FIGURES, LOCAL_THEORY_TABLES
from effopd.workflow.job_specs import Plan
from effopd.workflow.rule_inputs import RuleInputs
from effopd.workflow.rule_params import RuleParams, folder_of_outputs, named_inputs, only_output, quoted
from snakemake.exceptions import WorkflowError

CONFIG_FILES = [] if workflow.config_settings.replace_workflow_config else [Path("config/config.yaml")]
if workflow.config_settings.configfiles:
    CONFIG_FILES = [path for path in CONFIG_FILES if path.exists()] + workflow.config_settings.configfiles


@contextmanager
def said_in_a_line():
    """Have a UserError end the workflow with its one line."""
    try:
        yield
    except UserError as error:
        raise WorkflowError(str(error)) from None


with said_in_a_line():
    PLAN = Plan.of_files(CONFIG_FILES, workflow.config_settings.config_args)
    PLAN.check_endpoints()
    INPUTS = RuleInputs(PLAN)
    PARAMS = RuleParams(INPUTS)

session.announce(PLAN.config["runtime"])
if workflow.output_settings.dryrun:
    logger.info("\n".join(f"estimate: {line}" for line in dry_run_estimate(PLAN)))
# Snakemake follows each chain of states by recursion, a few frames a job.
sys.setrecursionlimit(sys.getrecursionlimit() + 20 * PLAN.longest_chain())


def begin_run(log):
    """Claim the results folder and start the warm server.

    Ends the run with one line if another run has the folder, or this machine lacks what its jobs compute with.

    `log` are the files that are written about this run, Snakemake's own among them.
    """
    own = next((path for path in log if path.endswith(".snakemake.log")), None)
    with said_in_a_line():
        if workflow.local_exec:  # on a cluster the nodes say what they lack, in `preflight` before anything is trained
            jobs = [job for job in workflow.dag.needrun_jobs() if callable(job.rule.params.get("launch"))]
            own_environment = not workflow.deployment_settings.deployment_method
            check_machine(PLAN.config["runtime"]["device"], [job.params.spec for job in jobs], own_environment)
        session.begin(Path("results"), PLAN.config["runtime"], workflow.local_exec, own)
    # Snakemake's default rate limit has every finished job start a timer that goes on to the end, with a pass of the
    # scheduler a second. Any other limit that is asked for holds.
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    if limit and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None


def one_of(names):
    """A regular expression of these names; one that matches nothing where there are none."""
    return "|".join(names) or "(?!)"
