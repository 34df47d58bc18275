"""What an experiment takes: the sum of its parts.

An analytic model, right to a factor of two or so: arithmetic at a share of the GPU's peak, decoding bound by what it
reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from effopd.common.formatting import aligned, size_text
from effopd.workflow.estimates import parts
from effopd.workflow.estimates.architecture import Architecture, architecture_of
from effopd.workflow.estimates.parts import STAGES, Part
from effopd.workflow.job_specs import Plan

SMALLEST = 1e8  # parameters below which starting jobs takes longer than arithmetic, and no time is given
ARITHMETIC_VOCABULARY = 16


@dataclass(frozen=True)
class Estimate:
    """The parts that could be estimated, with all their seeds, and why others could not."""

    parts: list[Part]
    timed: bool  # whether the models are large enough for the times to mean something
    notes: list[str]

    @property
    def gpu_hours(self) -> float:
        return sum(part.gpu_hours for part in self.parts)

    @property
    def disk(self) -> float:
        return sum(part.disk for part in self.parts)

    def line(self) -> str:
        """The estimate in one line."""
        found = [f"{self.gpu_hours:,.0f} GPU hours"] if self.timed and self.parts else []
        found += [f"{size_text(self.disk)} of disk"] if self.parts else []
        return ", ".join(found) or "nothing can be said before the models are there"

    def table(self) -> list[str]:
        """A line a part: GPU hours by stage and in all; disk; memory of each GPU at an update, and of one that judges.

        A part of which there is nothing to say has none.
        """
        rows: list[list[str]] = [["GPU hours of", *STAGES, "together", "disk", "GPUs", "of each", "judging"]]
        for part in self.parts:
            hours = [f"{part.gpu_seconds[stage] / 3600:,.1f}" if stage in part.gpu_seconds else "" for stage in STAGES]
            times = [*hours, f"{part.gpu_hours:,.0f}"] if self.timed else [""] * (1 + len(STAGES))
            sizes = ["" if size is None else size_text(size) for size in (part.memory, part.judging)]
            gpus = "" if part.gpus is None else str(part.gpus)
            cells = [*times, size_text(part.disk) if part.disk else "", gpus, *sizes]
            rows += [[part.name, *cells]] if any(cells) else []
        return aligned(rows)

    def assumptions(self, plan: Plan) -> list[str]:
        """What the times rest on, in words; nothing if none are given."""
        assumed, gpu = plan.config["estimate"], plan.config["estimate"]["gpu"]
        if not self.timed:
            return []
        draws = f"; {assumed['draws']:g} draws a step of DAPO" if _draws(plan) else ""
        return [
            f"assumed: {gpu['name']}, {gpu['tflops']:g} TFLOP/s at {assumed['utilisation']:.0%}, "
            f"{gpu['bandwidth_gb']:g} GB/s at {assumed['bandwidth_share']:.0%}, {gpu['memory_gb']:g} GB; completions "
            f"of {assumed['completion_share']:.0%} of `max_new_tokens`; every candidate of a trigger tried{draws}"
        ]


def estimate(plan: Plan) -> Estimate:
    """What a plan takes, with all its seeds."""
    notes: list[str] = []
    shapes = {name: _architecture(plan, name) for name in plan.config["models"]}
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    for run in plan.runs:
        if unknown := " and ".join(name for name in plan.roles(run) if name not in known):
            notes.append(f"{run}: the size of {unknown} is not known yet. Add it to `estimate.architectures`.")
    found = list(_parts(plan, known))
    there = plan.config["estimate"]["gpu"]["memory_gb"] * 1e9
    notes += [note for part in found for note in too_large(plan, part, there)]
    trained = [known[plan.roles(run)[0]].parameters for run in plan.runs if _sized(plan, run, known)]
    return Estimate(found, max(trained, default=0) >= SMALLEST, notes)


def too_large(plan: Plan, part: Part, there: float) -> Iterator[str]:
    """What of a part does not fit a GPU of so many bytes."""
    if part.memory is not None and part.memory > there:
        if part.name.startswith(parts.LOCAL_THEORY):
            what, remedy = "it", "Turn it off (`dynamics.local_theory.enabled: false`), or lower its `iterations`."
        else:
            more = ["a smaller `micro_batch`", "a higher `zero_stage`", "more `num_processes`"]
            more += ["`execution.mode: staged`"] * (part.name in plan.runs)  # models are not trained in stages
            what, remedy = "an update", _use(["`gradient_checkpointing`", *more])
        yield f"{part.name}: {what} takes {size_text(part.memory)} of each GPU, which has {size_text(there)}. {remedy}"
    if part.judging is not None and part.judging > there:
        yield (
            f"{part.name}: student and teacher are judged on one GPU, take {size_text(part.judging)} of it, and it has "
            f"{size_text(there)}. {_use(['a larger one', *_narrower(plan, part)])}"
        )


def _use(remedies: list[str]) -> str:
    *first, last = remedies
    return f"Use {', '.join(first)} or {last}." if first else f"Use {last}."


def _narrower(plan: Plan, part: Part) -> list[str]:
    """What to write to halve those of a part's student and teacher that are float32 now."""
    if part.name in plan.runs:
        training = plan.runs[part.name]["training"]
        settings, models = {"training.precision": training["precision"]}, [training["teacher"]]
    else:
        settings, models = {}, [part.name.removeprefix(parts.MODEL), plan.reference_teacher()]
    for name in models:
        model = plan.config["models"][name]
        key = "dtype" if model["kind"] == "pretrained" else "precision"
        settings[f"models.{name}.{key}"] = model[key]
    return [f"`{key}: bfloat16`" for key, dtype in settings.items() if dtype == "float32"]


