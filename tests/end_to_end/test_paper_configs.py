"""Dry runs of the paper's configurations, which need no network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workflow_runs import ROOT

pytestmark = pytest.mark.slow
NOWHERE = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


def dry_run(folder, row, *overlays):
    names = ("config.yaml", "paper/math.yaml", f"paper/{row}.yaml", *overlays)
    command = [
        str(Path(sys.executable).with_name("snakemake")),
        *("--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder), "--cores", "1", "--dry-run"),
        *("--configfile", *(str(ROOT / "config" / name) for name in names)),
    ]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **NOWHERE})


def jobs_in(output):
    """The counts of a dry run, such as "2 fetch_model"."""
    line = next(line for line in output.splitlines() if " jobs: " in line)
    return set(line.split(" jobs: ")[1].split(", "))


def test_a_dry_run_counts_jobs_gpu_hours_and_disk(tmp_path):
    found = dry_run(tmp_path, "justrl_1.5b")
    assert found.returncode == 0, found.stderr
    assert "estimate: 85 GPU hours, 349.2 GB of disk for the whole experiment" in found.stderr
    assert {
        "2 fetch_model",
        "1 make_data",
        "1 preflight",
        "14 train_segment",
        "14 evaluate",
        "1 make_source_table",
    } <= jobs_in(found.stderr)


def test_gpqa_is_one_more_task_to_evaluate_on(tmp_path):
    found = dry_run(tmp_path, "justrl_1.5b", "paper/gpqa.yaml")
    assert found.returncode == 0, found.stderr
    assert {
        "2 make_data",
        "4 tokenize_prompts",
        "2 evaluate_on_task",
        "2 evaluate_model_on_task",
        "14 evaluate",
    } <= jobs_in(found.stderr)


def test_a_row_whose_teacher_is_to_be_supplied_is_refused_with_one_line(tmp_path):
    found = dry_run(tmp_path, "qwen3_14b_grpo")
    assert found.returncode == 1
    lines = [line for line in found.stderr.splitlines() if not line.startswith("Using workflow specific profile")]
    assert len(lines) == 1
    assert "the model folder teachers/qwen3_14b_grpo does not exist" in lines[0]
