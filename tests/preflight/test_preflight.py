"""The checks before training: each passes on a good pair and fails on one that is wrong in its way."""

from __future__ import annotations

import copy
import json
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from effopd.artifacts.manifests import read_json, write_manifest
from effopd.common.errors import ConfigError, PreflightError, UserError
from effopd.config.runtime_options import VARIABLE
from effopd.config.schema import schema
from effopd.engines.base import Sampling
from effopd.engines.transformers_engine import TransformersEngine
from effopd.models.models import save_model, weights_of
from effopd.preflight.agreement import (
    check_determinism,
    check_engine,
    check_identity,
    check_start,
    check_weights,
)
from effopd.preflight.findings import Checks, failed, passed
from effopd.preflight.judging import check_accuracy, check_gate, check_verifier
from effopd.preflight.resources import available_memory, check_disk, check_memory, free_disk
from effopd.preflight.tokens import check_chat_template, check_eos, check_lengths, check_tokenizer
from effopd.specs.preflight import CheckedGate
from effopd.specs.read import read_spec
from effopd.specs.updates import HoldingSettings, LoraSettings
from effopd.stages import preflight as stage
from effopd.stages.make_data import make_data
from effopd.stages.preflight import OF_STUDENT, OF_TEACHER, preflight
from effopd.stages.tokenize_prompts import tokenize_prompts
from effopd.tasks.arithmetic import CHARACTERS, EOS, PAD
from effopd.tasks.base import Problem, Verdict
from effopd.teachers.scoring import LocalTeacher, measure_reverse_kl
from effopd.training.lora import factors_size
from effopd.workflow.estimates.architecture import Architecture, of_config
from effopd.workflow.estimates.memory import (
    activation_bytes,
    logits_bytes,
    lora_update_bytes,
    resident_bytes,
    state_bytes,
    trained_bytes,
    update_bytes,
)
from effopd.workflow.estimates.parts import of_run
from effopd.workflow.job_specs import Plan
from teacher_server import Behavior, serving
from tiny_models import TASK_SECTION, make_model

CPU = torch.device("cpu")
SHAPE = Architecture(64, 192, 4, 4, 2, 16, 100, True)
PROBLEMS = [Problem("7+8+5=", "20"), Problem("1+2+3=", "6"), Problem("9+9=", "18")]
PROMPTS = [[9, 12, 10, 12, 7, 13], [3, 12, 4, 12, 5, 13], [11, 12, 11, 13]]
CONFIG = {"models": {"base": {"kind": "pretrain"}, "teacher": {"kind": "grpo", "init": "base"}}, "runs": {"opd": {}}}
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def make_tokenizer(characters=CHARACTERS, eos=EOS, template=None):
    """The arithmetic task's tokenizer, or one with other characters, end or template."""
    tokens = [PAD, EOS, *characters]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=eos)
    made.chat_template = template
    return made


def rollouts_of(model, tokenizer, new_tokens=8):
    engine = TransformersEngine(model, eos_id=1, pad_id=0, batch_size=2)
    return engine.generate(PROMPTS, [1, 2, 3], Sampling(1.0, new_tokens))


def scores_of(model, rollouts):
    return LocalTeacher(model, pad_id=0, batch_size=2).score(rollouts).logprobs


# tokens


def test_tokenizer(tokenizer):
    def check(teacher, rows=None):
        return check_tokenizer("tokenizer", tokenizer, teacher, rows or {"student": 16, "teacher": 16}, ["7+8+5="])

    assert check(make_tokenizer()).outcome == "passed"
    padded = check(make_tokenizer(), {"student": 16, "teacher": 64})
    assert (padded.outcome, padded.measured) == ("passed", "16 tokens, embeddings of 16 and 64 rows")
    order = check(make_tokenizer("1023456789+=,#"))
    assert order.outcome == "failed"
    assert "2 of 16 tokens have two ids ('0' is 2 for the student and 3 for the teacher)" in order.measured
    renamed = check(make_tokenizer("0123456789+=,?"))
    assert renamed.outcome == "failed"
    assert "15 is '#' and '?'" in renamed.measured
    short = check(make_tokenizer(), {"student": 16, "teacher": 15})
    assert short.outcome == "failed"
    assert "15 rows for ids up to 15" in short.measured
    assert check(make_tokenizer(CHARACTERS + "?")).outcome == "warned"


