"""How a model of the workflow is held if it is not trained. Light to import: estimates ask it, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def frozen_dtype(model: Mapping[str, Any]) -> str:
    """The type by a model's section in `models`: its `dtype`; the `precision` of one that the workflow trains.

    float32 of a folder that the configuration says nothing of (`model` is empty).
    """
    return str(model.get("dtype", model.get("precision", "float32")))
