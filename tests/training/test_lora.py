"""Low-rank adapters against W = base + (alpha / rank) B A under plain torch, and what must not change a step."""

from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

import effopd.models.lm_head as logits_module
from effopd.common.errors import ConfigError, DivergenceError
from effopd.distillation.step import update_policy
from effopd.models.models import load_weights_into, weights_of
from effopd.specs.engines import Sampling
from effopd.training.lora import LoraTrainer
from effopd.training.trainer import TrainerSettings
from lora_settings import LORA
from objectives import head_of, rollouts_of, scores_of, training_of
from small_engine import PROMPTS, SEEDS, engine_of
from tiny_models import FAMILIES, make_family, make_model
from trainer_data import SETTINGS, data, loss_and_metrics, loss_of

SCALE = 2.0
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_trainer(settings=SETTINGS, model_seed=0, seed=0, **lora) -> LoraTrainer:
    return LoraTrainer(make_model(model_seed), settings, replace(LORA, **lora), seed)


def trained(trainer: LoraTrainer, steps=range(3)) -> LoraTrainer:
    for step in steps:
        trainer.step([data(step)], loss_and_metrics, 1e-2)
    return trainer


def factors_of(trainer: LoraTrainer) -> dict[str, torch.Tensor]:
    return {name: factor.detach().clone() for name, factor in trainer.adapters.named_parameters()}


def products(trainer: LoraTrainer) -> dict[str, torch.Tensor]:
    """(alpha / rank) B A by the name of the weight, in float64."""
    factors = factors_of(trainer)
    return {
        f"{name.removesuffix('.lora_A')}.weight": SCALE
        * factors[name.replace("lora_A", "lora_B")].double()
        @ a.double()
        for name, a in factors.items()
        if name.endswith("lora_A")
    }


def base_of(trainer: LoraTrainer) -> dict[str, torch.Tensor]:
    product = products(trainer)
    return {name: weight.double() - product.get(name, 0) for name, weight in trainer.weights().items()}


class Plain:
    """The same under plain torch: W from base and factors in each forward pass, autograd through the product."""

    def __init__(self, trainer: LoraTrainer) -> None:
        self.model = make_model(0)
        load_weights_into(self.model, {name: weight.float() for name, weight in base_of(trainer).items()})
        self.factors = {n: t.clone().requires_grad_() for n, t in factors_of(trainer).items()}
        self.adam = torch.optim.AdamW(self.factors.values(), lr=1e-2, betas=SETTINGS.betas, weight_decay=0.1)

    def weights(self) -> dict[str, torch.Tensor]:
        weights = weights_of(self.model)
        for name, a in self.factors.items():
            if name.endswith("lora_A"):
                own = f"{name.removesuffix('.lora_A')}.weight"
                weights[own] = weights[own] + SCALE * self.factors[name.replace("lora_A", "lora_B")] @ a
        return weights

    def step(self, tokens) -> tuple[float, float]:
        def model(**inputs):
            return functional_call(self.model, self.weights(), kwargs=inputs)

        self.adam.zero_grad()
        loss = loss_of(model, tokens)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.factors.values(), 1.0)
        self.adam.step()
        return loss.item(), norm.item()


def test_the_first_step_starts_from_the_model_and_moves_only_projections():
    trainer, start = make_trainer(), weights_of(make_model(0))
    assert all(torch.equal(trainer.weights()[name], tensor) for name, tensor in start.items())
    assert all(a.abs().max() > 0 for name, a in factors_of(trainer).items() if name.endswith("A"))
    assert all(product.abs().max() == 0 for product in products(trainer).values())
    moved = trained(trainer).weights()
    changed = {name for name in start if not torch.equal(moved[name], start[name])}
    assert changed == {name for name in start if name.split(".")[-2] in PROJECTIONS}


def test_steps_equal_plain_adamw_on_the_factors():
    trainer = make_trainer()
    plain = Plain(trainer)
    for step in range(6):
        facts, _ = trainer.step([data(step)], loss_and_metrics, 1e-2)
        loss, norm = plain.step(data(step))
        assert facts["loss"] == pytest.approx(loss, rel=1e-4)
        assert facts["gradient_norm"] == pytest.approx(norm, rel=1e-3)
    for name, tensor in plain.weights().items():
        torch.testing.assert_close(trainer.weights()[name], tensor, rtol=1e-3, atol=1e-4)