def test_a_tokenizer_that_splits_text_otherwise_is_found(tokenizer):
    other = make_tokenizer()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = check_tokenizer("tokenizer", tokenizer, other, {"student": 16, "teacher": 16}, ["7+8="])
    assert found.outcome == "failed"
    assert "'7+8=' is split into other tokens" in found.measured


def test_end_of_sequence(tokenizer):
    def check(teacher=tokenizer, student_ids=(1,), teacher_ids=(1,)):
        return check_eos("eos", tokenizer, teacher, {"student": student_ids, "teacher": teacher_ids})

    assert check().outcome == "passed"
    assert check(student_ids=()).outcome == "passed"  # a generation config that says nothing
    other = check(make_tokenizer(eos="#"))
    assert other.outcome == "failed"
    assert "ends with '</s>' (1), the teacher's with '#' (15)" in other.measured
    assert "length limit" in other.why
    config = check(teacher_ids=(7,))
    assert config.outcome == "failed"
    assert "the teacher's generation config with [7]" in config.measured
    assert check(student_ids=(1, 5)).outcome == "warned"


def test_chat_template():
    settings = {"format": "chat", "template": "{problem}", "system": "", "thinking": False, "examples": []}
    good, wrong = make_tokenizer(template=TEMPLATE), make_tokenizer(template=TEMPLATE + "=")
    none = make_tokenizer()

    def check(student, teacher, settings=settings):
        return check_chat_template("chat_template", student, teacher, ["7+8", "1+2"], settings)

    assert check(good, good).measured == "2 problems are rendered alike"
    assert check(none, none, None).outcome == "passed"
    assert check(none, none, {**settings, "format": "plain"}).outcome == "passed"
    assert "the student's tokenizer has no chat template" in check(none, good).measured
    assert "the teacher's tokenizer has no chat template" in check(good, none).measured
    differ = check(good, wrong)
    assert differ.outcome == "failed"
    assert "the prompts differ from token 3 on: '' for the student, '=' for the teacher" in differ.measured


def test_lengths():
    def check(longest=20, new=10, student=30, teacher=30, left_out=0):
        return check_lengths("lengths", longest, new, {"student": student, "teacher": teacher}, left_out, 100)

    assert check().outcome == "passed"
    assert check(student=None, teacher=None).outcome == "passed"
    short = check(teacher=29)
    assert short.outcome == "failed"
    assert "= 30 positions (limits: student 30, teacher 29)" in short.measured
    assert "the teacher writes or scores nonsense" in short.why
    many = check(left_out=25)
    assert many.outcome == "warned"
    assert "25 training prompts left out as too long (20.0%)" in many.measured


# what models compute


def test_weights(model):
    weights = dict(model.named_parameters())
    assert check_weights("w", "student", weights).outcome == "passed"
    with torch.no_grad():
        model.lm_head.weight[3, :2] = torch.nan
    found = check_weights("w", "student", weights)
    assert found.outcome == "failed"
    assert found.measured.startswith("2 of the student's ")
    assert "(2 in lm_head.weight)" in found.measured


def test_engine_and_trainer(model, other_model, tokenizer):
    rollouts = rollouts_of(model, tokenizer)
    assert check_engine("engine", rollouts.logprobs, scores_of(model, rollouts), "float32").outcome == "passed"
    stale = check_engine("engine", rollouts.logprobs, scores_of(other_model, rollouts), "float32")
    assert stale.outcome == "failed"
    assert "(allowed in float32: 0.001 at most)" in stale.measured
    shifted = [np.roll(row, 1) for row in scores_of(model, rollouts)]
    assert check_engine("engine", rollouts.logprobs, shifted, "float32").outcome == "failed"
    rounded = [torch.tensor(row).bfloat16().float().numpy() for row in scores_of(model, rollouts)]
    assert check_engine("engine", rollouts.logprobs, rounded, "float32").outcome == "failed"
    assert check_engine("engine", rollouts.logprobs, rounded, "bfloat16").outcome == "passed"
    unknown = [np.full_like(row, np.nan) for row in rollouts.logprobs]
    assert check_engine("engine", rollouts.logprobs, unknown, "bfloat16").outcome == "failed"


def test_determinism(model, tokenizer):
    rollouts = rollouts_of(model, tokenizer)
    first = scores_of(model, rollouts)
    assert check_determinism("determinism", first, scores_of(model, rollouts)).outcome == "passed"
    again = [row.copy() for row in first]
    again[1][2] = np.nextafter(again[1][2], np.float32(0))
    found = check_determinism("determinism", first, again)
    assert found.outcome == "failed"
    assert found.measured.startswith("1 of ")


