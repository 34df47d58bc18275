"""The report's section on sample completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from effopd.artifacts.manifests import read_manifest
from effopd.common.formatting import one_line, printable, shortened
from effopd.evaluation.sample_files import Sample, read_samples
from effopd.report.labels import label_of
from effopd.specs.reports import SampledEvaluation

# Characters that the page shows of a text: in a line, and opened. Whole texts are in the artifacts.
LINE, WHOLE = 90, 4000


def samples_section(
    config: dict[str, Any], evaluations: Sequence[SampledEvaluation], results: Path
) -> list[dict[str, Any]]:
    """For each problem that samples were kept of, what is shown of it and a row for each evaluation; as plain text."""
    problems: dict[tuple[int, str], dict[str, Any]] = {}
    for evaluation in evaluations:
        for sample in _kept(evaluation, results):
            problem = problems.setdefault((sample.row, sample.problem), _problem(sample))
            problem["rows"].append(_row(config, evaluation, sample))
    return [problems[place] for place in sorted(problems)]


def _kept(evaluation: SampledEvaluation, results: Path) -> Iterator[Sample]:
    name = evaluation.run
    place = name if name.startswith("models/") else f"{name}/seed{evaluation.seed}/{evaluation.step}"
    yield from read_samples(read_manifest(results / f"evaluation/{place}.json", "evaluation")) or ()


def _problem(sample: Sample) -> dict[str, Any]:
    return {
        "row": sample.row,
        "title": one_line(sample.problem, LINE),
        "text": shortened(printable(sample.problem), WHOLE),
        "answer": one_line(sample.answer, LINE),
        "rows": [],
    }


def _row(config: dict[str, Any], evaluation: SampledEvaluation, sample: Sample) -> dict[str, Any]:
    """A row of a problem's table; `text` is None if `start` is all of the completion."""
    start = one_line(sample.completion, LINE)
    return {
        "name": label_of(config, evaluation.run),
        "step": "" if evaluation.run.startswith("models/") else evaluation.step,
        "verdict": sample.verdict,
        "mark": {0.0: "wrong", 1.0: "right"}.get(sample.reward, "partly"),  # its color
        "reason": one_line(sample.reason, LINE),
        "tokens": f"{sample.tokens:,}",
        "start": start,
        "text": None if start == sample.completion else shortened(printable(sample.completion), WHOLE),
    }
