"""The plan of a workflow: its outline, and the slice of the configuration that each job's result depends on.

Light to import (no torch): the Snakefile reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effopd.artifacts.fingerprints import canonical_json, code_digest, file_sha256
from effopd.common import registry
from effopd.specs.read import read_section
from effopd.specs.segments import TrainingSettings
from effopd.workflow.experiment import CHOSEN_BY, FIGURES, Outline, engine_of, groups, without_engine


class Plan(Outline):
    """A checked configuration, and what each job of it depends on."""

    def spec(self, stage: str, **wildcards: Any) -> str:
        """The canonical JSON that decides a job's result: its config slice and its code.

        This one string is both what Snakemake tracks and what the command receives, so neither can differ.
        """
        part = getattr(self, f"_{stage}")(**wildcards)
        return canonical_json({**part, "code": _code("stages", stage)})

    def _make_data(self, task: str | None = None) -> dict[str, Any]:
        elsewhere = ("prompt", "sandbox", "partial_credit")
        settings = {key: value for key, value in self.task(task).items() if key not in elsewhere}
        return {"task": {**settings, **self._task_code(task)}}

    def _tokenize_prompts(self, model: str, task: str | None = None) -> dict[str, Any]:
        """The prompts do not depend on the model's name: a model's tokenizer is a parent."""
        return {"prompt": self.task(task).get("prompt")}

    def _pretrain_model(self, model: str) -> dict[str, Any]:
        return {"model": self.config["models"][model], "task": self._verifier()}

    def _train_rl(self, model: str) -> dict[str, Any]:
        section = self.config["models"][model]
        return {"model": without_engine(section), "engine": _engine(section), "task": self._verifier()}

    def _sample_responses(self, sample: str) -> dict[str, Any]:
        settings = self.samples[sample]
        sampling = {key: value for key, value in without_engine(settings).items() if key != "from"}  # a parent
        return {"sampling": sampling, "engine": _engine(settings), "task": self._verifier()}

    def _train_sft(self, model: str) -> dict[str, Any]:
        settings = {key: value for key, value in self.config["models"][model].items() if key != "sampling"}
        if self.samples_of(model):  # what else of `sampling` counts is in the samples, a parent
            sampling = self.config["models"][model]["sampling"]
            settings["sampling"] = {key: sampling[key] for key in CHOSEN_BY}
        return {"model": settings, **({"parts": {"lora": _code("parts", "lora")}} if "lora" in settings else {})}

    def _fetch_model(self, model: str) -> dict[str, Any]:
        return {"model": self.config["models"][model]}

    def _preflight(self, pair: str) -> dict[str, Any]:
        runs = self.preflights()[pair]
        objectives = [self.runs[run]["training"]["objective"] for run in runs]
        top_k = max((o["top_k"] for o in objectives if o["support"] == "top_k"), default=0)
        gates = self._gates_that_count(runs)
        return {
            **({"top_k": top_k} if top_k else {}),
            **({"gates": gates} if gates else {}),
            "preflight": self.config["preflight"],
            "training": self.checked_training(runs[0]),
            "prompt": self.config["task"].get("prompt"),
            "task": self._verifier(),
            "beside": list(max(self.beside_update(run) for run in runs)),
            "states": [[run, seed, step] for run, seed, step in self.points() if run in runs],
        }

    def _gates_that_count(self, runs: list[str]) -> list[dict[str, Any]]:
        """The gates of these runs that count right answers (effopd.specs.preflight.CheckedGate), each different one."""
        found: list[dict[str, Any]] = []
        for run in runs:
            section = self.runs[run]["extrapolation"]
            if section["gate"]["metric"] != "accuracy" or not self.triggers(run):
                continue
            own = {key: section[key] for key in ("search", "coefficients", "accept_ties")}
            own |= {key: section["gate"][key] for key in ("examples", "samples", "paired")}
            same = next((gate for gate in found if own.items() <= gate.items()), None)
            if same is None:
                found.append({"runs": [run], **own})
            else:
                same["runs"].append(run)
        return found

    def _segment(self, run: str, seed: str, step: str) -> dict[str, Any]:
        """What the artifacts of a step have in common with the others of its segment."""
        training, extrapolation = self.runs[run]["training"], self.runs[run]["extrapolation"]
        start, every_step = self.previous_boundary(run, int(step)), self.every_step(run)
        parts = {
            "teacher": _code("teachers", training["scored_by"]),
            "objective": _code("objectives", training["objective"]["divergence"]),
        }
        if "lora" in training:
            parts["lora"] = _code("parts", "lora")
        if every_step:
            parts["extrapolation"] = _code("parts", "extrapolation")
            parts |= _search(extrapolation)
        return {
            "training": training_section(training),
            "engine": _engine(training),
            "extrapolation": extrapolation_section(extrapolation) if every_step else None,
            "moments": extrapolation["moments"] if every_step or start in self.triggers(run) else None,
            "parts": parts,
            "task": self._verifier(),
            "seed": int(seed),
            "start": start,
        }

    def _train_segment(self, run: str, seed: str, step: str) -> dict[str, Any]:
        return {**self._segment(run, seed, step), "end": int(step)}

    def _update_policy(self, run: str, seed: str, step: str) -> dict[str, Any]:
        return {**self._segment(run, seed, step), "step": int(step)}

    def _generate_rollouts(self, run: str, seed: str, step: str, part: str) -> dict[str, Any]:
        shard = {"shard": [self.parts.index(part), len(self.parts)]} if part else {}
        return {**self._update_policy(run, seed, step), **shard}

    _score_rollouts = _generate_rollouts

    def _evaluate_candidates(self, run: str, seed: str, step: str) -> dict[str, Any]:
        extrapolation = self.runs[run]["extrapolation"]
        parts = _search(extrapolation)
        return {"extrapolation": extrapolation_section(extrapolation), "parts": parts, **self._gate(run, seed, step)}

    def _gate(self, run: str, seed: str, step: str) -> dict[str, Any]:
        """What the gate of a run's weights after a step depends on, besides its own settings."""
        training = self.runs[run]["training"]
        return {
            "sampling": {key: training[key] for key in ("temperature", "max_new_tokens")},
            "engine": _engine(training),
            "precision": training["precision"],
            "task": self._verifier(),
            "seed": int(seed),
            "step": int(step),
        }

    def _predict_weights(self, prediction: str, seed: str, step: str) -> dict[str, Any]:
        settings = self.predictions[prediction]
        method = settings["method"]
        return {
            "method": method,
            "options": settings.get(method, {}),
            "parts": {"method": _code("predictors", method), **_search(settings)},
            "states": self.states_behind(prediction, int(step)),
            "extrapolation": extrapolation_section(settings),
            **self._gate(settings["run"], seed, step),
        }

    def _evaluate_candidate(self, run: str, seed: str, step: str, coefficient: str) -> dict[str, Any]:
        chosen = next(c for c in self.candidates(run) if f"{c:g}" == coefficient)
        return {**self._evaluate_candidates(run, seed, step), "coefficient": chosen}

    def _select_candidate(self, run: str, seed: str, step: str) -> dict[str, Any]:
        extrapolation = self.runs[run]["extrapolation"]
        return {
            "extrapolation": _ray(extrapolation),
            "parts": {"search": _code("searches", extrapolation["search"])},
            "seed": int(seed),
            "step": int(step),
        }

    def _evaluate(
        self, max_new_tokens: int, precision: str | None, split: str = "test", task: str | None = None
    ) -> dict[str, Any]:
        section = self.config["evaluation"]
        evaluation = {k: section[k] for k in ("temperature", "samples", "seed", "batch_size")}
        evaluation |= {"max_new_tokens": max_new_tokens, "precision": precision, "split": split}
        # of the validation split none: predictions are made from its evaluations, and nobody looks at their texts
        evaluation["kept_samples"] = section["kept_samples"] if split == "test" else 0
        if task is not None:
            evaluation["samples"] = section["tasks"][task]["samples"]
        return {"evaluation": evaluation, "engine": _engine(section), "task": self._verifier(task)}

    def evaluate_run_spec(self, run: str, split: str = "test", task: str | None = None) -> str:
        training = self.runs[run]["training"]
        limit, precision = training["max_new_tokens"], training["precision"]
        return self.spec("evaluate", max_new_tokens=limit, precision=precision, split=split, task=task)

    def evaluate_model_spec(self, task: str | None = None) -> str:
        """Models are evaluated with the longest completions that any run allows, and as they are held when frozen."""
        lengths = [settings["training"]["max_new_tokens"] for settings in self.runs.values()]
        return self.spec("evaluate", max_new_tokens=max(lengths), precision=None, task=task)

    def _analyze_weights(self, subject: str) -> dict[str, Any]:
        return {"tolerance": self.config["dynamics"]["tolerance"]}

    def _evaluate_interventions(self, subject: str) -> dict[str, Any]:
        training = self.runs[self.dynamics_run(subject)]["training"]
        spec = self._evaluate(training["max_new_tokens"], training["precision"])
        del (
            spec["evaluation"]["samples"],
            spec["evaluation"]["kept_samples"],
        )  # the interventions have their own, and none
        return {**spec, "dynamics": self.intervention_settings()}

    def intervention_settings(self) -> dict[str, Any]:
        """What of the section `dynamics` interventions depend on: those that are chosen, with their options."""
        section = self.config["dynamics"]
        keys = ("interventions", "problems", "samples", *section["interventions"])
        return {key: section[key] for key in keys if key in section}

    def _make_dynamics_tables(self) -> dict[str, Any]:
        return {
            "subjects": [
                {
                    "subject": subject,
                    "run": subject if subject.startswith("models/") else subject.split("/")[0],
                    "seed": self._subject_seed(subject),
                }
                for subject in self.dynamics_subjects()
            ],
            "tables": self.dynamics_tables(),
            "confidence": self.config["evaluation"]["confidence"],
        }

    def _subject_seed(self, subject: str) -> int:
        folder, name = subject.split("/")
        return int(self.config["models"][name].get("seed", 0) if folder == "models" else name.removeprefix("seed"))

    def _collect_run(self, run: str, seed: str) -> dict[str, Any]:
        return {
            "run": run,
            "seed": int(seed),
            "boundaries": list(self.boundaries(run)),
            "triggers": list(self.triggers(run)),
            "every_step": self.every_step(run),
        }

    def _outline(self) -> dict[str, Any]:
        """What the tables need to know of the runs."""
        return {
            "runs": [
                {
                    "run": run,
                    "group": self.config["runs"][run]["group"],
                    "student": self.runs[run]["training"]["student"],
                    "teacher": self.runs[run]["training"]["teacher"],
                    "boundaries": list(self.boundaries(run)),
                    "triggers": list(self.triggers(run)),
                    "every_step": self.every_step(run),
                    "metric": self.runs[run]["extrapolation"]["gate"]["metric"],
                }
                for run in self.runs  # a list: canonical JSON sorts mappings, and tables keep the configured order
            ],
            "seeds": self.seeds,
        }

    def _make_tables(self) -> dict[str, Any]:
        confidence = self.config["evaluation"]["confidence"]
        models = list(self.config["models"])
        predictions = [
            {
                "prediction": name,
                "run": self.predicted_from(name),
                "group": settings["group"],
                "steps": list(self.prediction_steps(name)),
            }
            for name, settings in self.predictions.items()
        ]
        own = {"predictions": predictions, "models": models, "pairs": self.pairs, "confidence": confidence}
        return {**self._outline(), **own}

    def _make_task_table(self) -> dict[str, Any]:
        steps = {run: self.boundaries(run)[-1:] for run in self.runs}
        return self._outcomes("evaluation/tasks/{task}", self.other_tasks, steps)

    def _make_source_table(self) -> dict[str, Any]:
        """Of the task that is trained on, every kept state and prediction."""
        steps = {run: self.boundaries(run) for run in self.runs}
        steps |= {prediction: self.prediction_steps(prediction) for prediction in self.predictions}
        return self._outcomes("evaluation", [self.task_name], steps)

    def _outcomes(self, folder: str, tasks: list[str], steps: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """What a table by task and source needs to know; `steps` are of runs and predictions."""
        of = {run: self.predicted_from(run) if run in self.predictions else run for run in steps}
        return {
            "folder": folder,
            "tasks": tasks,
            "models": list(self.config["models"]),
            "runs": [{"run": run, "student": self.roles(of[run])[0], "steps": list(own)} for run, own in steps.items()],
            "seeds": self.seeds,
            "confidence": self.config["evaluation"]["confidence"],
        }

    def _linearize_student(self, student: str, teacher: str) -> dict[str, Any]:
        """The contexts are as long as the longest completions of the runs in question."""
        runs = [run for run in self.dynamics_runs if self.roles(run) == (student, teacher)]
        theory = {k: v for k, v in self.config["dynamics"]["local_theory"].items() if k != "enabled"}
        return {
            "local_theory": theory,
            "seed": self.config["evaluation"]["seed"],
            "batch_size": self.config["evaluation"]["batch_size"],
            "max_new_tokens": max(self.runs[run]["training"]["max_new_tokens"] for run in runs),
        }

    def _compare_local_theory(self, run: str, seed: str) -> dict[str, Any]:
        return {"run": run, "seed": int(seed)}

    def _make_local_theory_tables(self) -> dict[str, Any]:
        return {
            "linearized": self.linearized,
            "runs": self.dynamics_runs,
            "seeds": self.dynamics_seeds,
            "confidence": self.config["evaluation"]["confidence"],
        }

    def _looks(self, runs: Mapping[str, Any]) -> dict[str, Any]:
        """What the names and colors of runs depend on, and what there is to draw of weights."""
        return {
            "runs": list(runs),  # a list: canonical JSON sorts mappings
            "groups": groups(runs),
            "labels": {run: settings.get("label", run) for run, settings in runs.items()},
            "baseline": self.config["evaluation"]["baseline"],
            "seeds": self.dynamics_seeds,
            "models": self.dynamics_models,
            "supervised": [name for name in self.dynamics_models if self.config["models"][name]["kind"] == "sft"],
        }

    def _plot_figure(self, figure: str) -> dict[str, Any]:
        looks = self._looks(self.config["runs"])
        if figure in FIGURES:
            looks = self._looks(self.compared)
            references = {"references": self.references, "own_references": self.own_references}
            looks = {**looks, **references, "seeds": [], "models": []}
        interventions = self.config["dynamics"]["interventions"] if figure == "embeddings" else []
        options = self.config["figures"][figure]
        confidence = self.config["evaluation"]["confidence"]
        own = {"figure": figure, "options": options, "interventions": interventions, "confidence": confidence}
        return {**looks, **own}

    def _compare_with_paper(self) -> dict[str, Any]:
        tables = self.dynamics_tables()
        return {
            "runs": self.dynamics_runs,
            # the paper compares with reinforcement learning
            "models": [name for name in self.dynamics_models if self.config["models"][name]["kind"] != "sft"],
            "tables": tables,
            "confidence": self.config["evaluation"]["confidence"],
        }

    def _write_explorer(self) -> dict[str, Any]:
        return {**self._looks(self.config["runs"]), "template": _template_digest("explorer.html.jinja")}

    def _write_config(self) -> dict[str, Any]:
        return {"config": self.resolved_config()}

    def _write_report(self) -> dict[str, Any]:
        return {
            "config": self.resolved_config(),
            "runs": list(self.runs),
            "predictions": list(self.predictions),
            "several_sources": self.several_sources,
            "preflights": self.preflights(),
            "dynamics_tables": self.dynamics_tables(),
            "figures": self.figures(),
            "samples": self._shown_samples(),
            "template": _template_digest("report.html.jinja"),
        }

    def _shown_samples(self) -> list[dict[str, Any]]:
        """The evaluations whose samples the report shows side by side, of the first seed; none if none are kept.

        Students, the runs of the main group (of the first that has any) at their first, middle and last kept step, and
        teachers.
        """
        if not self.config["evaluation"]["kept_samples"]:
            return []
        runs = next(runs for _, runs in groups(self.config["runs"]) if runs)
        students, teachers = (dict.fromkeys(self.roles(run)[role] for run in runs) for role in (0, 1))
        steps = {run: self.boundaries(run) for run in runs}
        chosen = {run: sorted({own[0], own[len(own) // 2], own[-1]}) for run, own in steps.items()}
        return [
            *({"run": f"models/{model}", "seed": 0, "step": 0} for model in students),
            *({"run": run, "seed": self.seeds[0], "step": step} for run, own in chosen.items() for step in own),
            *({"run": f"models/{model}", "seed": 0, "step": 0} for model in teachers if model not in students),
        ]

    def _verifier(self, task: str | None = None) -> dict[str, Any]:
        """What of a task the verifier depends on."""
        section = self.task(task)
        settings = {key: section[key] for key in ("name", "sandbox", "partial_credit") if key in section}
        return {**settings, **self._task_code(task)}

    def _task_code(self, task: str | None = None) -> dict[str, Any]:
        """The code of a task in use, and the version of a package that decides as much as this code does."""
        name = self.task(task)["name"]
        versions = registry.deciding_version(name)
        return {"code": _code("tasks", name), **({"versions": versions} if versions else {})}


def _code(kind: str, name: str) -> str:
    """The code behind a name of the configuration; stages name it only when they run."""
    return code_digest(registry.find(kind, name).module)


def training_section(section: Mapping[str, Any]) -> dict[str, Any]:
    """What of `training` a segment depends on (effopd.specs.segments.TrainingSettings).

    Not its engine, which stands beside it, nor what decides which segments there are.
    """
    own = {k: value for k, value in without_engine(section).items() if k not in ("steps", "checkpoint_steps")}
    return own | {"objective": _with_options(section["objective"], "divergence")}


def training_settings(section: Mapping[str, Any]) -> TrainingSettings:
    """A complete section `training` as what trains takes it."""
    found: TrainingSettings = read_section(TrainingSettings, training_section(section), "`training`")
    return found


def _with_options(section: Mapping[str, Any], choice: str) -> dict[str, Any]:
    """A section one of whose keys chooses by name, with the chosen one's own section as `options`."""
    own = {key: value for key, value in section.items() if key != section[choice]}
    return own | {"options": section.get(section[choice], {})}


def _ray(section: Mapping[str, Any]) -> dict[str, Any]:
    """What of `extrapolation`, or of a prediction, says which candidates there are."""
    keys = ("search", "coefficients", "accept_ties", "parameters", "anchor", section["search"])
    return _with_options({key: section[key] for key in keys if key in section}, "search")


def extrapolation_section(section: Mapping[str, Any]) -> dict[str, Any]:
    """The same, and what judges them (effopd.specs.extrapolation.ExtrapolationSettings)."""
    return {**_ray(section), "gate": _with_options(section["gate"], "metric")}


def _engine(section: Mapping[str, Any]) -> dict[str, Any]:
    """The engine in use and its code."""
    return {**engine_of(section), "code": _code("engines", section["engine"])}


def _search(extrapolation: Mapping[str, Any]) -> dict[str, str]:
    """The code of what judges candidates and of what chooses which to try."""
    chosen = {"search": ("searches", extrapolation["search"]), "gate": ("gates", extrapolation["gate"]["metric"])}
    return {part: _code(*entry) for part, entry in chosen.items()}


def _template_digest(name: str) -> str:
    return file_sha256(Path(__file__).parents[1] / "report/templates" / name)[:16]