def test_identity(model, other_model, tokenizer):
    rollouts = rollouts_of(model, tokenizer)

    def divergence(one, two):
        return measure_reverse_kl(one, two, rollouts, pad_id=0, batch_size=2)

    assert check_identity("identity", divergence(model, model)).outcome == "passed"
    assert check_identity("identity", divergence(model, other_model)).outcome == "failed"
    with torch.no_grad():
        model.lm_head.weight[3, 0] = torch.nan
    assert check_identity("identity", divergence(model, model)).outcome == "failed"


def test_the_divergence_at_the_start(model, other_model, tokenizer):
    rollouts = rollouts_of(model, tokenizer)
    own, other = scores_of(model, rollouts), scores_of(other_model, rollouts)
    assert check_start("start_kl", own, [row - 0.1 for row in own]).measured.startswith("reverse KL of 0.100 nats")
    same = check_start("start_kl", own, own)
    assert same.outcome == "failed"
    assert "they are the same model" in same.why
    assert check_start("start_kl", own, [row - 5 for row in own]).outcome == "warned"
    other[0][0] = -np.inf
    impossible = check_start("start_kl", own, other)
    assert impossible.outcome == "failed"
    assert impossible.measured.startswith("1 of ")


# who judges, and what there is to learn


class Generous:
    """A verifier that accepts everything."""

    def __init__(self, task):
        self.right_completion, self.wrong_completion = task.right_completion, task.wrong_completion

    def verify_all(self, problems, completions):
        return [Verdict(1.0, "fine") for _ in completions]


class Strict(Generous):
    """A verifier that accepts nothing, or all but the answers to `hard` problems."""

    def __init__(self, task, hard):
        super().__init__(task)
        self.inner, self.hard = task, hard

    def verify_all(self, problems, completions):
        return [
            Verdict(0.0, "no") if problem in self.hard else self.inner.verify(problem, completion)
            for problem, completion in zip(problems, completions, strict=True)
        ]


def test_verifier(task):
    assert check_verifier("verifier", task, PROBLEMS).measured == (
        "3 of 3 reference answers accepted, 6 of 6 wrong ones rejected"
    )
    generous = check_verifier("verifier", Generous(task), PROBLEMS)
    assert generous.outcome == "failed"
    assert "0 of 6 wrong ones rejected (first: '7+8+5=': fine)" in generous.measured
    assert check_verifier("verifier", Strict(task, PROBLEMS), PROBLEMS).outcome == "failed"
    many = PROBLEMS * 10
    assert check_verifier("verifier", Strict(task, PROBLEMS[:1]), PROBLEMS[1:] * 10 + PROBLEMS[:1]).outcome == "warned"
    assert check_verifier("verifier", task, many).outcome == "passed"


def test_the_teachers_lead():
    def check(student, teacher, finished=(1.0, 1.0)):
        return check_accuracy("accuracy", student, teacher, finished, 24)

    assert check([0, 1, 0], [1, 1, 1]).outcome == "passed"
    assert check([0, 1, 1], [1, 1, 0]).outcome == "warned"
    cut = check([0, 1, 0], [1, 1, 1], (1.0, 0.3))
    assert cut.outcome == "warned"
    assert "100% and 30% ended within 24 tokens" in cut.measured


GATE = {
    "runs": ["effopd"], "search": "first_failure", "coefficients": [2, 4, 6, 8, 10], "accept_ties": True,
    "examples": 50, "samples": 1, "paired": False,
}  # fmt: skip


def gate_finding(right, asked, finished=1.0, **overrides):
    """What the check says of gates that differ from GATE in one thing each, or in all of them."""
    gates = overrides.pop("gates", [overrides])
    rewards = [1.0] * right + [0.0] * (asked - right)
    return check_gate("gate", rewards, [CheckedGate(**GATE | gate) for gate in gates], finished, 24)


def test_a_gate_that_sees_no_right_answers_is_warned_of_in_a_line():
    found = gate_finding(0, 32)
    assert found.outcome == "warned"
    assert found.line == (
        "gate: 0 of 32 right: the gate of `effopd` (50 examples) expects 0.0 right answers (4.5 at most, 95 % sure); pure "
        "noise is accepted with probability 1.00 at a candidate, and carried to coefficient 10 with probability 1.00. "
        "Such a gate hardly tells a jump that helps from one that destroys the student. Take more "
        "`extrapolation.gate.examples`, `accept_ties: false`, `gate.metric: reverse_kl` or a longer supervised start of "
        "the student."
    )


