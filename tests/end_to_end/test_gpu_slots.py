"""The profile for one machine with several GPUs: jobs share them out among themselves."""

import re
import time

import pytest

from workflow_runs import ROOT, Workflow, environments

pytestmark = pytest.mark.slow


def test_jobs_have_a_gpu_each_and_make_the_same_artifacts(undisturbed, tmp_path):
    """Two GPUs that are only stated: jobs claim them, and compute on the CPU."""
    workflow = Workflow(
        tmp_path,
        environment={"EFFOPD_GPUS": "2", "TMPDIR": str(tmp_path)},
        options=("--profile", str(ROOT / "config/profiles/local"), "--cores", "4", "--resources", "gpu=2"),
    )
    workflow.config["seeds"] = [0]
    workflow.config["runtime"]["device"] = "auto"
    seen = set()
    with workflow.started() as process:
        while process.poll() is None:
            jobs, still = environments(tmp_path), environments(tmp_path)
            gpus = [
                jobs[pid].get("CUDA_VISIBLE_DEVICES", "none") for pid in jobs if pid in still
            ]  # of jobs at one time
            assert len(set(gpus)) == len(gpus), f"two jobs at once with one GPU, or without: {gpus}"
            seen |= set(gpus)
            time.sleep(0.05)
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert seen == {"0", "1"}
    mine, theirs = workflow.contents(), undisturbed.contents()
    compared = [name for name in mine if re.search(r"results/(data|models|runs|evaluation)/", name)]
    assert {name: mine[name] for name in compared} == {name: theirs[name] for name in compared}
