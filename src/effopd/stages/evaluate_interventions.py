"""Interventions: what is left of a trained model when parts of its update are taken away, scaled or put back.

Paper section 3, items 1, 3, 4, 6 and 8.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from effopd.artifacts.locks import exclusive
from effopd.artifacts.manifests import atomic_path, fingerprint_of, read_manifest, write_manifest
from effopd.artifacts.resume_log import Journal
from effopd.common.progress import Progress, say
from effopd.common.randomness import seed_of
from effopd.data.prompts import load_prompts
from effopd.dynamics.kept import Kept, model_checkpoint, read_whole
from effopd.dynamics.reconstruction import frobenius_norm, update
from effopd.dynamics.representation import representation_cosines
from effopd.dynamics.variant_weights import Norm, variant_parameter, weights_digest
from effopd.dynamics.variants import FINAL, Variant, variants
from effopd.engines.base import build_engine, longest_context
from effopd.evaluation.measure import Measurement, measure
from effopd.evaluation.statistics import bootstrap_interval
from effopd.models.lm_head import restricted
from effopd.models.models import dtype_of, load_frozen, load_model, load_tokenizer, special_ids
from effopd.models.weight_files import Parameter
from effopd.specs.dynamics import EvaluateInterventions
from effopd.specs.engines import Sampling
from effopd.tasks.base import build_task

KIND = "interventions"
CONFIDENCE = 0.95  # of the intervals in representation.parquet, over resampled completions
INTEGERS = dict.fromkeys(("layer", "first_layer", "last_layer"), "Int64")


def evaluate_interventions(
    spec: EvaluateInterventions,
    *,
    base: Path,
    teacher: Path,
    prompts: Path,
    states: Sequence[Path],
    decisions: Sequence[Path],
    out: Path,
    device: torch.device,
) -> None:
    """Evaluate every variant that spec.dynamics asks for of the kept states, against the model `base`.

    All variants meet the same problems with the same random numbers, those of `effopd evaluate`, in one warm engine;
    variants that are bitwise the same weights are evaluated once. A killed job goes on after its last finished variant.
    Writes the manifest `out`, and interventions.parquet, interventions.items.parquet and representation.parquet beside
    it (docs/dynamics.md).
    """
    started = time.time()
    kept, teacher_manifest = Kept.open(base, states, decisions), read_manifest(teacher, "model")
    prompts_manifest = read_manifest(prompts, "prompts")
    parents = {**kept.parents, "teacher": teacher_manifest.fingerprint, "prompts": prompts_manifest.fingerprint}
    fingerprint, work = fingerprint_of(KIND, spec.content, parents), out.with_name(".interventions")
    with exclusive(work):
        if out.is_file() and read_manifest(out, KIND).fingerprint == fingerprint:
            say("finished meanwhile")  # by a job that outlived its killed workflow, while this one waited
            return
        journal = Journal(work / "partial.jsonl", fingerprint)
        reconstruction = spec.dynamics.reconstruction
        rescaled = reconstruction is not None and reconstruction.norm == "teacher"
        teacher_norm = partial(_update_norm, kept, model_checkpoint(teacher_manifest)) if rescaled else None
        bench = _Bench(spec, kept, base, teacher, prompts, teacher_norm, device)
        layers = 1 + max((p.layer for p in bench.parameters if p.layer is not None), default=-1)
        own_head = any(p.module == "lm_head" for p in bench.parameters)
        planned = variants(spec.dynamics, list(kept.trained), layers, own_head)
        with closing(bench.engine):
            bench.evaluate(planned, journal)
            if "representation" in spec.dynamics.interventions:
                bench.compare_representations(journal)
        files = _write(planned, journal, out)
        cost = [row for part in journal.parts.values() for row in part["cost"]]
        write_manifest(out, kind=KIND, spec=spec.content, parents=parents, files=files, cost=cost, started=started)
        journal.discard()
    accuracy = journal.parts[FINAL]["row"]["accuracy"]
    say(f"done: {len(planned)} variants of a state with accuracy {accuracy:.3f}")


def _update_norm(kept: Kept, teacher: Any, parameter: Parameter) -> float:
    return frobenius_norm(update(kept.read(0, parameter), read_whole(teacher, parameter)))


class _Bench:
    """One warm engine in which variant after variant is measured on the same problems with the same draws."""

    def __init__(
        self,
        spec: EvaluateInterventions,
        kept: Kept,
        base: Path,
        teacher: Path,
        prompts: Path,
        teacher_norm: Norm | None,
        device: torch.device,
    ) -> None:
        settings = spec.evaluation
        self.kept, self.parameters, self.device = kept, kept.parameters(), device
        self.teacher_norm = teacher_norm
        self.base, self.teacher_folder, self.batch_size = base.parent, teacher.parent, settings.batch_size
        test = load_prompts(read_manifest(prompts, "prompts"), "test")
        problems = range(min(len(test), spec.dynamics.problems))
        self.rows = [i for i in problems for _ in range(spec.dynamics.samples)]
        self.asked = test.select(self.rows)
        self.seeds = [seed_of(settings.seed, "evaluation", position) for position in range(len(self.rows))]
        self.sampling = Sampling(settings.temperature, settings.max_new_tokens)
        self.task, self.tokenizer = build_task(spec.task), load_tokenizer(self.base)
        self.dtype = dtype_of(settings.precision or "float32")
        self.model = restricted(load_model(self.base, device, self.dtype), self.tokenizer)
        context = longest_context(self.asked.tokens, self.sampling.max_new_tokens)
        self.engine = build_engine(spec.engine, self.model, self.tokenizer, batch_size=self.batch_size, context=context)

    def build(self, variant: Variant) -> tuple[dict[str, torch.Tensor], float]:
        """A variant's weights, and how far they are from the base's."""
        weights, squares = {}, 0.0
        for parameter in self.parameters:
            built = variant_parameter(
                variant, parameter, self._read, final=self.kept.last, teacher_norm=self.teacher_norm
            )
            squares += frobenius_norm(update(self._read(0, parameter), built)) ** 2
            weights[parameter.name] = built.cpu()
        return weights, squares**0.5

    def _read(self, step: int, parameter: Parameter) -> torch.Tensor:
        return self.kept.read(step, parameter).to(self.device)

    def _state(self, step: int) -> dict[str, torch.Tensor]:
        return {parameter.name: self.kept.read(step, parameter) for parameter in self.parameters}

    def evaluate(self, planned: Sequence[Variant], journal: Journal) -> None:
        """Measure the variants that the journal does not hold yet, and write each down there."""
        teacher = load_frozen(self.teacher_folder, self.device)
        known = {part["row"]["weights"]: part for part in journal.parts.values() if "row" in part}
        left = [variant for variant in planned if variant.name not in journal.parts]
        progress = Progress("variants", len(planned), len(planned) - len(left))
        for done, variant in enumerate(left, len(planned) - len(left) + 1):
            weights, norm = self.build(variant)
            digest, cost = weights_digest(weights), []
            if digest not in known:
                self.engine.load_weights(weights)
                measured = self._measure(teacher)
                known[digest] = {"row": {**_outcome(measured), "weights": digest}, "items": _items(measured)}
                cost = measured.cost(KIND, variant.step)
            found = known[digest]
            row = {**found["row"], **variant.row(), "norm": norm}
            journal.add(variant.name, {"row": row, "items": found["items"], "cost": cost})
            progress.update(done, accuracy=row["accuracy"])

    def _measure(self, teacher: PreTrainedModel) -> Measurement:
        return measure(
            self.engine,
            self.task,
            self.tokenizer,
            self.asked,
            self.seeds,
            self.sampling,
            self.rows,
            student=self.model,
            teacher=teacher,
            batch_size=self.batch_size,
        )

    def compare_representations(self, journal: Journal) -> None:
        """Compare the hidden states of every kept state with the base's, on completions that the base generates."""
        if "representation" in journal.parts:
            return
        started = time.perf_counter()
        reference = load_model(self.base, self.device, self.dtype)
        self.engine.load_weights(self._state(0))
        rollouts = self.engine.generate(self.asked.tokens, self.seeds, self.sampling)
        lengths = np.array([len(completion) for completion in rollouts.completions], float)
        _, pad_id = special_ids(self.tokenizer)
        rows: list[dict[str, Any]] = []
        for step in self.kept.trained:
            self.engine.load_weights(self._state(step))
            sums = representation_cosines(reference, self.model, rollouts, pad_id=pad_id, batch_size=self.batch_size)
            low, high = bootstrap_interval(sums, lengths[None], CONFIDENCE)
            rows += [
                {"step": step, "layer": layer, "cosine": float(sums[layer].sum() / lengths.sum()),
                 "low": float(low[layer]), "high": float(high[layer]), "tokens": int(lengths.sum())}
                for layer in range(len(sums))
            ]  # fmt: skip
        say(f"representations of {len(self.kept.trained)} states: {time.perf_counter() - started:.1f} s")
        journal.add("representation", {"rows": rows, "cost": []})