@pytest.mark.parametrize(
    ("right", "of_gate", "outcome"),
    [
        (16, {}, "passed"),  # 25 of 50
        (3, {"examples": 54}, "passed"),  # 5.06 expected
        (3, {"examples": 53}, "warned"),  # 4.97
        (3, {"examples": 27, "samples": 2}, "passed"),
        (0, {"accept_ties": False}, "warned"),
        (0, {"examples": 10**6}, "warned"),
        (32, {}, "warned"),  # none is wrong: the same blindness
        (32, {"accept_ties": False}, "passed"),
        (32, {"search": "line"}, "passed"),  # which takes no ties
        (16, {"search": "all", "coefficients": [2]}, "passed"),  # a toss-up, whatever the examples
        (16, {"paired": True}, "passed"),
        (32, {"paired": True}, "passed"),
        (2, {"paired": True}, "warned"),
        (16, {"search": "of_another_package"}, "passed"),
        (0, {"search": "of_another_package"}, "warned"),
    ],
)
def test_gates_are_warned_of_below_the_stated_level_and_never_fail(right, of_gate, outcome):
    assert gate_finding(right, 32, **of_gate).outcome == outcome


def test_what_the_check_says_of_a_gate_fits_the_gate():
    strict = gate_finding(0, 32, accept_ties=False)
    assert "accept_ties" not in strict.remedy
    assert "with probability 0.00 at a candidate" in strict.measured
    assert strict.measured.endswith("; a gain of 3.2 points is accepted with probability 0.8")
    assert "harder problems" in gate_finding(32, 32).remedy
    assert "to coefficient 1024 with probability 0.00" in gate_finding(0, 32, search="line").measured
    assert "accept_ties" not in gate_finding(0, 32, search="line").remedy
    assert "(50 examples, 4 answers each) expects 100.0 right" in gate_finding(16, 32, samples=4).measured
    assert (
        "; a candidate that answers alike is accepted with probability 1.00"
        in gate_finding(2, 32, paired=True).measured
    )
    assert "carried" not in gate_finding(0, 32, search="of_another_package").measured
    cut = gate_finding(0, 32, finished=0.1)
    assert cut.measured.endswith("; 10% of the answers ended within 24 tokens")
    assert "`preflight.max_new_tokens`" in cut.remedy


def test_of_several_gates_those_that_are_blind_are_named():
    few, many = {"runs": ["a", "b"], "examples": 10}, {"runs": ["c"], "examples": 100}
    both = gate_finding(16, 32, gates=[few, many])
    assert both.outcome == "passed"
    assert "the gate of `a`, `b` (10 examples)" in both.measured
    assert "the gate of `c` (100 examples)" in both.measured
    one = gate_finding(4, 32, gates=[few, many])
    assert one.outcome == "warned"
    assert "`c`" not in one.measured


def test_checks_know_the_gates_that_count_of_the_runs_that_extrapolate():
    kl, rollouts = {"metric": "reverse_kl"}, {"metric": "reverse_kl", "source": "rollouts"}
    runs = {
        "plain": {"extrapolation": {"triggers": "none"}},
        "effopd": {},
        "raw": {"extrapolation": {"anchor": "raw"}},  # the same gate
        "strict": {"extrapolation": {"accept_ties": False}},
        "more": {"extrapolation": {"gate": {"examples": 60, "paired": True}}},
        "kl": {"extrapolation": {"gate": kl}},
        "control": {"extrapolation": {"gate": {"metric": "always"}}},
        "every": {"extrapolation": {"triggers": "every_step", "gate": rollouts}},
        "other": {"training": {"batch_size": 64}},  # with checks of its own
    }
    plan = Plan({**CONFIG, "runs": runs, "evaluation": {"baseline": "plain"}})
    own = json.loads(plan.spec("preflight", pair=plan.preflight("plain")))
    assert own["gates"] == [
        {**GATE, "runs": ["effopd", "raw"]},
        {**GATE, "runs": ["strict"], "accept_ties": False},
        {**GATE, "runs": ["more"], "examples": 60, "paired": True},
    ]
    assert json.loads(plan.spec("preflight", pair=plan.preflight("other")))["gates"] == [{**GATE, "runs": ["other"]}]
    blind = Plan({**CONFIG, "extrapolation": {"gate": kl}})
    assert "gates" not in json.loads(blind.spec("preflight", pair=blind.preflight("opd")))


# disk and memory


