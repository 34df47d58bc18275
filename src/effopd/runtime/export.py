"""Handing a state to the rest of the world: a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from effopd.models import dtype_of, load_tokenizer, model_config, save_model
from effopd.runtime.artifacts import read_json
from effopd.runtime.errors import UserError
from effopd.states import Point


def export_state(results: Path, run: str, seed: int, step: int, out: Path, dtype: str = "float32") -> None:
    """Write the weights from which `run` went on after `step` as a model folder, rounded to `dtype`.

    Raises UserError where it cannot.
    """
    folder = results / "runs" / run / f"seed{seed}"
    state, ledger = folder / f"state/{step}/state.json", folder / f"extrapolation/{step}/ledger.json"
    if not state.is_file():
        there = sorted(int(p.parent.name) for p in folder.glob("state/*/state.json"))
        raise UserError(f"{state} does not exist. Kept steps of this run and seed: {there or 'none'}.")
    if out.exists():
        raise UserError(f"{out} exists already. Choose another folder.")
    point = Point.open(state, ledger if ledger.is_file() else None)
    student = read_json(state)["spec"]["training"]["student"]
    base = results / "models" / student
    save_model(model_config(base), point.weights(), load_tokenizer(base), out, dtype_of(dtype))
