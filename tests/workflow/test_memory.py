"""The estimate of a job's memory on a CPU against what real jobs take, each in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks/memory.py"
SHAPE = {
    "hidden": 256,
    "intermediate": 768,
    "layers": 6,
    "heads": 4,
    "kv-heads": 2,
    "head-dim": 64,
    "vocabulary": 32000,
}
STAGES = ("opd", "every_step", "grpo", "sft", "evaluate", "candidates")


@pytest.mark.slow
def test_the_estimate_is_within_a_third_of_the_measured_peak():
    shape = [word for name, value in SHAPE.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(BENCHMARK), *shape, "--stages", *STAGES]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ratios = dict(re.findall(r"^(\w+) .* GB +([0-9.]+) +[0-9.]+$", said, re.MULTILINE))
    assert ratios.keys() == set(STAGES), said
    assert all(1 / 1.3 <= float(ratio) <= 1.3 for ratio in ratios.values()), said