def test_disk_and_memory(tmp_path):
    assert check_disk("disk", 1e9, 1e10, tmp_path).outcome == "passed"
    assert check_disk("disk", 9.5e9, 1e10, tmp_path).outcome == "warned"
    full = check_disk("disk", 2e10, 1e10, tmp_path)
    assert full.outcome == "failed"
    assert "20.0 GB to write (estimate), 10.0 GB free" in full.measured
    assert check_memory("memory", 1e9, 1e10, "memory").outcome == "passed"
    assert check_memory("memory", 2e10, 1e10, "memory").outcome == "failed"
    assert free_disk(tmp_path / "not" / "yet") == pytest.approx(free_disk(tmp_path), rel=0.05)
    available, kind = available_memory(CPU)
    assert available > 2**28
    assert kind == "memory"


def test_estimates_of_sizes(model, tmp_path):
    parameters = sum(p.numel() for p in model.parameters())
    save_model(model.config, weights_of(model), make_tokenizer(), tmp_path)
    on_disk = (tmp_path / "model.safetensors").stat().st_size
    assert state_bytes(parameters) == pytest.approx(4 * on_disk, rel=0.1)  # weights, two moments, a candidate
    factors = factors_size(model, LoraSettings(2, 4, "attention_mlp"))
    assert state_bytes(parameters, factors) == 4 * (2 * parameters + 3 * factors)  # no moments of whole matrices
    assert lora_update_bytes(1e9, 1e7) == pytest.approx(4.2e9)
    assert factors == of_config(model.config.to_dict()).lora_factors(2)
    assert logits_bytes(8192, 151936, 1e12) == pytest.approx(19.9e9, rel=0.01)
    assert logits_bytes(8192, 151936, 1e8) == 1.6e9  # in chunks


@pytest.mark.parametrize(
    ("ranks", "stage", "precision", "offload", "gigabytes"),
    [  # a billion parameters
        (1, 0, "float32", False, 16),  # weights 4, gradients 4, moments 8
        (8, 0, "float32", False, 16),  # nothing is shared out
        (8, 1, "float32", False, 4 + 4 + 12 / 8),  # masters beside the weights
        (8, 2, "float32", False, 4 + 4 / 8 + 12 / 8),
        (8, 3, "float32", False, 20 / 8),
        (8, 1, "bfloat16", False, 2 + 4 + 12 / 8),
        (8, 3, "bfloat16", False, 18 / 8),
        (8, 2, "bfloat16", True, 2 + 4 / 8),
    ],
)
def test_the_memory_of_an_update(ranks, stage, precision, offload, gigabytes):
    assert update_bytes(1e9, ranks, stage, precision, offload) == pytest.approx(gigabytes * 1e9)


EVERY = {"triggers": "every_step", "gate": {"metric": "reverse_kl", "source": "rollouts"}}


@pytest.mark.parametrize(
    ("run", "execution", "beside"),
    [
        ({}, {}, [0, True]),  # the teacher, which scores
        ({}, {"mode": "staged"}, [0, False]),
        ({"training": {"scored_by": "endpoint"}}, {}, [0, False]),
        ({"extrapolation": EVERY}, {}, [1, True]),  # a student that tries candidates
        ({"extrapolation": EVERY}, {"mode": "staged"}, [1, True]),
        ({"extrapolation": EVERY, "training": {"scored_by": "endpoint"}}, {}, [1, True]),
        ({"extrapolation": {**EVERY, "gate": {"metric": "always", "source": "rollouts"}}}, {}, [0, True]),
        ({"training": {"zero_stage": 3}}, {}, [1, True]),  # one that generates
        ({"training": {"objective": {"reward_scale": 1.25}}}, {}, [1, True]),  # ExOPD's base
    ],
)
def test_the_models_beside_the_one_that_is_trained(run, execution, beside):
    plan = Plan({**CONFIG, "runs": {"opd": run}, "execution": execution})
    assert list(plan.beside_update("opd")) == beside
    assert json.loads(plan.spec("preflight", pair=plan.preflight("opd")))["beside"] == beside
    found = of_run(plan, "opd", SHAPE, SHAPE)
    alone = trained_bytes(
        HoldingSettings.of(plan.runs["opd"]["training"]),
        parameters=SHAPE.parameters,
        hidden_size=SHAPE.hidden_size,
        layers=SHAPE.layers,
        positions=128 * (200 + 24),
    )
    assert found.memory - alone == 4 * SHAPE.parameters * sum(beside)