def _parts(plan: Plan, known: dict[str, Architecture]) -> Iterator[Part]:
    """All parts whose models' sizes are known: runs, models, predictions, and what is done with their weights."""

    def roles(run: str) -> tuple[Architecture, Architecture]:
        student, teacher = plan.roles(run)
        return known[student], known[teacher]

    runs = [run for run in plan.runs if _sized(plan, run, known)]
    for run in runs:
        yield parts.of_run(plan, run, *roles(run))
    for name, shape in known.items():
        if plan.reference_teacher() in known:
            yield parts.of_model(plan, name, shape, known[plan.reference_teacher()])
    for name, sampling in plan.samples.items():
        if sampling["from"] in known:
            yield parts.of_samples(plan, name, known[sampling["from"]])
    for name in plan.predictions:
        if (run := plan.predicted_from(name)) in runs:
            yield parts.of_prediction(plan, name, *roles(run))
    for run in dict.fromkeys(plan.predicted_from(name) for name in plan.predictions):
        if run in runs and (validated := parts.of_validations(plan, run, roles(run)[0])).gpu_seconds:
            yield validated
    if plan.config["dynamics"]["interventions"]:
        subjects = [subject for subject in plan.dynamics_subjects() if plan.dynamics_run(subject) in runs]
        each = [parts.of_interventions(plan, s, *roles(plan.dynamics_run(s))) for s in subjects]
        if each:
            yield replace(each[0], name="interventions", gpu_seconds=_sum(each))
    for names in plan.linearized:
        if set(names) <= known.keys():
            yield parts.of_local_theory(plan, names, known[names[0]])


def _sum(found: list[Part]) -> dict[str, float]:
    stages = {stage for part in found for stage in part.gpu_seconds}
    return {stage: sum(part.gpu_seconds.get(stage, 0) for part in found) for stage in stages}


def _sized(plan: Plan, run: str, known: dict[str, Architecture]) -> bool:
    return all(name in known for name in plan.roles(run))


def _draws(plan: Plan) -> bool:
    """Whether a model is trained on as many draws of prompts as it needs."""
    return any("max_draws" in model for model in plan.config["models"].values())


def _architecture(plan: Plan, model: str) -> Architecture | None:
    found: Architecture | None = architecture_of(
        plan.config["models"], model, ARITHMETIC_VOCABULARY, plan.config["estimate"]["architectures"]
    )
    return found


def dry_run_estimate(plan: Plan) -> list[str]:
    """What a dry run says: the whole experiment's estimate, whatever of it is done, and what has to be known."""
    found = estimate(plan)
    return [f"{found.line()} for the whole experiment (see `effopd estimate`)", *found.notes]
