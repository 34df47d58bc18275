"""How far to go along the last update, and what judges it (docs/extrapolation.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from effopd.specs.section import Section

LINE_BY_MODULE = "line_by_module"  # a line search that goes on with coefficients of each module's own


@dataclass(frozen=True)
class SearchSettings(Section):
    """Which candidates are tried, and when one displaces the best so far."""

    search: str  # of search.search, or LINE_BY_MODULE
    coefficients: Sequence[float]
    accept_ties: bool
    options: Mapping[str, Any] = field(default_factory=dict)  # of a search that another package adds

    @property
    def refines(self) -> bool:
        """Whether a line search goes on by module."""
        return self.search == LINE_BY_MODULE


@dataclass(frozen=True, kw_only=True)
class RaySettings(SearchSettings):
    """A search, and the ray that it is along."""

    parameters: str  # those that move
    anchor: str = "accepted"  # from which of the previous trigger's weights the update is measured; or "raw"


@dataclass(frozen=True)
class DifficultySettings(Section):
    """Which problems a gate chooses from."""

    min: float | None = None
    max: float | None = None


@dataclass(frozen=True)
class GateSettings(Section):
    """What judges a candidate, on what."""

    metric: str
    examples: int
    source: str  # train, validation or rollouts
    difficulty: DifficultySettings
    samples: int
    paired: bool
    options: Mapping[str, Any] = field(default_factory=dict)  # of a gate that another package adds


@dataclass(frozen=True, kw_only=True)
class ExtrapolationSettings(RaySettings):
    """All of it."""

    gate: GateSettings
