"""EffOPD as a callback of Hugging Face's Trainer, and so of TRL's: see docs/integrations.md."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from effopd.artifacts.manifests import read_json, write_json, write_manifest
from effopd.common.errors import UserError
from effopd.common.progress import say
from effopd.config.renamed_keys import takes_ties
from effopd.extrapolation.candidates import delta_norms, moving_parameters
from effopd.extrapolation.driver import extrapolate
from effopd.extrapolation.modules import by_module
from effopd.extrapolation.schedule import EVERY_STEP, powers_of_two, trigger_steps
from effopd.integrations.gates import Judge, ModelGate, name_of
from effopd.integrations.master_weights import MasterRay, MasterWeights, rank
from effopd.models.models import Weights, load_tensors, save_tensors
from effopd.specs.extrapolation import LINE_BY_MODULE, SearchSettings

STATE, ANCHOR = "effopd.json", "effopd_anchor.safetensors"  # in the Trainer's checkpoints
SEARCHES = ("first_failure", "all", "line", LINE_BY_MODULE)
TRIGGERS = ("powers_of_two", EVERY_STEP, "none")


class EffOPDCallback(TrainerCallback):
    """Extrapolates the weights of a Trainer at its triggers (paper section 2).

    At a trigger the update since the anchor is tried further: W + c (W - anchor) for each coefficient that the search
    asks about is put into the model, the gate judges it, and training goes on from what was accepted. Optimizer
    moments, schedule, step counter and data order stay as they are. Each decision is written to
    `<output_dir>/extrapolation/<step>/decision.json`; the anchor goes into every checkpoint and comes back on resume.

    The arguments are the workflow's `extrapolation` settings. `resume_from` is only needed where the Trainer resumes
    from a checkpoint outside its `output_dir`. Raises UserError if a setting is unknown.
    """

    def __init__(
        self,
        gate: Judge,
        *,
        triggers: str | Sequence[int] = "powers_of_two",
        coefficients: Sequence[float] = (2, 4, 6, 8, 10),
        search: str = "first_failure",
        accept_ties: bool = True,
        anchor: str = "accepted",
        parameters: str = "attention_mlp",
        resume_from: str | Path | None = None,
        accept: str | None = None,
    ) -> None:
        if accept is not None:
            say("effopd: warning: EffOPDCallback: `accept` is called `accept_ties` now; '>=' is True, '>' is False.")
            accept_ties = takes_ties(accept)
        for name, value, known in (
            ("search", search, SEARCHES),
            ("accept_ties", accept_ties, (True, False)),
            ("anchor", anchor, ("accepted", "raw")),
        ):
            if value not in known:
                raise UserError(f"EffOPDCallback: {name!r} is {value!r}. Use one of {', '.join(map(str, known))}.")
        if isinstance(triggers, str) and triggers not in TRIGGERS:
            raise UserError(
                f"EffOPDCallback: 'triggers' is {triggers!r}. Use one of {', '.join(TRIGGERS)}, or a list of steps."
            )
        self.gate = gate
        self.settings: dict[str, Any] = {
            "triggers": triggers if isinstance(triggers, str) else list(triggers),
            "coefficients": list(coefficients),
            "search": search,
            "accept_ties": accept_ties,
            "anchor": anchor,
            "parameters": parameters,
        }
        self.resume_from = Path(resume_from) if resume_from else None
        self.decisions: list[dict[str, Any]] = []  # the results of the decisions so far
        self._anchor: Weights = {}  # on the first rank
        self._previous = 1.0  # where a line search after every step starts, on all ranks

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the anchor: the weights at the start, or the checkpoint's."""
        try:
            self._triggers = self._planned(state.max_steps)
            self._masters = MasterWeights(kwargs["model"])
            self._moving = moving_parameters(self._masters.parameters, self.settings["parameters"])
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
        self._previous = self.decisions[-1]["coefficient"] if self.decisions else 1.0
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
        started, current = time.time(), self._masters.read()
        ray = MasterRay(current, self._anchor, by_module(self._moving), self._masters)
        settings = SearchSettings(*(self.settings[name] for name in ("search", "coefficients", "accept_ties")))
        previous = self._previous if self.settings["triggers"] == EVERY_STEP else 1.0
        warn = f"effopd: warning: step {step}: " if rank() == 0 else None
        decision = extrapolate(ray, ModelGate(self.gate, model, step), settings, previous=previous, warn=warn)
        self._previous = decision.coefficient
        if rank() != 0:
            return
        metric = getattr(self.gate, "metric", name_of(self.gate))
        result = decision.record(step, metric=metric, update_norm=ray.update_norm())
        self.decisions.append(result)
        spec = {"extrapolation": self.settings, "step": step}
        path = output / f"extrapolation/{step}/decision.json"
        write_manifest(
            path, kind="decision", spec=spec, parents={}, result=result, cost=decision.costs, started=started
        )
        say(f"effopd: step {step}: {decision}")
        if self.settings["anchor"] == "accepted":
            current.update((name, ray.tensor(name)) for name in self._moving)  # one at a time: a model may be large
        self._anchor = current
