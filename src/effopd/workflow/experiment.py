"""What the configuration amounts to: models, runs and seeds, the steps at which each stops, and what is made of them.

Light to import (no torch): the Snakefile reads it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

from effopd.artifacts.fingerprints import digest
from effopd.common.errors import ConfigError, named_for
from effopd.common.progress import say
from effopd.common.registry import find, load
from effopd.config.files import read_file, read_files
from effopd.config.load import complete
from effopd.config.schema import main_group, run_settings
from effopd.extrapolation.gate import BLIND
from effopd.extrapolation.schedule import EVERY_STEP, checkpoint_steps, powers_of_two, trigger_steps
from effopd.models.pretrained import local_model_files
from effopd.specs.models import PretrainedSettings
from effopd.specs.read import read_section
from effopd.tasks.sources import local_files, source_name

# Of the comparison; those on weights: `Plan.weight_figures`.
FIGURES = (
    "accuracy_vs_steps", "accuracy_vs_seconds", "gate_vs_coefficient", "reverse_kl_vs_steps", "speedups", "ablations",
)  # fmt: skip
# What of `training` the checks of a student and a teacher depend on.
PREFLIGHT = (
    "student", "teacher", "scored_by", "batch_size", "micro_batch", "max_new_tokens", "temperature", "precision",
    "num_processes", "zero_stage", "gradient_checkpointing", "offload_optimizer", "lora",
)  # fmt: skip
CHOSEN_BY = ("keep", "per_problem")  # what of `sampling` chooses among samples that are there
LOCAL_THEORY_TABLES = ("local_residuals", "local_eigenspace", "local_path", "local_gradient")
IN_TURN = ("first_failure", "all")  # searches that try the `coefficients` and nothing else
TABLES = ("models", "evaluation", "extrapolation", "speedup", "comparison", "summary")
TSNE_CHECKPOINTS = 6  # that a t-SNE map needs, as in effopd.dynamics.trajectory, which is too heavy to read here
WEIGHT_TABLES = ("dynamics_spectra", "dynamics_norms", "dynamics_alignment")


class Outline:
    """A checked configuration and what follows from it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = complete(config)
        self.runs = {run: run_settings(self.config, run) for run in self.config["runs"]}
        self.predictions: dict[str, dict[str, Any]] = self.config["predictions"]
        self.seeds: list[int] = self.config["seeds"]
        for prediction in self.predictions:
            self._check_states(prediction)

    def _check_states(self, prediction: str) -> None:
        """Raise ConfigError if there is no step that weights can be predicted from."""
        method, run = self.predictions[prediction]["method"], self.predicted_from(prediction)
        if not self.prediction_steps(prediction):
            needed = load("predictors", method).states
            raise ConfigError(
                f"config: `predictions.{prediction}.method` is {method!r}, which needs {needed} kept states, and "
                f"run `{run}` keeps {len(self.boundaries(run))}. Train it for more steps, or keep more of them "
                "(`training.checkpoint_steps`)."
            )

    @classmethod
    def of_files(cls, paths: Sequence[Path], assignments: Sequence[str] = ()) -> Self:
        """The plan of configuration files, later ones over earlier ones, and `key=value` assignments over all.

        Raises ConfigError, which names the file and the line, if there is none.
        """
        configuration = read_files(paths, assignments)
        for line in configuration.warnings:
            say(line)
        with configuration.located():
            return cls(configuration.values)

    @classmethod
    def of_results(cls, results: Path) -> Self:
        """The plan that a results folder was last run with.

        Raises ConfigError if the folder does not say, PermissionError where its configuration may not be read.
        """
        path = results / "config.yaml"
        if not path.exists():
            inside = results / "results"
            hint = f"Did you mean {inside}?" if inside.is_dir() else "Run it, or name another folder."
            raise ConfigError(f"{path} does not exist: no workflow has begun in {results}. {hint}")
        try:
            configuration = read_file(path)
        except ConfigError as error:
            if isinstance(error.__context__, PermissionError):
                raise error.__context__ from None
            raise ConfigError(f"{path} is damaged ({error}) Delete it and run the workflow again.") from None
        if not configuration.values:
            raise ConfigError(f"{path} is damaged: it is empty. Delete it and run the workflow again.")
        configuration.places.setdefault((), str(path))
        with configuration.located():
            return cls(configuration.values)

    @cache  # noqa: B019 - one plan a process
    def triggers(self, run: str) -> tuple[int, ...]:
        """The steps after which a run extrapolates, in jobs of their own: none where every step does so itself."""
        settings = self.runs[run]
        if self.every_step(run):
            return ()
        return tuple(trigger_steps(settings["extrapolation"]["triggers"], settings["training"]["steps"]))

    def every_step(self, run: str) -> bool:
        """Whether a run extrapolates after every step, inside the job that does the step."""
        return bool(self.runs[run]["extrapolation"]["triggers"] == EVERY_STEP)

    def beside_update(self, run: str) -> tuple[int, bool]:
        """Number of extra student copies per training process, and whether the teacher is loaded too.

        If a gate that looks at weights tries candidates within steps, another student does that, and the teacher is
        asked. Colocated training also holds the teacher if it scores here, the untrained student if rewards are
        extrapolated (ExOPD), and under ZeRO 3 a student that generates.
        """
        training, gate = self.runs[run]["training"], self.runs[run]["extrapolation"]["gate"]
        tried = self.every_step(run) and gate["metric"] not in BLIND
        if self.staged:
            return int(tried), tried
        students = tried + (training["objective"]["reward_scale"] != 1) + (training["zero_stage"] == 3)
        return students, tried or training["scored_by"] == "local"

    @cache  # noqa: B019
    def boundaries(self, run: str) -> tuple[int, ...]:
        """The steps whose state is kept and evaluated: `checkpoint_steps`, triggers and the last."""
        training = self.runs[run]["training"]
        kept = checkpoint_steps(training["checkpoint_steps"], training["steps"])
        return tuple(sorted({*kept, *self.triggers(run), training["steps"]}))

    def previous_boundary(self, run: str, step: int) -> int:
        """The boundary before a boundary; 0 is the untrained student."""
        return max((b for b in self.boundaries(run) if b < step), default=0)

    @property
    def staged(self) -> bool:
        """Whether each step is three jobs rather than a part of its segment's one."""
        return bool(self.config["execution"]["mode"] == "staged")

    def previous_state(self, run: str, step: int) -> int:
        """The step of the state that the one at `step` is made from."""
        return step - 1 if self.staged else self.previous_boundary(run, step)

    @property
    def parts(self) -> list[str]:
        """What the names of a step's rollouts and scores end with: nothing if they are whole, else the shards'."""
        shards = self.config["execution"]["shards"]
        return [""] if shards == 1 else [f".shard{index}of{shards}" for index in range(shards)]

    def candidates(self, run: str) -> list[float]:
        """The coefficients that are jobs of their own (0: the weights as they are); none if one job does them all.

        Other searches than `first_failure` and `all` are one job in any case: what they try depends on what they found.
        """
        extrapolation = self.runs[run]["extrapolation"]
        if not self.staged or extrapolation["search"] not in IN_TURN:
            return []
        return [0.0, *extrapolation["coefficients"]]

    def previous_trigger(self, run: str, step: int) -> int:
        """The trigger before a trigger; 0 is the untrained student."""
        return max((t for t in self.triggers(run) if t < step), default=0)

    def model_parent(self, name: str) -> Any:
        """The model that a model is trained from, if any."""
        return self.config["models"][name].get("init")

    def models_behind(self, name: str) -> list[str]:
        """The models that a model is made from: the one it is trained from, and the one whose samples it learns."""
        sample = self.samples_of(name)
        return [*filter(None, [self.model_parent(name)]), *([self.samples[sample]["from"]] if sample else [])]

    def samples_of(self, model: str) -> str | None:
        """The name of the samples that a model learns, if any: models that ask for the same ones share them."""
        section = self.config["models"][model]
        return _samples_name(section["sampling"]) if section.get("data") == "samples" else None

    @property
    def samples(self) -> dict[str, dict[str, Any]]:
        """How the samples that models learn are made, by their names."""
        sections = [section for section in self.config["models"].values() if section.get("data") == "samples"]
        return {_samples_name(section["sampling"]): _drawn(section["sampling"]) for section in sections}

    def model_stage(self, name: str) -> str:
        """The stage that makes a model."""
        return find("model_kinds", self.config["models"][name]["kind"]).attribute

    def model_files(self, name: str) -> list[str]:
        """The local files that a model is. Raises ConfigError if its folder is none of a model."""
        if self.config["models"][name]["kind"] != "pretrained":
            return []
        return [str(path) for path in local_model_files(self.pretrained(name))]

    def pretrained(self, name: str) -> PretrainedSettings:
        """Where a pretrained model is from."""
        found: PretrainedSettings = read_section(PretrainedSettings, self.config["models"][name], f"`models.{name}`")
        return found

    def check_endpoints(self) -> None:
        """Raise ConfigError if nobody says at which server a teacher scores (nothing of a results folder does)."""
        for run, settings in self.runs.items():
            teacher = settings["training"]["teacher"]
            if settings["training"]["scored_by"] == "endpoint" and teacher not in self.config["runtime"]["endpoints"]:
                raise ConfigError(
                    f"config: run `{run}` is `scored_by: endpoint`, and `runtime.endpoints.{teacher}` does not say "
                    "where its teacher is served. Give its `url` and `model` there, or write `scored_by: local`."
                )

    def longest_chain(self) -> int:
        """The jobs that one run's last state is made by, one after the other: at most four a step."""
        return int(max(4 * settings["training"]["steps"] for settings in self.runs.values()))

    def preflight(self, run: str) -> str:
        """The name of the checks that a run's student and teacher must pass: runs with the same settings share them."""
        settings = self.checked_training(run)
        return f"{settings['student']}-{settings['teacher']}-{digest(settings)[:8]}"

    def checked_training(self, run: str) -> dict[str, Any]:
        """What preflight checks of a run's `training`."""
        training = self.runs[run]["training"]
        return {key: training[key] for key in PREFLIGHT if key in training} | {"engine": engine_of(training)}

    def preflights(self) -> dict[str, list[str]]:
        """All checks by name, with the runs that depend on them."""
        found: dict[str, list[str]] = {}
        for run in self.runs:
            found.setdefault(self.preflight(run), []).append(run)
        return found

    def points(self) -> list[tuple[str, int, int]]:
        """(run, seed, step) of every state that is evaluated."""
        return [
            (run, seed, step) for run, seed in itertools.product(self.runs, self.seeds) for step in self.boundaries(run)
        ]

    @property
    def compared(self) -> dict[str, dict[str, Any]]:
        """The runs and, after them, the predictions, as they are configured: all that tables and figures compare."""
        return {**self.config["runs"], **self.predictions}

    def predicted_from(self, prediction: str) -> str:
        """The run from whose states weights are predicted."""
        return str(self.predictions[prediction]["run"])

    def prediction_steps(self, prediction: str) -> tuple[int, ...]:
        """The steps of its run from which weights are predicted: those with as many kept states as the method needs."""
        least = load("predictors", self.predictions[prediction]["method"]).states
        return self.boundaries(self.predicted_from(prediction))[least - 1 :]

    def predicted_points(self) -> list[tuple[str, int, int]]:
        """(prediction, seed, step) of all weights that are predicted, each from the states up to that step."""
        return [
            (prediction, seed, step)
            for prediction, seed in itertools.product(self.predictions, self.seeds)
            for step in self.prediction_steps(prediction)
        ]

    def states_behind(self, prediction: str, step: int) -> list[int]:
        """The steps of the kept states that a prediction at a step is made from."""
        return [boundary for boundary in self.boundaries(self.predicted_from(prediction)) if boundary <= step]

    def validated_behind(self, prediction: str, step: int) -> list[int]:
        """The steps whose accuracy on the validation split a prediction is made from, the base's (0) first."""
        asks = load("predictors", self.predictions[prediction]["method"]).accuracies
        return [0, *self.states_behind(prediction, step)] if asks else []

    @cache  # noqa: B019
    def dynamics_subjects(self) -> list[str]:
        """Whose weights are looked into: `<run>/seed<s>` and `models/<name>`, as folders of results/dynamics/."""
        settings = self.config["dynamics"]
        if not settings["enabled"]:
            return []
        runs = list(self.runs) if settings["runs"] == "all" else settings["runs"]
        seeds = self.seeds if settings["seeds"] == "all" else settings["seeds"]
        models = settings["models"]
        if models == "teachers":
            roles = [self.runs[run]["training"] for run in runs]
            models = [role["teacher"] for role in roles if self._descends(role["teacher"], role["student"])]
        subjects = [f"{run}/seed{seed}" for run in runs for seed in seeds]
        return [*subjects, *(f"models/{model}" for model in dict.fromkeys(models))]

    def _descends(self, model: str, ancestor: str) -> bool:
        """Whether the workflow trained a model from another one, directly or not."""
        parent = self.model_parent(model)
        return parent is not None and (parent == ancestor or self._descends(parent, ancestor))

    def dynamics_run(self, subject: str) -> str:
        """The run whose student is a subject's base, and whose teacher it is compared with.

        Of a model, the first run that has it as its teacher, or else the baseline.
        """
        folder, name = subject.split("/")
        if folder != "models":
            return folder
        taught = (run for run, settings in self.runs.items() if settings["training"]["teacher"] == name)
        return next(taught, str(self.config["evaluation"]["baseline"]))

    def subject_steps(self, subject: str) -> tuple[int, ...]:
        """The steps whose weights a subject kept: of a model those of its checkpoints and its last; 1 if unknown."""
        folder, name = subject.split("/")
        if folder != "models":
            return self.boundaries(folder)
        steps = self.config["models"][name].get("steps", 1)
        checkpoints = powers_of_two(steps) if self.model_stage(name) in ("train_rl", "train_sft") else []
        return tuple(sorted({*checkpoints, steps}))

    def dynamics_tables(self) -> list[str]:
        """The names of the tables in results/tables/ on the weights."""
        if not self.dynamics_subjects():
            return []
        chosen = self.config["dynamics"]["interventions"]
        tables = [*WEIGHT_TABLES, *(["dynamics_interventions"] if chosen else [])]
        return tables + (["dynamics_representation"] if "representation" in chosen else [])

    def resolved_config(self) -> dict[str, Any]:
        """The configuration as written to results/config.yaml: everything that results depend on."""
        return {section: value for section, value in self.config.items() if section not in ("runtime", "estimate")}

    @property
    def task_name(self) -> str:
        """The folder in results/data/ of the task that is trained on."""
        return str(self.config["task"]["name"])

    @property
    def other_tasks(self) -> list[str]:
        """The names of the tasks that models and last states are evaluated on beside it."""
        return list(self.config["evaluation"]["tasks"])

    def task(self, name: str | None = None) -> Mapping[str, Any]:
        """The section of a task by the folder of its data; by default of the one that is trained on."""
        other = self.config["evaluation"]["tasks"].get(name)
        section: Mapping[str, Any] = self.config["task"] if other is None else other["task"]
        return section

    @property
    def several_sources(self) -> bool:
        """Whether the test problems of the task that is trained on come from several sources, by their names."""
        splits = self.config["task"]["splits"]
        if "datasets" in self.config["task"]:
            return len(self.config["task"]["datasets"]) > 1
        if not isinstance(splits["test"], Mapping):  # a number of problems that the task makes up
            return False
        behind = splits["test"] if "sources" in splits["test"] else splits["train"]  # a share is of the training's
        return len({source_name(source) for source in behind["sources"]}) > 1

    def last_points(self) -> list[tuple[str, int, int]]:
        """(run, seed, step) of the last state of every run and seed: those that are evaluated on other tasks."""
        return [(run, seed, self.boundaries(run)[-1]) for run, seed in itertools.product(self.runs, self.seeds)]

    def data_files(self, task: str | None = None) -> list[str]:
        """The local files that a task's data is made from. Raises ConfigError if one does not exist."""
        splits = [split for split in self.task(task)["splits"].values() if isinstance(split, Mapping)]
        sources = [source for split in splits for source in split.get("sources", ())]
        with named_for(task if task in self.other_tasks else None):
            return [str(path) for source in sources for path in local_files(source)]

    def reference_teacher(self) -> str:
        """The teacher that models are compared with: the baseline run's."""
        return str(self.runs[self.config["evaluation"]["baseline"]]["training"]["teacher"])

    @property
    def references(self) -> list[str]:
        """The runs that all others are compared with: the baseline and, if one is named, the reference."""
        evaluation = self.config["evaluation"]
        return [evaluation["baseline"], *([evaluation["reference"]] if "reference" in evaluation else [])]

    @property
    def own_references(self) -> dict[str, str]:
        """The run that a run is compared with beside these, of runs that name one."""
        return {run: settings["reference"] for run, settings in self.config["runs"].items() if "reference" in settings}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(run or prediction, reference) of all comparisons; a reference with itself too."""
        with_all = [(run, reference) for reference in self.references for run in self.compared]
        return [*with_all, *self.own_references.items()]

    @property
    def dynamics_runs(self) -> list[str]:
        """The runs whose weights are looked into, in the configured order."""
        looked_into = {subject.split("/")[0] for subject in self.dynamics_subjects()}
        return [run for run in self.runs if run in looked_into]

    @property
    def dynamics_seeds(self) -> list[int]:
        """The seeds of these runs, in the configured order."""
        looked_into = {subject.split("/")[1] for subject in self.dynamics_subjects()}
        return [seed for seed in self.seeds if f"seed{seed}" in looked_into]

    @property
    def dynamics_models(self) -> list[str]:
        """The models beside them."""
        parts = [subject.split("/") for subject in self.dynamics_subjects()]
        return [name for folder, name in parts if folder == "models"]

    @cache  # noqa: B019
    def weight_figures(self) -> list[str]:
        """The names of the figures on weights: those for which what they show is analyzed."""
        if not self.dynamics_subjects():
            return []
        settings = self.config["dynamics"]
        chosen = set(settings["interventions"])
        kept = max(len(self.boundaries(run)) for run in self.dynamics_runs)
        directions = settings["reconstruction"]["top"] or settings["reconstruction"]["bottom"]
        shown = {
            "norms": True,
            "accuracy_vs_norm": bool(chosen & {"path", "equal_norm"}),
            "sliding_window": "window" in chosen,
            "spectra": True,
            "reconstruction": "reconstruction" in chosen and bool(directions),
            "alignment": kept > 1,
            "norm_scaling": "norm_scaling" in chosen,
            "trajectory": kept > 1,
            "trajectory_map": kept >= TSNE_CHECKPOINTS,
            "embeddings": bool(chosen & {"embeddings", "representation"}),
            "sparsity": True,
            "local_theory": bool(self.linearized),
        }
        return [figure for figure, there in shown.items() if there]

    def figures(self) -> list[str]:
        """The names of all figures: those for which there is something to show."""
        shown = {"speedups": len(self.compared) > 1, "ablations": len(groups(self.compared)) > 1}
        return [*(figure for figure in FIGURES if shown.get(figure, True)), *self.weight_figures()]

    @property
    def linearized(self) -> list[tuple[str, str]]:
        """(student, teacher) of every run that is compared with the local theory; none if that is off."""
        if not self.config["dynamics"]["local_theory"]["enabled"]:
            return []
        return list(dict.fromkeys(self.roles(run) for run in self.dynamics_runs))

    def roles(self, run: str) -> tuple[str, str]:
        """The names of a run's student and teacher."""
        training = self.runs[run]["training"]
        return training["student"], training["teacher"]


def _drawn(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """What of a model's `sampling` decides the samples, and not which of them are learned."""
    return {key: value for key, value in sampling.items() if key not in CHOSEN_BY}


def _samples_name(sampling: Mapping[str, Any]) -> str:
    return f"{sampling['from']}-{digest(_drawn(sampling))[:8]}"


def groups(runs: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """The groups with their runs: the main one first, even if it has none, then as they are configured."""
    found: dict[str, list[str]] = {main_group(): []}
    for run, settings in runs.items():
        found.setdefault(settings["group"], []).append(run)
    return list(found.items())


def engine_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """The engine that a section of the configuration chooses: its name, dtype and options."""
    name = section["engine"]
    return {"name": name, "dtype": section["engine_dtype"], "options": section.get(name, {})}


def without_engine(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section without the keys that choose its engine."""
    return {key: value for key, value in section.items() if key not in ("engine", "engine_dtype", section["engine"])}
