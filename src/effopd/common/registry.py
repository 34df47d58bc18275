"""What the configuration chooses by name: this package's entries in one table, and those that other packages add.

Light to import. An entry is imported when it is used and not before, so that a job's fingerprint holds the code of the
entries in use and of no other (docs/plugins.md says how to add one).
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from effopd.common.errors import ConfigError

OWN = "effopd"


def _functions(module: str, *names: str) -> dict[str, str]:
    return {name: f"{module}:{name}" for name in names}


# Kind of entry -> name -> "module:attribute".
BUILT_IN: dict[str, dict[str, str]] = {
    "tasks": {
        "arithmetic": "effopd.tasks.arithmetic:ArithmeticTask",
        "math": "effopd.tasks.mathematics:MathTask",
        "choice": "effopd.tasks.choice:ChoiceTask",
        "code": "effopd.tasks.programming:CodeTask",
        "reasoning_gym": "effopd.tasks.gym:GymTask",
    },
    "model_kinds": {  # the stage that makes such a model
        "pretrain": "effopd.stages.pretrain_model:pretrain_model",
        **dict.fromkeys(("grpo", "dapo", "ppo"), "effopd.stages.train_rl:train_rl"),
        "sft": "effopd.stages.train_sft:train_sft",
        "pretrained": "effopd.stages.fetch_model:fetch_model",
    },
    "engines": {
        "transformers": "effopd.engines.transformers_engine:TransformersEngine",
        "vllm": "effopd.engines.vllm_engine:VllmEngine",
    },
    "teachers": {
        "local": "effopd.teachers.scoring:LocalTeacher",
        "endpoint": "effopd.teachers.endpoint:EndpointTeacher",
    },
    "objectives": {
        "reverse_kl": "effopd.losses.divergences:kl_divergence",
        "forward_kl": "effopd.losses.divergences:forward_kl_divergence",
        "js": "effopd.losses.divergences:js_divergence",
    },
    "searches": {
        "first_failure": "effopd.extrapolation.search:first_failure",
        "all": "effopd.extrapolation.search:best_of_all",
        **dict.fromkeys(("line", "line_by_module"), "effopd.extrapolation.search:line"),
    },
    "gates": {
        "accuracy": "effopd.evaluation.measure:Measurement",
        "reverse_kl": "effopd.teachers.scoring:ReverseKL",
        **dict.fromkeys(("random", "always"), "effopd.extrapolation.gate:BlindGate"),
    },
    "predictors": _functions("effopd.extrapolation.predictors", "expo", "relex", "relex_log", "alpha"),
    "parts": {  # of a run's or model's training, if it has them
        "lora": "effopd.training.lora:LoraTrainer",
        "extrapolation": "effopd.distillation.every_step:StepExtrapolation",
    },
    "stages": {
        **{
            name: f"effopd.stages.{name}:{name}"
            for name in (
                "analyze_weights", "collect_run", "compare_local_theory", "compare_with_paper", "evaluate",
                "evaluate_candidates", "evaluate_interventions", "fetch_model", "linearize_student", "make_data",
                "make_dynamics_tables", "make_local_theory_tables", "make_tables", "make_task_table", "plot_figure",
                "predict_weights", "preflight", "pretrain_model", "sample_responses", "select_candidate",
                "tokenize_prompts", "train_rl", "train_sft", "write_config", "write_explorer", "write_report",
            )
        },
        **_functions(
            "effopd.stages.segments", "train_segment", "generate_rollouts", "score_rollouts", "update_policy"
        ),
        "evaluate_candidate": "effopd.stages.evaluate_candidates:evaluate_candidates",
        "make_source_table": "effopd.stages.make_task_table:make_task_table",
    },
}  # fmt: skip

# By task, another project's package that decides its data and its verdicts: its version is part of their fingerprints.
DECIDED_BY = {"reasoning_gym": "reasoning-gym"}

# What other packages can add by the entry points `effopd.<kind>`: what messages call one, and what it must have.
OPEN: dict[str, tuple[str, tuple[str, ...]]] = {
    "tasks": ("task", ("make_tables", "verify", "right_completion", "wrong_completion", "verify_all", "self_check")),
    "objectives": ("objective", ("__call__",)),
    "gates": ("gate", ("__call__",)),
    "searches": ("search", ("__call__",)),
    "predictors": ("predictor", ("predict", "states", "accuracies")),
    "engines": ("engine", ("of",)),
}
NAME = r"[a-z][a-z0-9_]{0,63}"  # it becomes part of file names


@dataclass(frozen=True)
class Entry:
    """A name of the configuration and the code behind it."""

    kind: str
    name: str
    module: str
    attribute: str
    package: str = OWN  # the distribution that registers it

    def load(self) -> Any:
        """The class, function or other value itself. Raises ConfigError if there is none, or not what is needed."""
        try:
            value = getattr(importlib.import_module(self.module), self.attribute)
        except (Exception, SystemExit) as error:
            if self.package == OWN:
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"{self} cannot be imported ({reason}). Repair or uninstall the package.") from error
        missing = [name for name in OPEN[self.kind][1] if not hasattr(value, name)] if self.package != OWN else []
        missing += sorted(getattr(value, "__abstractmethods__", ()))
        if missing:
            raise ConfigError(
                f"{self} is {self.module}:{self.attribute}, which lacks {', '.join(dict.fromkeys(missing))} "
                "(docs/plugins.md). Repair or uninstall the package."
            )
        return value

    @property
    def schema_file(self) -> Path | None:
        """What its own keys in the configuration are described in: `<name>.schema.yaml` beside its module."""
        found = module_file(self.module)
        path = None if found is None or self.package == OWN else found.with_name(f"{self.name}.schema.yaml")
        return path if path is not None and path.is_file() else None

    def __str__(self) -> str:
        return f"the {OPEN[self.kind][0]} `{self.name}` of the package {self.package}"


@cache
def entries(kind: str) -> Mapping[str, Entry]:
    """All entries of a kind by name, this package's first.

    Raises ConfigError if a package registers something unusable, or a name that another one has.
    """
    found = {name: Entry(kind, name, *path.split(":")) for name, path in BUILT_IN[kind].items()}
    for entry in sorted(_added(kind), key=lambda entry: (entry.name, entry.package)):
        if (other := found.get(entry.name)) is not None:
            raise ConfigError(f"{entry} has the name of {other}. Uninstall one of them.")
        found[entry.name] = entry
    return found


def names(kind: str) -> list[str]:
    """The names that the configuration can choose from."""
    return list(entries(kind))


def find(kind: str, name: str) -> Entry:
    """The entry of a name. Raises ConfigError, which lists the names that there are, if there is none."""
    if name in BUILT_IN[kind]:  # whatever else is installed
        return Entry(kind, name, *BUILT_IN[kind][name].split(":"))
    if name not in entries(kind):
        raise ConfigError(f"there is no {OPEN.get(kind, (kind,))[0]} {name!r}. Name one of: {', '.join(names(kind))}.")
    return entries(kind)[name]


def load(kind: str, name: str) -> Any:
    """What is registered under a name, imported now. Raises ConfigError as `find` and `Entry.load` do."""
    return find(kind, name).load()


def is_added(kind: str, name: str) -> bool:
    """Whether another package registers the name."""
    return name not in BUILT_IN[kind]


def _added(kind: str) -> list[Entry]:
    if kind not in OPEN:
        return []
    found = []
    for point in metadata.entry_points(group=f"{OWN}.{kind}"):
        package = point.dist.name if point.dist else "of nobody"
        entry = Entry(kind, point.name, *point.value.replace(" ", "").partition(":")[::2], package)
        if not re.fullmatch(NAME, point.name):
            raise ConfigError(
                f"{entry}: the name is not usable. Use at most 64 lower-case letters, digits and underscores, a letter "
                "first."
            )
        if not entry.attribute.isidentifier() or module_file(entry.module) is None:
            raise ConfigError(
                f"{entry} is said to be {point.value!r}, and there is no such module. Write `module:attribute` in the "
                "package's entry points, and install it again."
            )
        found.append(entry)
    return found


def deciding_version(task: str) -> dict[str, str]:
    """The version of the package that decides what a task's problems and verdicts are, by its name, if one does."""
    found = {}
    if (package := DECIDED_BY.get(task)) is not None:
        with suppress(metadata.PackageNotFoundError):  # what says so is the check of the configuration
            found[package] = metadata.version(package)
    return found


@cache
def module_file(module: str) -> Path | None:
    """The file of a module, found without importing it or the packages that it is in; None if there is none."""
    top, *parts = module.split(".")
    spec = importlib.util.find_spec(top) if top else None
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        return Path(spec.origin) if spec.origin and not parts else None
    suffixes = [*importlib.machinery.SOURCE_SUFFIXES, *importlib.machinery.EXTENSION_SUFFIXES]
    for location in spec.submodule_search_locations:
        base = Path(location, *parts)
        files = [base / "__init__.py", *(base.with_name(base.name + suffix) for suffix in suffixes if parts)]
        if (found := next((path for path in files if path.is_file()), None)) is not None:
            return found
    return None