def _outcome(measured: Measurement) -> dict[str, Any]:
    return {
        "accuracy": measured.accuracy,
        "reverse_kl": measured.reverse_kl,
        "completion_length": float(measured.items["tokens"].mean()),
        "finished": float(measured.items["finished"].mean()),
    }


def _items(measured: Measurement) -> dict[str, list[Any]]:
    """The per-item outcomes by column, as JSON knows them."""
    return {str(name): column.tolist() for name, column in measured.items.items()}


def _write(planned: Sequence[Variant], journal: Journal, out: Path) -> dict[str, Path]:
    """Write the tables, in the order of the plan, whatever order they were evaluated in."""
    parts = [journal.parts[variant.name] for variant in planned]
    table = pd.DataFrame([part["row"] for part in parts]).astype(INTEGERS)
    final = table.loc[table["variant"] == FINAL, "norm"].iloc[0]
    table["relative_norm"] = table["norm"] / final if final else np.nan
    first = ["analysis", "variant", "step", "part", "amount", *INTEGERS, "norm", "relative_norm"]
    table["part"], table["amount"] = table["part"].astype("string"), table["amount"].astype(float)
    items = [pd.DataFrame({"variant": part["row"]["variant"], **part["items"]}) for part in parts]
    tables = {
        "interventions": table[first + [name for name in table.columns if name not in first]],
        "interventions.items": pd.concat(items, ignore_index=True),
    }
    if "representation" in journal.parts:
        tables["representation"] = pd.DataFrame(journal.parts["representation"]["rows"])
    else:
        out.with_name("representation.parquet").unlink(missing_ok=True)  # of other settings
    files = {}
    for name, found in tables.items():
        files[f"{name}.parquet"] = out.with_name(f"{name}.parquet")
        with atomic_path(files[f"{name}.parquet"]) as temporary:
            found.to_parquet(temporary, index=False)
    return files
