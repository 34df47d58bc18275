"""Handing weights to the rest of the world: a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from effopd.models import dtype_of, load_tokenizer, model_config, save_model
from effopd.runtime.artifacts import Manifest
from effopd.runtime.errors import UserError
from effopd.runtime.inventory import manifests_below
from effopd.states import Point


def export_state(results: Path, run: str, seed: int, step: int, out: Path, dtype: str = "float32") -> None:
    """Write the weights from which `run` went on after `step` as a model folder, rounded to `dtype`.

    Of a prediction, those that it predicted from the states up to `step`. Raises UserError where it cannot.
    """
    folder, predicted = results / f"runs/{run}/seed{seed}", results / f"predictions/{run}/seed{seed}"
    state, ledger = folder / f"state/{step}/state.json", folder / f"extrapolation/{step}/ledger.json"
    if predicted.is_dir():
        state = predicted / f"{step}/prediction.json"
    if not state.is_file():
        there = sorted(int(p.parent.name) for p in state.parents[1].glob(f"*/{state.name}"))
        raise UserError(f"{state} does not exist. Kept steps of this run and seed: {there or 'none'}.")
    if out.exists():
        raise UserError(f"{out} exists already. Choose another folder.")
    point = Point.open(state, ledger if ledger.is_file() else None)
    base = _base(results, point.manifest)
    save_model(model_config(base), point.weights(), load_tokenizer(base), out, dtype_of(dtype))


def _base(results: Path, manifest: Manifest) -> Path:
    """The folder of the model that a state was trained from, or whose runs a prediction is from."""
    if manifest.kind == "state":
        return results / "models" / str(manifest.spec["training"]["student"])
    for model in manifests_below(results / "models", "*/manifest.json"):
        if model.fingerprint == manifest.parents["base"]:
            return model.path.parent
    raise UserError(f"the model that {manifest.path} was predicted with is not in {results / 'models'} any more.")
