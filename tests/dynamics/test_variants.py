"""Every variant of the weights, against weights built by hand; those that should change nothing change no bit."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from effopd.dynamics.reconstruction import frobenius_norm
from effopd.dynamics.variant_weights import variant_parameter, weights_digest
from effopd.dynamics.variants import BASE, FINAL, early_step, variants, windows
from effopd.models.models import weights_of
from effopd.models.weight_files import Parameter, parameter_place
from tiny_models import make_model
from variant_settings import intervention_settings

STEPS = [1, 2, 4, 8, 16]


def moved(seed, amount):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: w + amount * torch.randn(w.shape, generator=generator) for name, w in weights_of(make_model(0)).items()
    }


WEIGHTS = {0: weights_of(make_model(0)), **{step: moved(step, 1e-4 * step) for step in STEPS}}
PARAMETERS = [Parameter(name, tuple(w.shape), *parameter_place(name)) for name, w in WEIGHTS[0].items()]


def build(teacher_norm=None, **changes):
    planned = variants(intervention_settings(**changes), STEPS, 2, own_head=True)
    assert len({variant.name for variant in planned}) == len(planned)

    def read(step, parameter):
        return WEIGHTS[step][parameter.name]

    def weights(variant):
        return {p.name: variant_parameter(variant, p, read, final=16, teacher_norm=teacher_norm) for p in PARAMETERS}

    return {variant.name: weights(variant) for variant in planned}


@pytest.fixture(scope="module")
def built():
    return build()


def same(weights, others):
    return all(torch.equal(weights[name], others[name]) for name in others) and weights.keys() == others.keys()


def test_what_should_change_nothing_changes_no_bit(built):
    for name in (FINAL, "equal_norm 1", "reconstruction top 100 %", "reconstruction bottom 100 %"):
        assert same(built[name], WEIGHTS[16]), name
    for name in (BASE, "equal_norm 0"):
        assert same(built[name], WEIGHTS[0]), name
    assert same(built["norm_scaling 0"], WEIGHTS[2])
    assert same(built["reconstruction top 0 %"], built["reconstruction bottom 0 %"])
    for step in (1, 2, 4, 8):
        assert same(built[f"path {step}"], WEIGHTS[step])
    assert all(w.dtype == torch.float32 for weights in built.values() for w in weights.values())


def test_a_window_over_all_layers_is_everything_in_the_layers():
    built = build(interventions=["window"], window={"width": 2, "stride": 1, "parts": ["layer"]})
    for layer in (0, 1):
        for parameter in PARAMETERS:
            source = WEIGHTS[0 if parameter.layer is None else 16]
            assert torch.equal(built[f"window layer {layer}"][parameter.name], source[parameter.name])


def test_points_of_equal_norm(built):
    for name, base in WEIGHTS[0].items():
        wanted = base.double() + 0.3 * (WEIGHTS[16][name].double() - base.double())
        torch.testing.assert_close(built["equal_norm 0.3"][name], wanted.float(), rtol=0, atol=1e-7)


def test_windows_take_what_they_name_and_nothing_else(built):
    taken = {
        "attention": ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"),
        "mlp": ("gate_proj", "up_proj", "down_proj"),
        "layer": ("",),
    }
    for part, words in taken.items():
        for layer in (0, 1):  # two layers at width 0.5: one each
            weights = built[f"window {part} {layer}"]
            for name in WEIGHTS[0]:
                inside = f"layers.{layer}." in name and any(word in name for word in words)
                assert torch.equal(weights[name], WEIGHTS[16 if inside else 0][name]), (part, layer, name)


def test_where_windows_lie():
    assert list(windows(4, 0.5, 1)) == [(0, 0, 1), (1, 0, 2), (2, 1, 3), (3, 2, 3)]
    assert list(windows(4, 0.4, 3)) == [(0, 0, 0), (3, 3, 3)]
    paper = list(windows(28, 17 / 28, 1))  # up to 8 layers away: 17 wide
    assert paper[14] == (14, 6, 22)
    assert paper[0] == (0, 0, 8)


def test_base_embeddings_put_back(built):
    for name in WEIGHTS[0]:
        embedding, head = "embed_tokens" in name, "lm_head" in name
        assert torch.equal(built["base embedding"][name], WEIGHTS[0 if embedding else 16][name])
        assert torch.equal(built["base embedding and head"][name], WEIGHTS[0 if embedding or head else 16][name])


def test_reconstructions_against_numpy(built):
    for parameter in PARAMETERS:
        name = parameter.name
        base, trained = WEIGHTS[0][name].double().numpy(), WEIGHTS[16][name].double().numpy()
        top, bottom = built["reconstruction top 10 %"][name], built["reconstruction bottom 90 %"][name]
        if not parameter.is_projection:
            assert torch.equal(top, WEIGHTS[16][name])
            assert torch.equal(bottom, WEIGHTS[16][name])
            continue
        left, sigma, right = np.linalg.svd(trained - base, full_matrices=False)
        k = math.ceil(len(sigma) / 10)
        leading = (left[:, :k] * sigma[:k]) @ right[:k]
        scale = np.linalg.norm(sigma) / np.linalg.norm(sigma[:k])
        np.testing.assert_allclose(top.numpy(), base + scale * leading, atol=1e-6)
        np.testing.assert_allclose(bottom.numpy(), base + (left[:, k:] * sigma[k:]) @ right[k:], atol=1e-6)


def test_the_leading_part_at_the_teachers_norm():
    reconstruction = {"top": [10], "bottom": [], "norm": "teacher"}
    built = build(lambda parameter: 7.0, interventions=["reconstruction"], reconstruction=reconstruction)
    for parameter in PARAMETERS:
        delta = built["reconstruction top 10 %"][parameter.name].double() - WEIGHTS[0][parameter.name].double()
        own = frobenius_norm(WEIGHTS[16][parameter.name].double() - WEIGHTS[0][parameter.name].double())
        assert frobenius_norm(delta) == pytest.approx(7.0 if parameter.is_projection else own, rel=1e-4)


def test_an_early_update_at_the_final_norm(built):
    for name, base in WEIGHTS[0].items():
        early, final = (frobenius_norm(WEIGHTS[step][name].double() - base.double()) for step in (2, 16))
        for beta, norm in ((0.5, (early + final) / 2), (1, final)):
            delta = built[f"norm_scaling {beta:g}"][name].double() - base.double()
            assert frobenius_norm(delta) == pytest.approx(norm, rel=1e-3)
            cosine = (delta * (WEIGHTS[2][name].double() - base.double())).sum() / frobenius_norm(delta) / early
            assert cosine == pytest.approx(1, abs=1e-6)


def test_the_early_step_is_the_nearest_in_ratio():
    assert early_step([1, 2, 4, 8, 16, 32, 64], 0.1) == 8
    assert early_step([1, 2, 4, 8, 16, 32, 64, 128, 220], 0.1) == 16
    assert early_step([5], 0.1) == 5


@given(st.lists(st.integers(1, 300), min_size=1, max_size=9, unique=True).map(sorted), st.floats(0.01, 1))
@example([2, 7, 40], 0.1)  # 4 is nearer to 2 by difference, and to 7 by ratio
@example([1, 4, 20], 0.1)  # 2 is as near to both
def test_no_other_step_is_nearer_in_ratio_and_no_earlier_one_as_near(steps, progress):
    wanted = progress * max(steps)

    def ratio(step):
        return max(step / wanted, wanted / step)

    found = early_step(steps, progress)
    for step in steps:
        rounding = 1e-12 * ratio(step)
        assert ratio(found) <= ratio(step) + rounding
        assert step >= found or ratio(step) > ratio(found) - rounding


def test_an_early_step_that_is_nearer_by_difference_alone_is_not_taken():
    assert early_step([2, 7, 40], 0.1) == 7
    assert early_step([1, 4, 20], 0.1) == 1


def test_a_digest_sees_every_bit():
    weights = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    same_bits = {"b": torch.ones(2), "a": torch.zeros(3, 2).T}
    assert weights_digest(weights) == weights_digest(same_bits)
    assert weights_digest(weights) != weights_digest({**weights, "b": torch.tensor([1.0, 1.0 + 2**-23])})
    assert weights_digest(weights) != weights_digest({"a": weights["a"], "c": weights["b"]})


def test_what_tables_say_of_each_variant():
    """The names and columns that tables and figures look for."""
    planned = variants(intervention_settings(), STEPS, 2, own_head=False)
    rows = {row["variant"]: row for row in (variant.row() for variant in planned)}
    columns = ["analysis", "variant", "step", "part", "amount", "layer", "first_layer", "last_layer"]
    assert all(list(row) == columns for row in rows.values())

    def values(name):
        return [rows[name][column] for column in columns if column != "variant"]

    assert values("base") == ["path", 0, None, None, None, None, None]
    assert values("final") == ["path", 16, None, None, None, None, None]
    assert values("path 4") == ["path", 4, None, None, None, None, None]
    assert values("equal_norm 0.3") == ["equal_norm", 16, None, 0.3, None, None, None]
    assert values("base embedding") == ["embeddings", 16, "embedding", None, None, None, None]
    assert values("window mlp 1") == ["window", 16, "mlp", None, 1, 1, 1]
    assert values("reconstruction top 10 %") == ["reconstruction", 16, "top", 0.1, None, None, None]
    assert values("norm_scaling 0.5") == ["norm_scaling", 2, None, 0.5, None, None, None]
    assert "base embedding and head" not in rows
    assert "base embedding and head" in {
        variant.name for variant in variants(intervention_settings(), STEPS, 2, own_head=True)
    }