def test_gradients_of_both_factors_are_those_of_autograd_through_the_product():
    trainer = trained(make_trainer())  # so that B is not 0, of which the gradient of A is a multiple
    plain = Plain(trainer)
    plain.adam.zero_grad()
    loss_of(lambda **inputs: functional_call(plain.model, plain.weights(), kwargs=inputs), data(9)).backward()
    trainer.model.requires_grad_(False)  # as in a step
    loss_of(trainer.adapters, data(9)).backward()
    own = dict(trainer.adapters.named_parameters())
    assert own.keys() == plain.factors.keys()
    for name, factor in plain.factors.items():
        torch.testing.assert_close(own[name].grad, factor.grad, rtol=1e-3, atol=1e-5)
    assert all(p.grad is None for p in trainer.model.parameters()), "gradients of whole matrices were made"


def test_the_forward_pass_is_the_merged_models_and_that_of_base_and_adapters():
    trainer = trained(make_trainer())
    merged = make_model(1)
    load_weights_into(merged, trainer.weights())
    inputs = data(5)
    own = trainer.adapters(input_ids=inputs).logits
    assert own.requires_grad
    assert torch.equal(own, merged(input_ids=inputs).logits)
    beside = make_model(0)
    load_weights_into(beside, {name: weight.float() for name, weight in base_of(trainer).items()})
    factors = factors_of(trainer)
    for name, layer in beside.named_modules():
        if f"{name}.lora_A" in factors:
            a, b = factors[f"{name}.lora_A"], factors[f"{name}.lora_B"]
            layer.register_forward_hook(lambda _, x, y, a=a, b=b: y + SCALE * (x[0] @ a.T) @ b.T)
    torch.testing.assert_close(own, beside(input_ids=inputs).logits, rtol=1e-3, atol=1e-4)


def test_rollouts_are_bitwise_those_of_a_model_that_is_not_in_training():
    """Which kernels multiply by a weight depends on whether it requires gradients."""
    trainer = trained(make_trainer())
    beside = make_model(1)
    load_weights_into(beside, trainer.weights())
    mine, theirs = (engine_of(model).generate(PROMPTS, SEEDS, Sampling(1.0, 12)) for model in (trainer.model, beside))
    assert mine.completions == theirs.completions
    assert all((ours == others).all() for ours, others in zip(mine.logprobs, theirs.logprobs, strict=True))


def test_the_base_stays_what_it_was_but_for_rounding():
    trainer = make_trainer()
    start = base_of(trainer)
    for name, weight in base_of(trained(trainer, range(20))).items():
        torch.testing.assert_close(weight, start[name], rtol=0, atol=2e-6)
    assert max(product.abs().max() for product in products(trainer).values()) > 1e-2


def test_a_jump_moves_the_base_and_leaves_factors_and_moments():
    trainer = trained(make_trainer())
    before, base, state = trainer.weights(), base_of(trainer), trainer.optimizer_state()
    product = products(trainer)
    accepted = {
        name: weight + 3 * product[name].float() if name in product else weight for name, weight in before.items()
    }
    trainer.load_weights(accepted)
    assert all(torch.equal(trainer.weights()[name], weight) for name, weight in accepted.items())
    after = trainer.optimizer_state()
    for ours, theirs in ((after.factors, state.factors), (after.moments, state.moments)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    for name, weight in base_of(trainer).items():
        torch.testing.assert_close(weight, base[name] + 3 * product.get(name, 0), rtol=0, atol=1e-6)
    plain = Plain(trainer)
    plain.adam.load_state_dict(plain.adam.state_dict() | {"state": adam_state(after)})
    trained(trainer, [7])
    plain.step(data(7))
    for name, tensor in plain.weights().items():
        torch.testing.assert_close(trainer.weights()[name], tensor, rtol=1e-3, atol=1e-4)


def adam_state(state):
    """torch's own form of an optimizer state, in the order of the factors."""
    return {
        number: {m: state.moments[f"{m}.{name}"].clone() for m in ("exp_avg", "exp_avg_sq")}
        | {"step": torch.tensor(float(state.step))}
        for number, name in enumerate(state.factors)
    }


def test_a_resumed_trainer_goes_on_bitwise_after_a_jump_too():
    through = trained(make_trainer())
    weights, state = through.weights(), through.optimizer_state()
    jumped = {name: weight * 1.01 for name, weight in weights.items()}
    through.load_weights(jumped)
    trained(through, range(3, 6))
    resumed = make_trainer(model_seed=5, seed=9)
    resumed.load_weights(jumped)
    resumed.load_optimizer_state(state)
    trained(resumed, range(3, 6))
    for part in ("moments", "factors"):
        theirs, ours = (getattr(t.optimizer_state(), part) for t in (through, resumed))
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items()), part
    assert all(torch.equal(resumed.weights()[name], tensor) for name, tensor in through.weights().items())
    assert resumed.optimizer_steps == 6


