"""What the jobs of each rule are made from, and what the whole workflow makes: paths that follow from the plan.

An input function is a method that takes the wildcards of a job: any object that has them as attributes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from effopd.workflow import paths
from effopd.workflow.experiment import LOCAL_THEORY_TABLES, TABLES
from effopd.workflow.job_specs import Plan

Files = dict[str, str]  # paths by the names that a rule's input gives them
Place = tuple[str, int, int]  # run or prediction, seed, step


class RuleInputs:
    """The inputs of a plan's jobs. Raises ConfigError if a local file that the plan names does not exist."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._data_files = {task: plan.data_files(task) for task in [plan.task_name, *plan.other_tasks]}
        self._model_files = {model: plan.model_files(model) for model in plan.config["models"]}
        self.data = paths.DATA.format(task=plan.task_name)
        self.prompts_pattern = paths.PROMPTS.replace("{task}", plan.task_name)

    def run_of(self, wildcards: Any) -> str:
        """The run that a job belongs to: its own, or that of its prediction, of its checks or of its subject."""
        if run := getattr(wildcards, "run", None):
            return str(run)
        if prediction := getattr(wildcards, "prediction", None):
            return self.plan.predicted_from(prediction)
        if pair := getattr(wildcards, "pair", None):
            return self.plan.preflights()[pair][0]
        return self.plan.dynamics_run(wildcards.subject)

    # Data and models.

    @property
    def tasks(self) -> list[str]:
        """The tasks that there is data of: the one that is trained on, and those that are only evaluated on."""
        return list(self._data_files)

    def data_files(self, wildcards: Any) -> list[str]:
        """The local files that a task's data is made from."""
        return self._data_files[wildcards.task]

    def training_data(self, wildcards: Any) -> Files:
        """For the data of another task, the data that is trained on."""
        return {} if wildcards.task == self.plan.task_name else {"training": self.data}

    def model_files(self, wildcards: Any) -> list[str]:
        """The local files that a pretrained model is; none for one of the hub."""
        return self._model_files[wildcards.model]

    def made_by(self, stage: str) -> list[str]:
        """The models that a stage makes."""
        return [model for model in self.plan.config["models"] if self.plan.model_stage(model) == stage]

    def parent(self, wildcards: Any) -> Files:
        """The model that a model is trained from, and its prompts."""
        parent = self.plan.model_parent(wildcards.model)
        return {"init": paths.MODEL.format(model=parent), "prompts": self.prompts_pattern.format(model=parent)}

    def fine_tuned(self, wildcards: Any) -> Files:
        """The model that a model is fine-tuned from, its prompts and, where it learns some, the samples."""
        sample = self.plan.samples_of(wildcards.model)
        return {**self.parent(wildcards), **({"samples": paths.SAMPLES.format(sample=sample)} if sample else {})}

    def sampled(self, wildcards: Any) -> Files:
        """The model whose answers are sampled, and its prompts."""
        model = self.plan.samples[wildcards.sample]["from"]
        return {"model": paths.MODEL.format(model=model), "prompts": self.prompts_pattern.format(model=model)}

    def reference_teacher(self) -> str:
        """The teacher that models are compared with."""
        return paths.MODEL.format(model=self.plan.reference_teacher())

    def student(self, wildcards: Any) -> str:
        """The student of a job's run."""
        return paths.MODEL.format(model=self.plan.roles(self.run_of(wildcards))[0])

    def teacher(self, wildcards: Any) -> str:
        """The teacher of a job's run."""
        return paths.MODEL.format(model=self.plan.roles(self.run_of(wildcards))[1])

    def prompts(self, wildcards: Any) -> str:
        """The prompts of a job's run, which its student's tokenizer made."""
        return self.prompts_pattern.format(model=self.plan.roles(self.run_of(wildcards))[0])

    def task_prompts(self, wildcards: Any) -> str:
        """The prompts that a run's student makes of another task."""
        return paths.PROMPTS.format(task=wildcards.task, model=self.plan.roles(wildcards.run)[0])

    # The chain of a run's states.

    def checkpoint(self, run: str, seed: int | str, step: int) -> Files:
        """What defines the weights after a step: the state and a trigger's decision; the student at step 0."""
        if step == 0:
            return {"state": paths.MODEL.format(model=self.plan.roles(run)[0])}
        where = {"run": run, "seed": seed, "step": step}
        files = {"state": paths.STATE.format(**where)}
        if step in self.plan.triggers(run):
            files["decision"] = paths.DECISION.format(**where)
        return files

    def start(self, wildcards: Any) -> Files:
        """The checkpoint from which a segment, or a staged step, starts."""
        step = self.plan.previous_state(wildcards.run, int(wildcards.step))
        return self.checkpoint(wildcards.run, wildcards.seed, step)

    def permission(self, wildcards: Any) -> list[str]:
        """For what starts at step 0, the checks that say that it may."""
        if self.plan.previous_state(wildcards.run, int(wildcards.step)) > 0:
            return []
        return [paths.PREFLIGHT.format(pair=self.plan.preflight(wildcards.run))]

    def end(self, wildcards: Any) -> Files:
        """The checkpoint at a step."""
        return self.checkpoint(wildcards.run, wildcards.seed, int(wildcards.step))

    def anchor(self, wildcards: Any) -> Files:
        """The checkpoint from which the update at a trigger is measured, as `anchor` and `anchor_decision`."""
        step = self.plan.previous_trigger(wildcards.run, int(wildcards.step))
        files = self.checkpoint(wildcards.run, wildcards.seed, step)
        names = {"state": "anchor", "decision": "anchor_decision"}
        return {names[name]: path for name, path in files.items()}

    def candidates(self, wildcards: Any) -> list[str]:
        """What the gate said at a trigger: in one file, or in one for each coefficient."""
        where = {"run": wildcards.run, "seed": wildcards.seed, "step": wildcards.step}
        each = [paths.CANDIDATE.format(coefficient=f"{c:g}", **where) for c in self.plan.candidates(wildcards.run)]
        return each or [paths.CANDIDATES.format(**where)]

    def history(self, wildcards: Any) -> dict[str, list[str]]:
        """Every state and decision of a run and seed."""
        return self._history(wildcards.run, wildcards.seed, self.plan.boundaries(wildcards.run))

    def _history(self, run: str, seed: int | str, steps: Iterable[int]) -> dict[str, list[str]]:
        checkpoints = [self.checkpoint(run, seed, step) for step in steps]
        return {
            "states": [files["state"] for files in checkpoints],
            "decisions": [files["decision"] for files in checkpoints if "decision" in files],
        }

    # What is made of kept states.

    def behind(self, wildcards: Any) -> dict[str, list[str]]:
        """What a prediction at a step is made from: kept states, decisions and, if it asks for them, validations."""
        name, step, seed = wildcards.prediction, int(wildcards.step), wildcards.seed
        run, validated = self.plan.predicted_from(name), self.plan.validated_behind(name, step)
        validations = _expand(paths.VALIDATION, run=[run], seed=[seed], step=validated)
        return {**self._history(run, seed, self.plan.states_behind(name, step)), "validations": validations}

    def kept(self, wildcards: Any) -> dict[str, list[str]]:
        """What a subject kept: the states and decisions of a run and seed, or a model."""
        folder, name = wildcards.subject.split("/")
        if folder == "models":
            return {"states": [paths.MODEL.format(model=name)], "decisions": []}
        return self._history(folder, name.removeprefix("seed"), self.plan.boundaries(folder))

    def linearization(self, wildcards: Any) -> str:
        """The linearization of a run's student, towards its teacher."""
        student, teacher = self.plan.roles(wildcards.run)
        return paths.LINEARIZATION.format(student=student, teacher=teacher)

    def figure_of_weights(self, wildcards: Any) -> list[str]:
        """What a figure on weights is drawn from."""
        if wildcards.figure == "local_theory":
            return self.local_theory_tables()
        return [*self.dynamics_tables(), *self.weight_analyses()]

    # All there is of a kind: targets, and inputs of tables and report.

    def decisions(self) -> list[str]:
        """The decision of every trigger."""
        plan = self.plan
        return _at(
            paths.DECISION,
            [(run, seed, step) for run in plan.runs for seed in plan.seeds for step in plan.triggers(run)],
        )

    def models(self) -> list[str]:
        """Every model and its evaluation."""
        return _expand(paths.MODEL, model=self.plan.config["models"]) + self.model_evaluations()

    def model_evaluations(self) -> list[str]:
        """The evaluation of every model."""
        return _expand(paths.MODEL_EVALUATION, model=self.plan.config["models"])

    def every_prompts(self, tasks: Iterable[str]) -> list[str]:
        """The prompts that every model makes of the tasks."""
        return _expand(paths.PROMPTS, task=tasks, model=self.plan.config["models"])

    def collected(self, *tables: str) -> list[str]:
        """Tables of every run and seed: `metrics`, `cost`."""
        return _expand(paths.COLLECTED, run=self.plan.runs, seed=self.plan.seeds, table=tables)

    def predictions(self) -> list[str]:
        """All predicted weights."""
        return _at(paths.PREDICTION, self.plan.predicted_points(), of="prediction")

    def evaluations(self) -> list[str]:
        """The evaluation of every kept state, and of all predicted weights."""
        return _at(paths.EVALUATION, [*self.plan.points(), *self.plan.predicted_points()])

    def task_evaluations(self) -> list[str]:
        """The evaluation of every model and of every last state on the other tasks."""
        tasks = self.plan.other_tasks
        of_models = _expand(paths.TASK_MODEL_EVALUATION, task=tasks, model=self.plan.config["models"])
        return of_models + [
            path for task in tasks for path in _at(paths.TASK_EVALUATION, self.plan.last_points(), task=task)
        ]

    def weight_analyses(self) -> list[str]:
        """The analysis of every subject's weights."""
        return _expand(paths.WEIGHT_ANALYSIS, subject=self.plan.dynamics_subjects())

    def dynamics(self) -> list[str]:
        """What is known of every subject's weights."""
        chosen = self.plan.config["dynamics"]["interventions"]
        subjects = self.plan.dynamics_subjects() if chosen else []
        return self.weight_analyses() + _expand(paths.INTERVENTIONS, subject=subjects)

    def linearizations(self) -> list[str]:
        """The linearization of every student that there is one of."""
        return [paths.LINEARIZATION.format(student=s, teacher=t) for s, t in self.plan.linearized]

    def local_theories(self) -> list[str]:
        """What the local theory says of every run and seed that is looked into; nothing if it is off."""
        runs = self.plan.dynamics_runs if self.plan.linearized else []
        return _expand(paths.LOCAL_THEORY, run=runs, seed=self.plan.dynamics_seeds)

    def kept_artifacts(self) -> list[str]:
        """What is made again when it is deleted, though everything made from it is there."""
        made = [*_expand(paths.DATA, task=self.tasks), *self.models(), *_at(paths.STATE, self.plan.points())]
        measured = [*self.evaluations(), *self.task_evaluations(), *self.dynamics()]
        return [*made, *self.decisions(), *self.predictions(), *measured]

    # Tables and figures.

    def tables(self) -> list[str]:
        """The tables of the comparison."""
        return _tables(TABLES)

    def source_table(self) -> list[str]:
        """The table by source of the test problems; nothing if they have but one."""
        return _tables(["sources"] if self.plan.several_sources else [])

    def task_table(self) -> list[str]:
        """The table of the other tasks; nothing if there are none."""
        return _tables(["tasks"] if self.plan.other_tasks else [])

    def dynamics_tables(self) -> list[str]:
        """The tables on weights; nothing if they are not looked into."""
        return _tables(self.plan.dynamics_tables())

    def local_theory_tables(self) -> list[str]:
        """The tables of the local theory; nothing if it is off."""
        return _tables(LOCAL_THEORY_TABLES if self.plan.linearized else [])

    def dynamics_pages(self) -> list[str]:
        """What the report says and links of the weights; nothing if they are not looked into."""
        if not self.plan.dynamics_subjects():
            return []
        return [*_tables(["paper_claims"]), paths.EXPLORER, *self.local_theory_tables()]

    def figures(self, *kinds: str) -> list[str]:
        """All figures in files of these kinds: `svg`, `png`."""
        return _expand(paths.FIGURE, figure=self.plan.figures(), kind=kinds)


def _expand(pattern: str, **values: Iterable[Any]) -> list[str]:
    """A pattern's paths, one for each combination of the values of its wildcards."""
    return [pattern.format(**dict(zip(values, chosen, strict=True))) for chosen in itertools.product(*values.values())]


def _at(pattern: str, places: Iterable[Place], of: str = "run", **values: str) -> list[str]:
    """A pattern's paths, one for each place; `of` is the wildcard that a place's name is the value of."""
    return [pattern.format(**{of: name}, seed=seed, step=step, **values) for name, seed, step in places]


def _tables(names: Iterable[str]) -> list[str]:
    return _expand(paths.TABLE, table=names)
