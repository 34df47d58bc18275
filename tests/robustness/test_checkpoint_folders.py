"""Other people's model folders: each command gives the right result or one clear line, and changes nothing of theirs."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from _pytest.mark import ParameterSet
from safetensors.torch import load_file

from commands import Ending, effopd, untouched
from damaged_folders import ALL, DAMAGES, Damage
from effopd.artifacts.manifests import write_manifest
from effopd.common.errors import UserError
from effopd.models.models import load_model, save_model, save_tensors, weights_of
from tiny_checkpoints import tiny
from tiny_models import byte_tokenizer

for _module in (
    "dynamics.analysis", "dynamics.summary", "models.extrapolated_files", "results.export", "stages.fetch_model",
):  # fmt: skip
    importlib.import_module(f"effopd.{_module}")  # what the commands import: once, before any fork

CPU = torch.device("cpu")
COEFFICIENT = 2.0
SELDOM = 18


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, one of them also in shards, and the results of a run with the first as its student."""
    root = tmp_path_factory.mktemp("originals")
    for name, seed in (("whole", 0), ("other", 1)):
        model = tiny(seed)
        save_model(model.config, weights_of(model), byte_tokenizer(), root / name)
    shutil.copytree(root / "whole", root / "sharded")
    (root / "sharded/model.safetensors").unlink()
    tiny(0).save_pretrained(root / "sharded", max_shard_size="5KB")
    state = root / "results/runs/opd/seed0/state/1"
    save_tensors(state / "weights.safetensors", weights_of(tiny(1)))
    write_manifest(
        state / "state.json",
        kind="state",
        spec={"training": {"student": "tiny"}},
        parents={},
        files={"weights.safetensors": state / "weights.safetensors"},
        result={"step": 1},
        started=0.0,
    )
    return root


@pytest.fixture(scope="module")
def right(originals: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {name: load_file(originals / name / "model.safetensors") for name in ("whole", "other")}


def pairs() -> Iterator[ParameterSet]:
    """Every damage with every command; those that are not marked as slow are spread over all of them."""
    for row, damage in enumerate(DAMAGES):
        for column, command in enumerate(ALL):
            by_default = (row + column) % (3 if command == "load" else SELDOM) == 0
            yield pytest.param(
                damage,
                command,
                id=f"{damage.name}-{command}",
                marks=[] if by_default else [pytest.mark.slow, pytest.mark.exhaustive],
            )


@pytest.mark.parametrize(("damage", "command"), pairs())
def test_damaged_folders(damage: Damage, command: str, originals, right, tmp_path):
    folder, other, out = tmp_path / "models/mine", tmp_path / "models/other", tmp_path / "out/made"
    shutil.copytree(originals / ("sharded" if damage.sharded else "whole"), folder)
    shutil.copytree(originals / "other", other)
    (tmp_path / "models/outside").mkdir()
    (tmp_path / "models/outside/model.safetensors").write_bytes(b"precious")
    damage.change(folder)
    with untouched(tmp_path / "models"):
        ending = run(command, folder, other, out, originals, tmp_path)
        if command in damage.refusing:
            assert damage.words in ending.refused()
        elif command in damage.fine:
            ending.succeeded()
        else:
            ending.right_or_refused()
    if ending.status == 0:
        check_result(command, damage, out, right)
    elif command.startswith(("extrapolate", "export")):
        assert not out.exists()
    assert [path.name for path in tmp_path.rglob("*.part")] == []


def run(command: str, folder: Path, other: Path, out: Path, originals: Path, root: Path) -> Ending:
    """The ending of a command that reads `folder` in the role that its name says."""
    match command:
        case "load":
            try:
                model = load_model(folder, CPU)
            except UserError as error:
                return Ending(("load",), 2, f"error: {error}".replace("\n", " "))
            save_tensors(out / "model.safetensors", weights_of(model))
            return Ending(("load",), 0, "")
        case "fetch":
            model = {"kind": "pretrained", "path": str(folder), "dtype": "float32", "trust_remote_code": False}
            spec = json.dumps({"model": model, "code": "x"})
            return effopd("fetch-model", "--spec", spec, "--out", out / "manifest.json", folder=root)
        case "analyze_base":
            return effopd("analyze", "--base", folder, "--trained", other, "--out", out, folder=root)
        case "analyze_trained":
            return effopd("analyze", "--base", other, "--trained", folder, "--out", out, folder=root)
        case "extrapolate_anchor":
            return extrapolate(folder, other, out)
        case "extrapolate_current":
            return extrapolate(other, folder, out)
        case "export":
            results = root / "models/results"
            shutil.copytree(originals / "results", results)
            (results / "models").mkdir()
            folder.rename(results / "models/tiny")
            with untouched(results):
                ending = effopd("export", "--run", "opd", "--seed", "0", "--step", "1", "--results", results,
                                "--out", out, folder=root)  # fmt: skip
            (results / "models/tiny").rename(folder)
            shutil.rmtree(results)
            return ending
    raise AssertionError(command)


def extrapolate(anchor: Path, current: Path, out: Path) -> Ending:
    options = ("--anchor", anchor, "--current", current, "--out", out, "--coefficient", COEFFICIENT)
    return effopd("extrapolate", *map(str, options), "--parameters", "all", folder=anchor.parent.parent)


def check_result(command: str, damage: Damage, out: Path, right: dict[str, dict[str, torch.Tensor]]) -> None:
    """That what was made is what the folder without its damage gives."""
    if "value_" in damage.name:
        return  # loaded as they are: preflight refuses them
    tolerance = 5e-2 if "all_" in damage.name else 0
    expected = right["other" if command == "export" else "whole"]
    match command:
        case "load" | "export":
            found = load_file(out / "model.safetensors")
        case "fetch":
            assert json.loads((out / "manifest.json").read_text())["result"]["architecture"] == "llama"
            found = weights_of(load_model(out, CPU))
        case "analyze_base" | "analyze_trained":
            assert (out / "norms.parquet").is_file()
            return
        case _:
            anchor, current = ("whole", "other") if command == "extrapolate_anchor" else ("other", "whole")
            found = {}
            for file in out.glob("*.safetensors"):
                found |= load_file(file)
            expected = {n: x + COEFFICIENT * (x - right[anchor][n]) for n, x in right[current].items()}
            found = {name: tensor for name, tensor in found.items() if name in expected}
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.float(), expected[name], atol=tolerance, rtol=tolerance)