def test_the_seed_draws_the_factors():
    first, same, other = (factors_of(make_trainer(seed=seed)) for seed in (0, 0, 1))
    name = "model.layers.1.mlp.down_proj.lora_A"
    assert torch.equal(first[name], same[name])
    assert not torch.equal(first[name], other[name])
    assert first[name].shape == (3, 48)
    assert 0.1 < first[name].abs().max() <= 48**-0.5


def test_micro_batches_and_checkpointing_make_the_same_step():
    whole = make_trainer()
    split = make_trainer(replace(SETTINGS, gradient_checkpointing=True))
    for step in range(2):
        a, _ = whole.step([data(step)], loss_and_metrics, 1e-3)
        b, _ = split.step([data(step)[:3], data(step)[3:]], loss_and_metrics, 1e-3)
        assert a == pytest.approx(b, rel=1e-4)
    for name, tensor in whole.weights().items():
        torch.testing.assert_close(split.weights()[name], tensor, rtol=1e-4, atol=1e-6)


def test_losses_in_chunks_make_the_same_step(model, monkeypatch):
    """The head is not trained, and its gradient not made."""
    rollouts, training = rollouts_of(model), training_of("full", batch_size=5, lr=1e-3)
    scores, head = scores_of(make_model(1), rollouts, training), head_of(make_model(1), training)

    def step():
        trainer = LoraTrainer(make_model(0), TrainerSettings.of(training), LORA, 0)
        return update_policy(trainer, rollouts, scores, training, 1, 0, head), trainer.weights()

    facts, weights = step()
    monkeypatch.setattr(logits_module, "LOGITS_AT_ONCE", 7 * 16)
    chunked, others = step()
    assert chunked == pytest.approx(facts, rel=1e-4, abs=1e-7)
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_changes_nothing():
    trainer = trained(make_trainer())
    before, factors = trainer.weights(), factors_of(trainer)
    with pytest.raises(DivergenceError, match="loss of optimizer step 4 is nan"):
        trainer.step([data(0)], lambda m, t: (loss_of(m, t) * float("nan"), {}), 1e-3)
    assert all(torch.equal(trainer.weights()[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(factors_of(trainer)[name], tensor) for name, tensor in factors.items())


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mixtral"])
def test_every_family_has_adapters_at_its_projections(family):
    for which, extra in (("attention_mlp", set()), ("all", set()), ("v_proj|mlp", {"q_proj", "k_proj", "o_proj"})):
        trainer = LoraTrainer(make_family(family, 0), SETTINGS, replace(LORA, parameters=which), 0)
        named = {name.split(".")[-2] for name in factors_of(trainer)}
        assert named == set(PROJECTIONS) - extra


def test_a_mixture_trains_its_attention_and_is_refused_where_its_experts_are_meant():
    LoraTrainer(make_family("mixtral", 0), SETTINGS, replace(LORA, parameters="self_attn"), 0)
    with pytest.raises(ConfigError, match=r"names model.layers.0.mlp.experts.\w+, a stack of matrices that has no"):
        LoraTrainer(make_family("mixtral", 0), SETTINGS, LORA, 0)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("lm_head", "`lora.parameters` is 'lm_head', which names no linear layer below the head."),
        ("embed", "`lora.parameters` is 'embed', which names no linear layer below the head."),
        ("q_prj", "`lora.parameters`: 'q_prj' matches no parameter of the model."),
        ("(", "`lora.parameters`: '(' is not a regular expression"),
    ],
)
def test_parameters_without_adapters_are_refused(which, message):
    with pytest.raises(ConfigError) as caught:
        make_trainer(parameters=which)
    assert message in str(caught.value)
