"""The profiles know every rule that needs a GPU, and no rule that does not exist."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PARENTS = {  # rules by name, with the one that each is made of
    name: parent
    for path in (ROOT / "workflow/rules").glob("*.smk")
    for parent, name in re.findall(r"^(?:use rule (\w+) as |rule )(\w+)", path.read_text(), re.MULTILINE)
}
BASES = {"job", "model_job", "results_job"}
RULES = PARENTS.keys() - BASES


def has_model(rule):
    return rule == "model_job" or (rule in PARENTS and has_model(PARENTS[rule]))


WITH_MODEL = {rule for rule in RULES if has_model(rule)}


def resources_in(profile):
    return yaml.safe_load((ROOT / f"config/profiles/{profile}/config.yaml").read_text())["set-resources"]


def test_the_rules_are_found():
    assert {"train_segment", "update_policy", "evaluate", "make_tables"} <= RULES
    assert {"train_segment", "update_policy", "evaluate"} <= WITH_MODEL
    assert not {"make_tables", "select_candidate"} & WITH_MODEL


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_every_rule_with_a_model_has_its_gpus(profile):
    stated = resources_in(profile)
    assert not WITH_MODEL - stated.keys()
    assert not stated.keys() - RULES
    for rule in WITH_MODEL:
        assert stated[rule]["gpu"] == "threads", rule


def test_every_rule_with_a_model_has_a_partition_memory_and_time_on_slurm():
    for rule in WITH_MODEL:
        assert resources_in("slurm")[rule].keys() >= {"slurm_partition", "cpus_per_task", "mem_mb", "runtime"}, rule
