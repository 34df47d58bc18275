"""EffOPD as a callback of Hugging Face's Trainer, and so of TRL's: see docs/integrations.md."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from effopd.artifacts.cost import cost_row
from effopd.artifacts.manifests import read_json, write_json, write_manifest
from effopd.common.errors import UserError
from effopd.common.progress import say
from effopd.extrapolation.candidates import candidate, delta_norms, moving_parameters
from effopd.extrapolation.gate import GateValue, decision, score_of
from effopd.extrapolation.modules import LINE_BY_MODULE, by_module, refine
from effopd.extrapolation.schedule import EVERY_STEP, powers_of_two, trigger_steps
from effopd.extrapolation.search import ACCEPT, Outcome, first_step, search
from effopd.integrations.gates import checked_value
from effopd.integrations.master_weights import MasterWeights, rank, ranks
from effopd.models.models import Weights, load_tensors, save_tensors

STATE, ANCHOR = "effopd.json", "effopd_anchor.safetensors"  # in the Trainer's checkpoints
SEARCHES = ("first_failure", "all", "line", LINE_BY_MODULE)
TRIGGERS = ("powers_of_two", EVERY_STEP, "none")


class Gate(Protocol):
    """Whoever judges weights; a plain function that returns a number does, higher being better."""

    def __call__(self, model: PreTrainedModel, step: int, coefficient: float) -> GateValue | float:
        """How good the model is with the weights that are in it: a candidate's, or at coefficient 0 those of `step`."""