def test_runs_that_share_their_checks_are_checked_for_the_one_that_takes_most(workplace, monkeypatch):
    plan = Plan({**CONFIG, "runs": {"opd": {}, "every": {"extrapolation": EVERY}}})
    (name,) = plan.preflights()
    assert json.loads(plan.spec("preflight", pair=name))["beside"] == [1, True]
    pair = workplace.model("student", 0), workplace.model("teacher", 1)

    needed = []
    monkeypatch.setattr(stage, "check_memory", lambda *given: needed.append(given[1]) or check_memory(*given))
    for beside in ((0, False), (0, True), (1, True)):
        workplace.check(*pair, beside=beside)
    assert needed == sorted(set(needed))


@pytest.mark.parametrize("kind", ["grpo", "pretrained"])
def test_a_teacher_in_bfloat16_is_held_in_half_wherever_it_came_from(workplace, monkeypatch, kind):
    """What estimates and the preflight take off the memory of an update is what its weights have less."""
    sections = {
        "grpo": {"kind": "grpo", "init": "base", "zero_stage": 1, "precision": "bfloat16"},
        "pretrained": {"kind": "pretrained", "path": "./teacher", "dtype": "bfloat16"},
    }
    needed = []
    monkeypatch.setattr(stage, "check_memory", lambda *given: needed.append(given[1]) or check_memory(*given))
    estimated = []
    student = workplace.model("student", 0)
    for section in (CONFIG["models"]["teacher"], sections[kind]):
        workplace.check(student, workplace.model("teacher", 1, section=section))
        plan = Plan({**CONFIG, "models": {**CONFIG["models"], "teacher": section}})
        shape = of_config(make_model(1).config.to_dict())
        part = of_run(plan, "opd", shape, shape)
        estimated.append((part.memory, part.judging))
    (memory, judging), (less, judging_less) = estimated
    assert memory - less == judging - judging_less == 2 * shape.parameters
    assert memory - less == pytest.approx(needed[0] - needed[1], rel=0.02)  # norms are not counted


def test_a_job_on_a_cpu_holds_the_libraries_and_gradients_beside_activations_from_a_second_pass_on():
    shape = {"parameters": 1e8, "hidden_size": 500, "intermediate_size": 1500, "layers": 20, "vocabulary": 50_000}
    given = {**shape, "positions": 500, "at_once": 2**24}
    once, often = resident_bytes(**given), resident_bytes(**given, passes=2)
    assert often - once == 4e8
    assert resident_bytes(**given, beside=1e9) - once == 1e9
    short = resident_bytes(**{**given, "positions": 1})  # AdamW's temporaries are then the most
    assert short == pytest.approx(0.62e9 + 16e8 + 2e8)
    assert resident_bytes(**given, trained=False) == pytest.approx(0.62e9 + 4e8 + 4 * 4 * 2**24)


def test_checkpointing_saves_most_of_the_activations():
    kept = activation_bytes(16384, 1536, 28, "bfloat16", False)
    assert kept == pytest.approx(34 * 16384 * 1536 * 28)  # 34 bytes, as in the paper that counted them
    assert activation_bytes(16384, 1536, 28, "float32", False) == 2 * kept
    assert activation_bytes(16384, 1536, 28, "bfloat16", True) < kept / 10


# together


def test_a_check_that_breaks_has_failed_and_a_known_failure_is_named():
    checks = Checks(["b"])
    assert not checks.run("a", lambda check: 1 / 0)
    assert not checks.run("b", lambda check: failed(check, "m", "w", "r"))
    assert checks.run("c", lambda check: passed(check, "m"))
    checks.leave_out(["d"], "no use")
    assert [finding.outcome for finding in checks.findings] == ["failed", "accepted", "passed", "not run"]
    assert [finding.check for finding in checks.failures] == ["a"]
    assert "ZeroDivisionError" in checks.failures[0].line
    assert checks.count() == "1 passed, 1 accepted (b), 1 not run (d), 1 failed (a)"


