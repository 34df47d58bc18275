"""Handing weights to the rest of the world: a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from effopd.artifacts.folders import new_folder
from effopd.artifacts.manifest_format import is_plain
from effopd.artifacts.manifests import Manifest, held_at
from effopd.artifacts.own_files import numbered
from effopd.common.errors import UserError
from effopd.models.models import dtype_of, load_tokenizer, model_config, save_model
from effopd.results.expected_artifacts import manifests_below
from effopd.training.checkpoints import Point


def export_state(results: Path, run: str, seed: int, step: int, out: Path, dtype: str = "float32") -> None:
    """Write the weights from which `run` went on after `step` as a model folder, rounded to `dtype`.

    Of a prediction, those that it predicted from the states up to `step`. Raises UserError if it cannot.
    """
    if not is_plain(run):
        raise UserError(f"{run!r} is not the name of a run. Take one from `effopd status`.")
    runs, states = results / f"runs/{run}", "state/{}/state.json"
    if (results / f"predictions/{run}").is_dir():
        runs, states = results / f"predictions/{run}", "{}/prediction.json"
    folder = runs / f"seed{seed}"
    state, decision = folder / states.format(step), held_at(folder / f"extrapolation/{step}/decision.json")
    if not state.is_file():
        steps = [*numbered(folder / states.split("{")[0], states.split("/")[-1])]
        others = {path.relative_to(runs).parts[0] for path in runs.glob(f"seed*/{states.format('*')}")}
        there = str(steps) if steps else f"none. Of others: {', '.join(sorted(others)) or 'none'}"
        raise UserError(f"{state} does not exist. Kept steps of this run and seed: {there}.")
    point = Point.open(state, decision if decision.is_file() else None)
    base = _base(results, point.manifest)
    with new_folder(out) as folder:
        save_model(model_config(base), point.weights(), load_tokenizer(base), folder, dtype_of(dtype))


def _base(results: Path, manifest: Manifest) -> Path:
    """The folder of the model that a state was trained from, or whose runs a prediction is from."""
    if manifest.kind == "state":
        student = str(manifest.spec["training"]["student"])
        if not is_plain(student):
            raise UserError(f"{manifest.path} names a model {student!r}, which is no plain name. It is not exported.")
        return results / "models" / student
    for model in manifests_below(results / "models", "*/manifest.json"):
        if model.fingerprint == manifest.parents["base"]:
            return model.path.parent
    raise UserError(
        f"the model that {manifest.path} was predicted with is not in {results / 'models'} any more. Run the workflow "
        "again, which makes what is missing or out of date, and export then."
    )
