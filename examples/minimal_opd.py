"""EffOPD in one file: evaluate, sample, score, train, extrapolate, log.

    python examples/minimal_opd.py results --run effopd --seed 0 --steps 8 --out trained

trains a finished run's student again, in one process; on a CPU it ends with the run's weights, to the bit. Left out:
several ranks, LoRA, extrapolation within steps, gates on rollouts or by difficulty, resuming a killed run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from effopd.artifacts.folders import new_folder
from effopd.artifacts.manifests import read_manifest
from effopd.common.errors import UserError
from effopd.common.randomness import seed_of
from effopd.data.prompts import Prompts, load_prompts
from effopd.distillation.learner import teacher_head_of, teacher_of
from effopd.distillation.step import generate_rollouts, update_policy
from effopd.engines.base import RolloutEngine, build_engine, longest_context
from effopd.evaluation.measure import Measurement, measure
from effopd.extrapolation.candidates import RayInMemory, moving_or_refuse
from effopd.extrapolation.driver import extrapolate
from effopd.extrapolation.gate import GateValue, gate_rows, gate_seeds
from effopd.extrapolation.modules import by_module
from effopd.models import models
from effopd.models.lm_head import restricted
from effopd.specs.engines import Sampling
from effopd.specs.read import read_spec
from effopd.tasks.base import build_task
from effopd.training.trainer import Trainer, TrainerSettings
from effopd.workflow.job_specs import Plan

CPU = torch.device("cpu")


class Run:
    """A run of a results folder: its settings, and its student and teacher from the start on."""

    def __init__(self, results: Path, name: str, seed: int) -> None:
        self.plan, self.seed = Plan.of_results(results), seed
        if name not in self.plan.runs:
            raise UserError(f"{results} has no run `{name}`. Name one of: {', '.join(self.plan.runs)}.")
        job = {"run": name, "seed": str(seed), "step": str(self.plan.boundaries(name)[0])}
        self.spec, gate = (read_spec(s, self.plan.spec(s, **job)) for s in ("train_segment", "evaluate_candidates"))
        self.training, self.extrapolation = self.spec.training, gate.extrapolation
        self.triggers, self.moments = self.plan.triggers(name), self.plan.runs[name]["extrapolation"]["moments"]
        if self.training.lora or self.plan.every_step(name) or self.extrapolation.gate.source == "rollouts":
            raise UserError(f"`{name}` is a run that this example leaves out. Choose another one.")
        self.student_folder, self.teacher_folder = (results / "models" / role for role in self.plan.roles(name))
        prompts = results / f"data/{self.plan.task_name}/prompts-{self.student_folder.name}/manifest.json"
        self.prompts, self.tokenizer = read_manifest(prompts, "prompts"), models.load_tokenizer(self.student_folder)
        model, self.probe = (restricted(models.load_model(self.student_folder, CPU), self.tokenizer) for _ in (1, 2))
        self.trainer = Trainer(model, TrainerSettings.of(self.training))
        self.teacher = models.load_frozen(self.teacher_folder, CPU)

    def engine(self, model: Any, prompts: Sequence[Sequence[int]], batch_size: int) -> closing[RolloutEngine]:
        """What generates with a model, until the end of a `with` block."""
        context = longest_context(prompts, self.training.max_new_tokens)
        return closing(build_engine(self.spec.engine, model, self.tokenizer, batch_size=batch_size, context=context))

    def ask(self, weights: Any, problems: Prompts, seeds: Any, temperature: float, batch_size: int) -> Measurement:
        """The answers that weights give to problems: verified, with their reverse KL to the teacher."""
        models.load_weights_into(self.probe, weights)
        task, sampling = build_task(self.plan.task()), Sampling(temperature, self.training.max_new_tokens)
        with self.engine(self.probe, problems.tokens, batch_size) as engine:
            return measure(
                engine, task, self.tokenizer, problems, seeds, sampling, range(len(problems)), student=self.probe,
                teacher=self.teacher, batch_size=batch_size, policy_temperature=temperature,
            )  # fmt: skip


class ProblemGate(NamedTuple):
    """Judges weights by their answers to a few problems: extrapolation.gate.Gate."""

    run: Run
    step: int
    weights: Callable[[], models.Weights]

    def judge(self, coefficient: float) -> GateValue:
        settings, seed = self.run.extrapolation.gate, self.run.seed
        problems = load_prompts(self.run.prompts, settings.source)
        rows = gate_rows(seed, settings.source, len(problems), settings.examples, settings.samples)
        seeds = gate_seeds(seed, self.step, coefficient, len(rows), settings.paired)
        answers = self.run.ask(self.weights(), problems.select(rows), seeds, self.run.training.temperature, len(rows))
        if settings.metric == "accuracy":
            return GateValue(answers.accuracy, answers.accuracy, answers.items["reward"].tolist())
        return GateValue(answers.reverse_kl, -answers.reverse_kl, answers.items["reverse_kl"].tolist())


def evaluate(run: Run) -> Measurement:
    """The student's answers to the test split; all weights meet the same random numbers."""
    settings, problems = run.plan.config["evaluation"], load_prompts(run.prompts, "test")
    rows = [row for row in range(len(problems)) for _ in range(settings["samples"])]
    seeds = [seed_of(settings["seed"], "evaluation", position) for position in range(len(rows))]
    return run.ask(run.trainer.weights(), problems.select(rows), seeds, settings["temperature"], settings["batch_size"])