@pytest.fixture
def workplace(tmp_path):
    """Data, and functions that make a model folder and run the checks on a pair of them."""
    results = tmp_path / "results"
    data = results / "data/arithmetic/manifest.json"
    make_data(read_spec("make_data", {"task": TASK_SECTION}), data)

    class Workplace:
        folder = results

        def model(self, name, seed, tokenizer=None, change=None, section=None, rows=16):
            folder = results / f"models/{name}"
            model = make_model(seed, rows)
            model.generation_config.eos_token_id = 1
            if change:
                with torch.no_grad():
                    change(model)
            save_model(model.config, weights_of(model), tokenizer or make_tokenizer(), folder)
            spec = {"seed": seed, "model": section or {}}
            write_manifest(folder / "manifest.json", kind="model", spec=spec, parents={}, started=time.time())
            return folder / "manifest.json"

        def check(self, student, teacher, beside=(0, True), top_k=0, gates=(GATE,), **overrides):
            prompts = results / "data/arithmetic/prompts-student/manifest.json"
            tokenize_prompts(read_spec("tokenize_prompts", {"prompt": None}), data, student, prompts)
            plan = Plan(CONFIG)
            training = json.loads(plan.spec("preflight", pair=plan.preflight("opd")))["training"]
            training |= {"max_new_tokens": 8, "batch_size": 4}
            spec = {
                "preflight": {"problems": 6, "max_new_tokens": 16, "accept": [], **overrides.pop("preflight", {})},
                "training": {**training, **overrides},
                "prompt": None,
                "task": TASK_SECTION,
                "beside": list(beside),
                "top_k": top_k,
                "gates": list(gates),
                "states": [["opd", 0, 1], ["opd", 0, 2]],
                "code": "",
            }
            out = results / "preflight/pair.json"
            preflight(
                read_spec("preflight", spec), student=student, teacher=teacher, prompts=prompts, out=out, device=CPU
            )
            return out

        def outcomes(self):
            checks = read_json(results / "preflight/pair.checks.json")["recorded"]["checks"]
            return {check["check"]: check["outcome"] for check in checks}

    return Workplace()


def test_a_good_pair_passes_and_every_check_is_on_record(workplace):
    pair = workplace.model("student", 0), workplace.model("teacher", 1)
    out = workplace.check(*pair)
    outcomes = workplace.outcomes()
    known = set(schema()["properties"]["preflight"]["properties"]["accept"]["items"]["enum"])
    assert set(outcomes) == known - {"endpoint"}  # of a teacher that is served alone
    assert set(outcomes) == {
        "tokenizer",
        "eos",
        "chat_template",
        "lengths",
        "verifier",
        "disk",
        *OF_STUDENT,
        *OF_TEACHER,
        "gate",
    }
    noted = {name for name, outcome in outcomes.items() if outcome != "passed"}
    assert noted <= {"teacher_accuracy", "start_kl", "gate"}
    assert "failed" not in outcomes.values()
    before = out.read_bytes()
    out.unlink()
    assert workplace.check(*pair, preflight={"problems": 4}).read_bytes() == before


def test_a_gate_changes_nothing_of_what_lets_training_begin(workplace):
    """What every first step depends on has the same bytes, so that gates retrain nothing; what is measured differs."""
    pair = workplace.model("student", 0), workplace.model("teacher", 1)

    def found(gates):
        out = workplace.check(*pair, gates=gates)
        checks = read_json(out.with_suffix(".checks.json"))["recorded"]["checks"]
        return out.read_bytes(), [check for check in checks if check["check"] == "gate"]

    one, (first,) = found([GATE])
    other, (second,) = found([{**GATE, "examples": 7, "accept_ties": False}])
    none, absent = found([])
    assert one == other == none
    assert (first["outcome"], second["outcome"], absent) == ("warned", "warned", [])
    assert "(50 examples)" in first["measured"]
    assert "(7 examples)" in second["measured"]


def test_a_student_that_likes_ids_best_which_its_tokenizer_does_not_know_passes_and_says_none(workplace):
    """Nor does the teacher have rows for them: an id out of its embedding would end the job."""

    def prefer_unknown(model):
        model.lm_head.weight[16:] *= 5

    student = workplace.model("student", 0, change=prefer_unknown, rows=30)
    workplace.check(student, workplace.model("teacher", 1))
    outcomes = workplace.outcomes()
    assert {outcomes[check] for check in ("tokenizer", "engine", "determinism", "identity")} == {"passed"}


def test_a_server_must_say_what_the_teachers_folder_does(workplace, tokenizer, monkeypatch):
    """The served model scores; one that is another is told by its log-probs."""
    pair = workplace.model("student", 0), workplace.model("teacher", 1)
    for served, outcome in ((1, "passed"), (2, "failed")):
        with serving(Behavior(make_model(served), tokenizer)) as url:
            where = {"url": url, "model": "teacher", "timeout": 10, "retries": 0, "backoff": 0.01, "concurrency": 2}
            monkeypatch.setenv(VARIABLE, json.dumps({"endpoints": {"teacher": where}}))
            if outcome == "failed":
                with pytest.raises(PreflightError, match="endpoint: log-probs of the server and of the folder differ"):
                    workplace.check(*pair, scored_by="endpoint")
            else:
                workplace.check(*pair, scored_by="endpoint")
        assert workplace.outcomes()["endpoint"] == outcome


