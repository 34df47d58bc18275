"""The wheel by itself, in an environment that holds what it declares: callback, `analyze` and `extrapolate` work there."""

import json
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import load_file

from effopd.common.extras import EXTRAS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROGRAM = ROOT / "tests/helpers/core_program.py"
BROUGHT = {
    "huggingface-hub",
    "jinja2",
    "pydantic",
    "pyyaml",
    "requests",
    "sympy",
}  # of the extras, what torch and transformers need
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("installed_core")]


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The package as it is published, built outside the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, folder)
    (built,) = folder.glob("*.whl")
    return built


def linked(python, wheel, folder):
    """Install what the wheel declares by linking the files of this environment's packages; pip checks the ranges."""
    (packages,) = folder.glob("venv/lib/python*/site-packages")
    for distribution in needed(PROJECT["dependencies"]):
        for file in distribution.files:
            if file.parts[0] != "..":  # a program of another package
                target = packages / file
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    target.hardlink_to(distribution.locate_file(file))
                except OSError:  # another file system
                    shutil.copy2(distribution.locate_file(file), target)
    run(python, "-m", "pip", "install", "--quiet", "--no-index", wheel)


def needed(requirements):
    """The installed distributions that these requirements need, directly or not."""
    found, pending = {}, [(text, "") for text in requirements]
    while pending:
        text, extra = pending.pop()
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            distribution = metadata.distribution(requirement.name)
            for key in [(canonicalize_name(requirement.name), wanted) for wanted in ("", *requirement.extras)]:
                if key not in found:
                    found[key] = distribution
                    pending += [(inner, key[1]) for inner in distribution.requires or ()]
    return [distribution for (_, extra), distribution in found.items() if not extra]


def locked(python, wheel, folder):
    install(python, wheel, folder, (ROOT / "envs/requirements.txt").read_text())


def lower_ends(python, wheel, folder):
    ranges = map(Requirement, PROJECT["dependencies"])
    lowest = [(r.name, next(s.version for s in r.specifier if s.operator == ">=")) for r in ranges]
    install(python, wheel, folder, "".join(f"{name}=={version}\n" for name, version in lowest))


def install(python, wheel, folder, constraints):
    (folder / "constraints.txt").write_text(constraints)
    run(python, "-m", "pip", "install", "--quiet", "-c", folder / "constraints.txt", wheel)


@pytest.mark.parametrize(
    "installed",
    [
        linked,
        pytest.param(locked, marks=pytest.mark.exhaustive),
        # 6 GB: of the oldest torch that serves, there are only builds for GPUs
        pytest.param(lower_ends, marks=pytest.mark.exhaustive),
    ],
)
def test_the_core_alone_extrapolates_and_analyses(installed, wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python, effopd = tmp_path / "venv/bin/python", tmp_path / "venv/bin/effopd"
    installed(python, wheel, tmp_path)
    run(python, "-m", "pip", "check")
    listed = json.loads(run(python, "-m", "pip", "list", "--format", "json"))
    present = {canonicalize_name(entry["name"]) for entry in listed}
    core, *optional = (
        {canonicalize_name(Requirement(text).name) for text in texts}
        for texts in (PROJECT["dependencies"], *(PROJECT["optional-dependencies"][name] for name in EXTRAS))
    )
    assert core < present
    assert not (set.union(*optional) - core - BROUGHT) & present

    work = tmp_path / "work"
    run(python, "-I", PROGRAM, work, cwd=tmp_path)
    assert "analyze" in run(effopd, "--help")
    trained = [argument for step in range(1, 7) for argument in ("--trained", work / f"step-{step}")]
    said = run(effopd, "analyze", "--base", work / "base", *trained, "--out", work / "analysis")
    assert "step 6 against the base, by module type" in said
    norms = pd.read_parquet(work / "analysis/norms.parquet").query("parameter == 'model.norm.weight'")
    lengths = norms.set_index("step")["frobenius_norm"]
    assert [lengths[step] / lengths[1] for step in range(1, 7)] == pytest.approx([1, 2, 3, 4, 5, 6], rel=1e-3)
    assert pd.read_parquet(work / "analysis/trajectory.parquet")["tsne1"].notna().all()
    ends = ("--anchor", work / "base", "--current", work / "step-1", "--out", work / "further")
    run(effopd, "extrapolate", *ends, "--coefficient", "2", "--parameters", "all")
    found, expected = (load_file(work / folder / "model.safetensors") for folder in ("further", "step-3"))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)

    arguments = ("compare", work, work)
    refused = subprocess.run([effopd, *arguments], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: `effopd compare` needs pandas, which is not installed here. It comes with the extra `workflow`: "
        "pip install 'effopd[workflow]'\n"
    )
    shutil.rmtree(tmp_path / "venv")
