"""Rollouts: shapes, files, and padding that nothing sees."""

import numpy as np
import pytest
import torch

from effopd.data.rollouts import PaddedBatch, Rollouts
from effopd.teachers.scoring import Scores


def example() -> Rollouts:
    return Rollouts(
        prompts=[[5, 6], [7], [8, 9, 10]],
        completions=[[2, 1], [3, 4, 1], [2]],
        logprobs=[np.array(x, np.float32) for x in ([-0.1, -0.2], [-1, -2, -3], [-0.5])],
        finished=[True, True, False],
        indices=[4, 2, 9],
    )


def test_a_file_gives_back_the_very_same_rollouts(tmp_path):
    example().write(tmp_path / "r.parquet")
    read = Rollouts.read(tmp_path / "r.parquet")
    for name in ("prompts", "completions", "finished", "indices"):
        assert getattr(read, name) == getattr(example(), name)
    for mine, theirs in zip(read.logprobs, example().logprobs, strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == np.float32


def test_scores_survive_their_file(tmp_path):
    scores = Scores(example().logprobs)
    scores.write(tmp_path / "s.safetensors")
    read = Scores.read(tmp_path / "s.safetensors")
    assert [row.tolist() for row in read.logprobs] == [row.tolist() for row in scores.logprobs]


def test_wrong_shapes_are_refused_with_what_was_found():
    with pytest.raises(ValueError, match="finished has 1 rows where there are 2 prompts"):
        Rollouts([[1], [2]], [[1], [1]], [np.zeros(1), np.zeros(1)], [True])
    with pytest.raises(ValueError, match="rollout 0: 2 completion tokens, 1 log-probs"):
        Rollouts([[1]], [[1, 2]], [np.zeros(1)], [True])
    with pytest.raises(ValueError, match="rollout 0: 0 completion tokens"):
        Rollouts([[1]], [[]], [np.zeros(0)], [True])


def test_padding_marks_exactly_the_positions_that_predict_completion_tokens():
    batch = PaddedBatch.of(example(), pad_id=0, device=torch.device("cpu"))
    assert batch.tokens.tolist() == [[5, 6, 2, 1], [7, 3, 4, 1], [8, 9, 10, 2]]
    assert batch.mask.tolist() == [[False, True, True], [True, True, True], [False, False, True]]
    assert batch.targets[batch.mask].tolist() == [2, 1, 3, 4, 1, 2]
    assert batch.flatten(example().logprobs).tolist() == pytest.approx([-0.1, -0.2, -1, -2, -3, -0.5])


def test_batches_cover_all_rows_in_order():
    parts = example().batches(2)
    assert [part.indices for part in parts] == [[4, 2], [9]]
    assert Rollouts.concatenate(parts).completions == example().completions
