"""A segment that was killed and went on is bitwise the undisturbed one, however DeepSpeed holds the model."""

import gc

import pytest
import torch

import segments
from preloaded import run_ranks
from segments import ENDS, WAYS, differences, left, make_inputs, train, train_and_resume

QUICK = ("zero0-float32", "zero1-bfloat16", "zero2-float32", "zero2-jumps", "zero3-bfloat16")  # each kind of optimizer


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    gc.freeze()  # DeepSpeed collects garbage at each start, two seconds with everything imported
    yield folder
    gc.unfreeze()
    gc.collect()


# Each engine of DeepSpeed reserves gigabytes that it never touches and never gives back: with all of them in one process,
# the tests after these could not fork. Two ranks, in processes of their own, try every way.
REST = [pytest.mark.slow, pytest.mark.exhaustive]
ALONE = [pytest.param(way, marks=[] if way in QUICK else REST) for way in WAYS]


@pytest.fixture(scope="module", params=ALONE)
def undisturbed(request, inputs, tmp_path_factory):
    """A way of training, and the folder of a run with both segments."""
    run = tmp_path_factory.mktemp("run")
    for which in ENDS:
        train(inputs, run, request.param, which)
    return request.param, run


@pytest.mark.parametrize("which", ENDS)
def test_a_resumed_segment_is_bitwise_the_undisturbed_one(undisturbed, inputs, tmp_path, which):
    way, run = undisturbed
    train_and_resume(inputs, run, tmp_path, way, which)
    assert differences(left(run, which), left(tmp_path, which)) == []


@pytest.fixture(scope="module")
def on_two_ranks(inputs, tmp_path_factory):
    """The folder in which two ranks have trained and resumed all segments in all ways."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(segments.__file__, "compare", inputs, folder, *WAYS, timeout=900)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_segment_that_two_ranks_resume_is_bitwise_the_undisturbed_one(on_two_ranks, way, which):
    assert differences(left(on_two_ranks / way, which), left(on_two_ranks / f"{way}-resumed", which)) == []