class EffOPDCallback(TrainerCallback):
    """Extrapolates the weights of a Trainer at its triggers (paper section 2).

    At a trigger the update since the anchor is tried further: W + c (W - anchor) for each coefficient that the search
    asks about is put into the model, the gate judges it, and training goes on from what was accepted. Optimizer
    moments, schedule, step counter and data order stay as they are. Each decision is written to
    `<output_dir>/extrapolation/<step>/ledger.json`; the anchor goes into every checkpoint and comes back on resume.

    The arguments are the workflow's `extrapolation` settings. `resume_from` is only needed where the Trainer resumes
    from a checkpoint outside its `output_dir`. Raises UserError where a setting is unknown.
    """

    def __init__(
        self,
        gate: Gate,
        *,
        triggers: str | Sequence[int] = "powers_of_two",
        coefficients: Sequence[float] = (2, 4, 6, 8, 10),
        search: str = "first_failure",
        accept: str = ">=",
        anchor: str = "accepted",
        parameters: str = "attention_mlp",
        resume_from: str | Path | None = None,
    ) -> None:
        for name, value, known in (
            ("search", search, SEARCHES),
            ("accept", accept, tuple(ACCEPT)),
            ("anchor", anchor, ("accepted", "raw")),
        ):
            if value not in known:
                raise UserError(f"EffOPDCallback: {name!r} is {value!r}. Use one of {', '.join(known)}.")
        if isinstance(triggers, str) and triggers not in TRIGGERS:
            raise UserError(
                f"EffOPDCallback: 'triggers' is {triggers!r}. Use one of {', '.join(TRIGGERS)}, or a list of steps."
            )
        self.gate = gate
        self.settings: dict[str, Any] = {
            "triggers": triggers if isinstance(triggers, str) else list(triggers),
            "coefficients": list(coefficients),
            "search": search,
            "accept": accept,
            "anchor": anchor,
            "parameters": parameters,
        }
        self.resume_from = Path(resume_from) if resume_from else None
        self.decisions: list[dict[str, Any]] = []  # the results of the ledgers so far
        self._anchor: Weights = {}  # on the first rank

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the anchor: the weights at the start, or the checkpoint's."""
        try:
            self._triggers = self._planned(state.max_steps)
            self._masters = MasterWeights(kwargs["model"])
            self._moving = moving_parameters(self._masters.parameters, self.settings["parameters"])
            self._modules = by_module(self._moving) if self._refines else {"": self._moving}
        except ValueError as error:
            raise UserError(f"EffOPDCallback: {error}") from None
        weights = self._masters.read()
        if state.global_step == 0:
            self._anchor = weights
        else:
            self._restore(self.resume_from or Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", weights)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Extrapolate, if this step is a trigger."""
        if state.global_step in self._triggers:
            if hasattr(self.gate, "trainer_state"):
                self.gate.trainer_state = state
            self._extrapolate(kwargs["model"], state.global_step, Path(str(args.output_dir)))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the anchor and the decisions into the checkpoint that the Trainer has just written."""
        weights = self._masters.read()
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if rank() == 0 and folder.is_dir():
            save_tensors(folder / ANCHOR, self._anchor)
            norm = delta_norms(weights, self._anchor, self._moving)["all"]
            entry = {"step": state.global_step, "from_anchor": norm, "settings": self.settings}
            write_json(folder / STATE, {**entry, "decisions": self.decisions})

    def _planned(self, steps: int) -> list[int]:
        setting = self.settings["triggers"]
        return powers_of_two(steps) if setting == "powers_of_two" else trigger_steps(setting, steps)

    def _restore(self, checkpoint: Path, weights: Weights) -> None:
        if not (checkpoint / STATE).is_file():
            raise UserError(
                f"{checkpoint} lacks {STATE}: without the anchor saved there, the next update would be measured from "
                "the wrong weights. Resume from a checkpoint of a run with EffOPDCallback, and give its folder as "
                "`resume_from` where it is not in `output_dir`."
            )
        saved = read_json(checkpoint / STATE)
        self.decisions = saved["decisions"]
        if rank() != 0:
            return
        self._anchor = load_tensors(checkpoint / ANCHOR)
        norm = delta_norms(weights, self._anchor, self._moving)["all"]
        if abs(norm - saved["from_anchor"]) > 1e-6 * max(norm, saved["from_anchor"]):
            raise UserError(
                f"the weights that training resumes from are not those of {checkpoint} (they are {norm:.6g} from its "
                f"anchor, not {saved['from_anchor']:.6g}). Give the checkpoint's folder as `resume_from`."
            )

    def _extrapolate(self, model: PreTrainedModel, step: int, output: Path) -> None:
        started = time.time()
        current = self._masters.read()
        values: dict[float, dict[str, Any]] = {}
        costs: list[dict[str, Any]] = []

        def put(coefficients: Mapping[str, float]) -> None:
            for module, names in self._modules.items():
                self._masters.write(names, partial(self._candidate, current, coefficient=coefficients[module]))

        def judged(coefficient: float) -> GateValue:
            working = time.perf_counter()
            value = self._judge(model, step, coefficient)
            costs.append({**cost_row("gate", step, time.perf_counter() - working), "coefficient": coefficient})
            return value

        def score(coefficient: float) -> float:
            if coefficient != 0:
                put(dict.fromkeys(self._modules, coefficient))
            values[coefficient] = judged(coefficient).entry(coefficient)
            return score_of(values[coefficient])

        def refined(coefficients: Mapping[str, float]) -> float:
            put(coefficients)
            return score_of(
                judged(outcome.coefficient).entry(0.0)
            )  # draws as of the candidate that it is compared with

        chosen, tried = dict.fromkeys(self._modules, 0.0), 0
        try:
            outcome = search(
                "line" if self._refines else self.settings["search"],
                score,
                score(0.0),
                self.settings["coefficients"],
                self.settings["accept"],
                self._first_step(),
            )
            found = dict.fromkeys(self._modules, outcome.coefficient)
            if self._refines:
                found, tried = refine(refined, outcome, self._modules, self.settings["accept"])
            chosen = found
        finally:  # also when the gate fails: no candidate stays in the model
            put(chosen)
        if rank() == 0:
            own = {"modules": chosen, "module_trials": tried} if self._refines else {}
            self._note(step, outcome, values, own, costs, current, output, started)
            if self.settings["anchor"] == "accepted":
                for module, names in self._modules.items():
                    for name in names:  # one at a time: a model may be large
                        current[name] = self._candidate(current, name, chosen[module])
            self._anchor = current

    @property
    def _gate_name(self) -> str:
        return str(getattr(self.gate, "__name__", type(self.gate).__name__))

    @property
    def _refines(self) -> bool:
        """Whether a line search goes on by module."""
        return bool(self.settings["search"] == LINE_BY_MODULE)

    def _first_step(self) -> float:
        """Where a line search starts: after every step, where the last one ended."""
        if self.settings["triggers"] != EVERY_STEP or not self.decisions:
            return 1.0
        return first_step(self.decisions[-1]["coefficient"])

    def _candidate(self, current: Weights, name: str, coefficient: float) -> torch.Tensor:
        if coefficient == 0:
            return current[name]
        return candidate({name: current[name]}, {name: self._anchor[name]}, coefficient, [name])[name]

    def _judge(self, model: PreTrainedModel, step: int, coefficient: float) -> GateValue:
        """Ask the gate on every rank, and go by what it says on the first."""
        training = model.training
        model.eval()
        try:
            with torch.random.fork_rng():  # a gate that samples leaves the training's random numbers alone
                found = self.gate(model, step, coefficient)
        finally:
            model.train(training)
        value = checked_value(found, self._gate_name)
        if ranks() == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def _note(
        self,
        step: int,
        outcome: Outcome,
        values: dict[float, dict[str, Any]],
        own: dict[str, Any],
        costs: list[dict[str, Any]],
        current: Weights,
        output: Path,
        started: float,
    ) -> None:
        result = own | decision(
            step,
            outcome,
            values,
            accept=self.settings["accept"],
            metric=getattr(self.gate, "metric", self._gate_name),
            update_norm=delta_norms(current, self._anchor, self._moving),
        )
        self.decisions.append(result)
        spec = {"extrapolation": self.settings, "step": step}
        path = output / f"extrapolation/{step}/ledger.json"
        write_manifest(path, kind="ledger", spec=spec, parents={}, result=result, cost=costs, started=started)
        if outcome.warning:
            say(f"effopd: warning: step {step}: {outcome.warning}")
        say(f"effopd: step {step}: coefficient {outcome.coefficient:g} ({outcome.reason})")
