"""Draws depend on their names alone."""

import numpy as np

from effopd.common.randomness import epoch_order, seed_of, uniforms


def test_rows_depend_on_their_seed_alone_and_longer_draws_extend_shorter_ones():
    seeds = [seed_of(0, "rollout", 3, i) for i in range(5)]
    rows = uniforms(seeds, 7)
    assert rows.min() >= 0
    assert rows.max() < 1
    np.testing.assert_array_equal(uniforms(seeds[::-1], 7), rows[::-1])
    np.testing.assert_array_equal(uniforms(seeds[2:3], 20)[:, :7], rows[2:3])


def test_seeds_differ_by_every_part_and_do_not_run_together():
    assert len({seed_of(0, "a", 1), seed_of(1, "a", 1), seed_of(0, "b", 1), seed_of(0, "a", 2), seed_of(0, "a")}) == 5
    assert seed_of(1, 12) != seed_of(11, 2)
    assert seed_of(0, "rollout", 1, 0) < 2**63


def test_uniforms_are_uniform():
    draws = uniforms([seed_of("u", i) for i in range(200)], 100)
    counts = np.histogram(draws, bins=10, range=(0, 1))[0]
    assert abs(counts - 2000).max() < 5 * np.sqrt(2000)


def test_epochs_are_permutations_and_any_window_is_a_slice_of_the_stream():
    stream = epoch_order(5, "order", 10, 0, 35)
    assert [sorted(stream[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    assert stream[:10] != stream[10:20]
    for start, count in ((0, 3), (8, 5), (19, 12), (34, 1)):
        assert epoch_order(5, "order", 10, start, count) == stream[start : start + count]