def distill(run: Run, steps: int) -> Iterator[dict[str, Any]]:
    """Train on the student's own rollouts; extrapolate at triggers. Yields the metrics of each step."""
    training, settings, trainer = run.training, run.extrapolation, run.trainer
    prompts, (_, pad_id) = load_prompts(run.prompts, "train").tokens, models.special_ids(run.tokenizer)
    scorer = teacher_of(training, run.student_folder, run.teacher_folder, run.tokenizer, CPU)
    head = teacher_head_of(training, run.teacher_folder, run.tokenizer, CPU)
    anchor = trainer.weights()
    with run.engine(trainer.model, prompts, training.batch_size) as engine:
        for step in range(1, steps + 1):
            rollouts = generate_rollouts(engine, prompts, training, run.seed, step)
            scores = scorer.score(rollouts)
            metrics: dict[str, Any] = update_policy(trainer, rollouts, scores, training, step, pad_id, head)
            if step in run.triggers:
                current = trainer.weights()
                ray = RayInMemory(current, anchor, by_module(moving_or_refuse(current, settings.parameters)))
                decision = extrapolate(ray, ProblemGate(run, step, ray.weights), settings)
                anchor = ray.weights() if settings.anchor == "accepted" else current
                if decision.coefficient != 0:
                    trainer.load_weights(ray.weights())
                    trainer.rescale_optimizer_state(run.moments, decision.coefficient)
                metrics["coefficient"] = decision.coefficient
            yield {"step": step, **metrics}


@click.command(help=__doc__)
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--run", "name", required=True, help="Whose models, prompts and settings to take.")
@click.option("--seed", type=int, default=0)
@click.option("--steps", type=click.IntRange(1), help="Default: those of the run.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write the trained model, a Hugging Face folder.")
def main(results: Path, name: str, seed: int, steps: int | None, out: Path | None) -> None:
    try:
        with new_folder(out) if out is not None else nullcontext() as folder:
            run = Run(results, name, seed)
            print(f"accuracy before training: {evaluate(run).accuracy:.3f}")
            for metrics in distill(run, steps or run.plan.runs[name]["training"]["steps"]):
                print(", ".join(f"{name} {value:.4g}" for name, value in metrics.items()), flush=True)
            print(f"accuracy after training: {evaluate(run).accuracy:.3f}")
            if folder:
                models.save_model(run.trainer.model.config, run.trainer.weights(), run.tokenizer, folder)
    except UserError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
