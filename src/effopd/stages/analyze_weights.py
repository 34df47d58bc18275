"""What training did to the weights of a run or a model, from the weights alone (paper section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from effopd.common.progress import say
from effopd.dynamics.analysis import analyze
from effopd.dynamics.kept import Kept
from effopd.specs.dynamics import AnalyzeWeights


def analyze_weights(
    spec: AnalyzeWeights,
    *,
    base: Path,
    states: Sequence[Path],
    decisions: Sequence[Path],
    out: Path,
    device: torch.device,
) -> None:
    """Analyze all kept states against the model `base` and write the manifest `out`, its tables beside it.

    A model among the states stands for its checkpoints and itself.
    """
    kept = Kept.open(base, states, decisions)
    work = out.with_name(".weights")
    tables = analyze(kept.base, kept.trained, out, work, spec=dict(spec.content), parents=kept.parents, device=device)
    norm = sum(row["frobenius_norm"] ** 2 for row in tables["norms"].to_pylist() if row["step"] == kept.last) ** 0.5
    say(f"done: {len(kept.trained)} kept states, the last one {norm:.4g} from the base")
