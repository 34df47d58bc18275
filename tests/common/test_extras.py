"""What is imported is declared, and a command that lacks an extra says so in one line."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from effopd.common.extras import EXTRAS, missing_extra

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_SNAKEMAKE = {"snakemake-interface-common", "snakemake-interface-logger-plugins"}  # it brings them
WITH_ANOTHER = {"tokenizers", "urllib3"}  # parts of transformers' and requests' own interfaces
BY_TWO = {("accelerate", "trl")}  # commands miss it for `gguf`; if there is TRL, so it is
NOT_IMPORTED = {"snakemake-executor-plugin-slurm"}


def declared(requirements):
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def distribution(module):
    return {"sklearn": "scikit-learn", "yaml": "pyyaml"}.get(module, canonicalize_name(module))


def imported():
    """The packages of other projects that import statements in src name, those inside functions included."""
    names = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"effopd"}


def test_every_import_is_of_the_core_or_of_one_extra():
    of_extras = [module for extra, modules in EXTRAS.items() for module in modules if (module, extra) not in BY_TWO]
    assert len(of_extras) == len(set(of_extras))
    core = declared(PROJECT["dependencies"])
    unknown = {module for module in imported() - set(of_extras) - WITH_ANOTHER if distribution(module) not in core}
    assert not unknown


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_extras_are_those_of_the_project(extra):
    named = {distribution(module) for module in EXTRAS[extra]} - OF_SNAKEMAKE
    core = declared(PROJECT["dependencies"])
    assert named == declared(PROJECT["optional-dependencies"][extra]) - NOT_IMPORTED - core


def test_the_lock_is_within_the_ranges():
    lines = [line for name in ("", "-dev") for line in (ROOT / f"envs/requirements{name}.txt").read_text().splitlines()]
    locked = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}
    texts = PROJECT["dependencies"] + [
        text for name in ("workflow", "trl", "gguf", "dev") for text in PROJECT["optional-dependencies"][name]
    ]
    wanted = [r for r in map(Requirement, texts) if r.name not in ("effopd", "pre-commit")]  # which nothing here runs
    assert not [str(r) for r in wanted if not r.specifier.contains(locked[canonicalize_name(r.name)])]


@pytest.mark.parametrize(
    ("module", "extra"), sorted({(m, extra) for extra, modules in EXTRAS.items() for m in modules} - BY_TWO)
)
def test_a_missing_module_is_named_with_its_extra(module, extra):
    line = missing_extra(ModuleNotFoundError(name=f"{module}.inner"), "effopd verb")
    assert line == (
        f"`effopd verb` needs {module}, which is not installed here. It comes with the extra `{extra}`: "
        f"pip install 'effopd[{extra}]'"
    )


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("x"), ModuleNotFoundError(name="effopd.nowhere"), ModuleNotFoundError(name="pandasx")]
)
def test_other_missing_modules_are_faults(error):
    assert missing_extra(error, "effopd verb") is None


# Commands, and the package that each misses first if there is the core alone.
COMMANDS = {
    "make-tables": "pydantic",
    "make-data": "pydantic",
    "plot-figure": "pydantic",
    "write-report": "pydantic",
    "write-explorer": "pydantic",
    "compare": "pandas",
    "train-segment": "pydantic",
    "pretrain-model": "pydantic",
    "evaluate": "pydantic",
    "predict-weights": "pydantic",
}
BLOCKED = """
import os, sys
import torch, transformers
from effopd.common.extras import EXTRAS
from effopd.cli.commands import main, run_verb

transformers.CONFIG_MAPPING, transformers.PreTrainedModel  # the core has these, and all that they import
missing = {module for modules in EXTRAS.values() for module in modules}
missing -= {"jinja2", "yaml", "sympy", "huggingface_hub", "requests"}  # which torch and transformers bring

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in [name for name in sys.modules if name.partition(".")[0] in missing]:
    del sys.modules[name]
sys.meta_path.insert(0, Blocked())
for verb in sys.argv[1:]:
    options = [o for o in main.commands[verb].params if o.required]
    words = [[o.opts[0]] * o.opts[0].startswith("-") + ["{}" if o.name == "spec" else "nowhere"] for o in options]
    if os.fork() == 0:
        os._exit(run_verb([verb, *sum(words, [])]))
    print(verb, os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def test_commands_without_their_extra_say_so_in_one_line(tmp_path):
    done = subprocess.run([sys.executable, "-c", BLOCKED, *COMMANDS], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == [word for verb in COMMANDS for word in (verb, "2")], done.stderr
    assert done.stderr.splitlines() == [
        f"error: {missing_extra(ModuleNotFoundError(name=module), f'effopd {verb}')}"
        for verb, module in COMMANDS.items()
    ]
