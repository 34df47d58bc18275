"""Norms, sparsity, alignment, trajectories and reconstructions of weight updates."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from effopd.dynamics.alignment import paired_cosines, principal_cosines, relative_gaps
from effopd.dynamics.embeddings import row_cosines
from effopd.dynamics.norms import total_norms, update_size
from effopd.dynamics.reconstruction import (
    along,
    frobenius_norm,
    keep_bottom,
    keep_top,
    rescale,
    scale_towards,
    update,
)
from effopd.dynamics.trajectory import align_signs, neighbour_map, principal_path


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def orthonormal(rows, columns, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((rows, columns)))[0]


def test_sizes_against_numpy():
    base, delta = randn(30, 40), 1e-6 * randn(30, 40, seed=1)
    size = update_size([(base, delta)])
    assert size.elements == 1200
    assert size.frobenius_norm == pytest.approx(np.linalg.norm(delta.double().numpy()), rel=1e-6)
    assert size.base_norm == pytest.approx(np.linalg.norm(base.double().numpy()), rel=1e-6)
    for tolerance, fraction in size.unmoved.items():
        assert fraction == pytest.approx(float((np.abs(delta.numpy()) <= np.float32(tolerance)).mean()))
    assert 0 == size.unmoved[0.0] < size.unmoved[1e-7] < size.unmoved[1e-6] < size.unmoved[1e-4] == 1


@pytest.mark.parametrize("shape", [(), (1,), (17,), (6, 5), (2, 3, 4)])
def test_any_shape_and_any_blocks_give_the_same_size(shape):
    base, delta = randn(*shape), randn(*shape, seed=1)
    whole = update_size([(base, delta)])
    assert whole.frobenius_norm == pytest.approx(float(delta.norm()), rel=1e-6)
    if shape:
        pieces = update_size([(base[i : i + 1], delta[i : i + 1]) for i in range(shape[0])])
        assert pieces.frobenius_norm == pytest.approx(whole.frobenius_norm, rel=1e-6)
        assert pieces.unmoved == whole.unmoved
        assert pieces.elements == whole.elements


def test_a_zero_update_is_all_unmoved():
    size = update_size([(randn(3, 3), torch.zeros(3, 3))])
    assert size.frobenius_norm == 0
    assert set(size.unmoved.values()) == {1.0}


def test_totals_are_roots_of_summed_squares():
    norms = pd.DataFrame(
        {
            "module": ["q", "q", "norm"],
            "layer": pd.array([0, 1, None], "Int64"),
            "frobenius_norm": [3.0, 4.0, 1.0],
            "base_norm": [6.0, 8.0, 4.0],
            "elements": [10, 10, 2],
        }
    )
    totals = total_norms(norms, ["module"]).set_index("module")
    assert totals.loc["q"].to_dict() == {"frobenius_norm": 5, "base_norm": 10, "elements": 20, "relative_norm": 0.5}
    assert len(total_norms(norms, ["layer"])) == 3  # what is in no layer is a group too


def test_paired_cosines_ignore_sign_and_see_order():
    vectors = orthonormal(50, 4)
    np.testing.assert_allclose(paired_cosines(vectors * [1, -1, 1, -1], vectors), 1)
    np.testing.assert_allclose(paired_cosines(vectors[:, [1, 0, 2, 3]], vectors), [0, 0, 1, 1], atol=1e-12)


def test_principal_cosines_see_the_subspace_alone():
    basis = orthonormal(50, 5)
    vectors = basis[:, :4]
    mixed = vectors @ orthonormal(4, 4, seed=1)
    np.testing.assert_allclose(principal_cosines(mixed, vectors), 1)
    angle = 0.3
    turned = vectors.copy()
    turned[:, 0] = math.cos(angle) * vectors[:, 0] + math.sin(angle) * basis[:, 4]
    np.testing.assert_allclose(principal_cosines(turned, vectors), [1, 1, 1, math.cos(angle)])
    random = [
        (principal_cosines(orthonormal(80, 8, seed), orthonormal(80, 8, seed + 99)) ** 2).mean() for seed in range(40)
    ]
    assert np.mean(random) == pytest.approx(8 / 80, rel=0.1)


def test_gaps():
    np.testing.assert_allclose(relative_gaps(np.array([10.0, 8.0, 7.0, 0.0])), [0.2, 1 / 8, 1 / 7, np.nan])
    assert relative_gaps(np.array([5.0])).tolist() == [np.inf]


def test_signs_are_aligned_along_the_path_and_the_last_kept():
    path = np.stack([np.cos(np.linspace(0, 2, 9)), np.sin(np.linspace(0, 2, 9))], axis=1)
    flipped = path * np.array([1, -1, -1, 1, -1, 1, 1, -1, 1])[:, None]
    np.testing.assert_array_equal(align_signs(flipped), path)
    np.testing.assert_array_equal(align_signs(-flipped), -path)


def test_the_explained_variance_of_known_paths():
    t = np.linspace(-1, 1, 11)
    basis = orthonormal(30, 3)
    plane = np.stack([t, t**2], axis=1) @ basis[:, :2].T + 5
    path, explained = principal_path(plane)
    assert explained == pytest.approx(1)
    distances = np.linalg.norm(path[:, None] - path[None], axis=-1)
    np.testing.assert_allclose(distances, np.linalg.norm(plane[:, None] - plane[None], axis=-1), atol=1e-12)
    np.testing.assert_allclose(path.mean(axis=0), 0, atol=1e-12)
    # three orthogonal directions of variances 9 : 4 : 1
    waves = np.stack([np.sin(2 * np.pi * k * np.arange(12) / 12) for k in (1, 2, 3)], axis=1)
    waves[:, 2] = np.tile([1, -1], 6) / 2**0.5
    _, explained = principal_path(waves * [3, 2, 1] @ basis.T)
    assert explained == pytest.approx(13 / 14)
    assert math.isnan(principal_path(np.ones((4, 5)))[1])


def test_the_neighbour_map_is_repeatable_and_keeps_groups_together():
    groups = np.concatenate([np.zeros((6, 20)), np.full((6, 20), 9.0)]) + np.random.default_rng(0).normal(
        0, 0.1, (12, 20)
    )
    places = neighbour_map(groups)
    np.testing.assert_array_equal(neighbour_map(groups.copy()), places)
    within = np.linalg.norm(places[:6] - places[:6].mean(0), axis=1).max()
    assert np.linalg.norm(places[:6].mean(0) - places[6:].mean(0)) > 2 * within
    assert np.isnan(neighbour_map(groups[:5])).all()


@pytest.mark.parametrize("shape", [(40, 20), (20, 40), (20, 20)])
def test_top_and_bottom_parts_against_numpy(shape):
    delta = randn(*shape)
    left, sigma, right = np.linalg.svd(delta.double().numpy(), full_matrices=False)
    top = (left[:, :3] * sigma[:3]) @ right[:3]
    bottom = (left[:, 3:] * sigma[3:]) @ right[3:]
    np.testing.assert_allclose(keep_top(delta, 0.11), top, atol=1e-5)  # ceil(2.2)
    np.testing.assert_allclose(keep_bottom(delta, 0.85), bottom, atol=1e-5)
    np.testing.assert_allclose(keep_top(delta, 0.15) + keep_bottom(delta, 0.85), delta, atol=1e-5)
    assert torch.equal(keep_top(delta, 1.0), delta.double())
    assert torch.equal(keep_bottom(delta, 1.0), delta.double())
    np.testing.assert_allclose(keep_bottom(delta, 0.99), keep_bottom(delta, 0.95))  # all but the first
    assert frobenius_norm(keep_top(delta, 0.1, norm=7.0)) == pytest.approx(7)


def test_parts_of_a_rank_deficient_update():
    delta = randn(30, 2) @ randn(2, 20, seed=1)
    np.testing.assert_allclose(keep_top(delta, 0.1), delta, atol=1e-5)
    assert frobenius_norm(keep_bottom(delta, 0.9)) < 1e-5
    assert not keep_top(torch.zeros(6, 5), 0.5).any()
    for fraction in (0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="must be above 0 and at most 1"):
            keep_top(delta, fraction)


def test_rescaling():
    delta = randn(8, 9).bfloat16()
    assert frobenius_norm(rescale(delta, 2.5)) == pytest.approx(2.5)
    with pytest.raises(ValueError, match="zero update"):
        rescale(torch.zeros(3), 1.0)
    early, final = 0.1 * randn(4, 4), randn(4, 4, seed=1)
    assert torch.equal(scale_towards(early, final, 0.0), early.double())
    assert frobenius_norm(scale_towards(early, final, 1.0)) == pytest.approx(frobenius_norm(final))
    half = (frobenius_norm(early) + frobenius_norm(final)) / 2
    assert frobenius_norm(scale_towards(early, final, 0.5)) == pytest.approx(half)
    assert not scale_towards(torch.zeros(4, 4), final, 1.0).any()


def test_points_along_an_update():
    base, trained = randn(500).bfloat16(), randn(500, seed=1)
    delta = update(base, trained)
    torch.testing.assert_close(along(base, delta, 0.5), base.float() / 2 + trained / 2)
    assert torch.equal(along(base, delta), trained)  # bitwise
    assert torch.equal(along(base, delta, 0), base.float())


def test_row_cosines():
    base = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    trained = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [-3.0, -4.0]])
    torch.testing.assert_close(row_cosines(base, trained), torch.tensor([1, 0.5**0.5, 1, 0, -1]))