@pytest.mark.parametrize(("allowed", "said"), [(2, "Serve it with `--max-logprobs 3`"), (3, None)])
def test_a_server_is_asked_for_as_many_likeliest_tokens_as_the_run_will(
    workplace, tokenizer, monkeypatch, allowed, said
):
    pair = workplace.model("student", 0), workplace.model("teacher", 1)
    with serving(Behavior(make_model(1), tokenizer, max_logprobs=allowed)) as url:
        where = {"url": url, "model": "teacher", "timeout": 10, "retries": 0, "backoff": 0.01, "concurrency": 2}
        monkeypatch.setenv(VARIABLE, json.dumps({"endpoints": {"teacher": where}}))
        with pytest.raises(UserError, match=said) if said else nullcontext():
            workplace.check(*pair, top_k=3, scored_by="endpoint")


def test_every_failure_is_a_line_and_nothing_lets_training_begin(workplace, capsys):
    student, teacher = workplace.model("student", 0), workplace.model("teacher", 0)
    with pytest.raises(PreflightError) as caught:
        workplace.check(student, teacher, max_new_tokens=60)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["lengths", "start_kl"]
    assert not (workplace.folder / "preflight/pair.json").exists()
    assert workplace.outcomes()["start_kl"] == "failed"
    assert "  passed  tokenizer: 16 tokens" in capsys.readouterr().err
    out = workplace.check(student, teacher, max_new_tokens=60, preflight={"accept": ["lengths", "start_kl"]})
    assert out.is_file()
    assert workplace.outcomes()["start_kl"] == "accepted"


def test_more_likeliest_tokens_than_there_are_end_it_at_once(workplace):
    pair = workplace.model("student", 0), workplace.model("teacher", 1)
    assert workplace.check(*pair, top_k=15).is_file()
    with pytest.raises(ConfigError, match="`training.objective.top_k` is 16, and student and teacher know 16 tokens"):
        workplace.check(*pair, top_k=16)


def test_checks_know_the_likeliest_tokens_of_objectives_that_keep_them_apart():
    config = copy.deepcopy(CONFIG)
    config["training"] = {**config.get("training", {}), "objective": {"top_k": 12}}
    plan = Plan(config)
    assert "top_k" not in json.loads(plan.spec("preflight", pair=plan.preflight("opd")))
    config["training"]["objective"]["support"] = "top_k"
    plan = Plan(config)
    assert json.loads(plan.spec("preflight", pair=plan.preflight("opd")))["top_k"] == 12


def test_models_are_not_compared_where_their_tokens_differ(workplace):
    student = workplace.model("student", 0)
    teacher = workplace.model("teacher", 1, make_tokenizer("1023456789+=,#"))
    with pytest.raises(PreflightError, match="^tokenizer: 2 of 16 tokens"):
        workplace.check(student, teacher)
    assert {workplace.outcomes()[name] for name in (*OF_STUDENT, *OF_TEACHER)} == {"not run"}


def test_weights_that_are_not_numbers_are_named(workplace):
    def spoil(model):
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf

    student, teacher = workplace.model("student", 0), workplace.model("teacher", 1, change=spoil)
    with pytest.raises(PreflightError, match=r"teacher_weights: 1 of .*\(1 in model.layers.1.mlp.up_proj.weight\)"):
        workplace.check(student, teacher)
    assert workplace.outcomes()["identity"] == "not run"


def test_runs_share_checks_where_their_settings_are_the_same():
    config = {
        **CONFIG,
        "runs": {
            "opd": {},
            "faster": {"training": {"lr": 1.0e-3, "steps": 8}},
            "longer": {"training": {"max_new_tokens": 48}},
        },
    }
    plan = Plan(config)
    names = plan.preflights()
    assert list(names.values()) == [["opd", "faster"], ["longer"]]
    spec = json.loads(plan.spec("preflight", pair=plan.preflight("opd")))
    assert {run for run, _, _ in spec["states"]} == {"opd", "faster"}
    accepting = Plan({**config, "preflight": {"accept": ["start_kl"]}})
    assert list(accepting.preflights()) == list(names)
