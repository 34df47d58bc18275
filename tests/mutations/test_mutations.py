"""The tables of mutation testing fit the sources that they speak of (docs/mutation_testing.md)."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BY_HAND, EQUIVALENT = (
    [(module, entry) for module, entries in yaml.safe_load(path.read_text()).items() for entry in entries]
    for path in (ROOT / "tests/mutations/by_hand.yaml", ROOT / "tests/mutations/equivalent.yaml")
)


def source_of(module: str) -> str:
    return (ROOT / f"src/effopd/{module.replace('.', '/')}.py").read_text()


@pytest.mark.parametrize(
    ("module", "fault"), BY_HAND, ids=lambda value: value["name"] if isinstance(value, dict) else value
)
def test_a_fault_by_hand_has_one_place_and_tests_that_exist(module, fault):
    assert source_of(module).count(fault["was"]) == 1
    compile(source_of(module).replace(fault["was"], fault["now"]), module, "exec")
    for test in fault["tests"]:
        file, function = test.split("::")
        assert f"\ndef {function}(" in next(ROOT.glob(f"tests/*/test_{file}.py")).read_text()


def test_an_equivalent_mutant_is_of_code_that_is_there_and_says_why():
    assert EQUIVALENT
    for module, entry in EQUIVALENT:
        assert entry.keys() == {"was", "now", "why"}
        lines = " ".join(line.strip() for line in source_of(module).splitlines())
        assert entry["was"] in lines, f"{module}: {entry['was']}"
        assert entry["why"].endswith(".")
