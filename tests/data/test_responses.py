"""Responses as text and as token ids: what is learned, and what is left out and counted."""

import pandas as pd
import pytest

from effopd.artifacts.manifests import read_manifest, write_manifest
from effopd.common.errors import UserError
from effopd.data.responses import SAMPLES, Responses, chosen_samples, encode_responses, examples_of, worked_responses
from tiny_models import byte_tokenizer


def manifest_of(folder, kind, file, table):
    folder.mkdir(exist_ok=True)
    table.to_parquet(folder / file, index=False)
    write_manifest(folder / "manifest.json", kind=kind, spec={}, parents={}, files={file: folder / file}, started=0.0)
    return read_manifest(folder / "manifest.json", kind)


def test_a_response_is_its_text_in_this_tokenizer_and_the_end(tokenizer):
    """Another model's text is encoded anew: its token ids mean nothing here."""
    texts = ["15,20#20", "#7"]
    found = encode_responses(tokenizer, texts, tokenizer.eos_token_id)
    assert [tokenizer.decode(tokens[:-1]) for tokens in found] == texts
    assert [tokens[-1] for tokens in found] == [tokenizer.eos_token_id] * 2
    assert encode_responses(tokenizer, [], tokenizer.eos_token_id) == []
    bytewise = byte_tokenizer()
    (tokens,) = encode_responses(bytewise, ["Är 2\n"], bytewise.eos_token_id)
    assert bytewise.decode(tokens) == "Är 2\n</s>"


@pytest.mark.parametrize("text", ["15;20#20", "15 and 5", "1</s>2", "é"])
def test_what_the_tokenizer_cannot_write_is_not_learnt(tokenizer, text):
    """Of characters that it lacks, or with the end in the middle of it."""
    right = "1#1"
    assert encode_responses(tokenizer, [right, text], 1) == [[*tokenizer(right)["input_ids"], 1], None]


def test_no_beginning_of_sequence_comes_before_a_response():
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", 0)])
    assert tokenizer("a")["input_ids"][0] == 0
    (tokens,) = encode_responses(tokenizer, ["a"], 1)
    assert len(tokens) == 2


def test_examples_are_pairs_in_the_order_of_rows_and_what_is_left_out_is_counted(tokenizer):
    prompts = {0: [5, 6], 2: [7, 8, 9], 3: [4]}
    responses = Responses({3: ["#1", "2#2"], 0: ["#3"], 1: ["#4"], 2: ["#55", "é"]}, {"rejected": 7})
    found, left_out = examples_of(tokenizer, prompts, responses, 1, max_tokens=5)
    assert found.indices == [0, 3, 3]
    assert found.prompts == [[5, 6], [4], [4]]
    assert tokenizer.batch_decode(found.completions) == ["#3</s>", "#1</s>", "2#2</s>"]
    assert left_out == {"rejected": 7, "without_prompt": 1, "unwritable": 1, "too_long": 1}
    with pytest.raises(
        UserError, match=r"no response is left to learn \(7 rejected, 1 without prompt, 1 unwritable, 4 too long\)"
    ):
        examples_of(tokenizer, prompts, responses, 1, max_tokens=2)


def test_worked_responses_are_those_that_the_data_have(tmp_path):
    data = manifest_of(
        tmp_path / "some", "data", "train.parquet", pd.DataFrame({"problem": list("abc"), "response": ["x", "", "z"]})
    )
    assert worked_responses(data) == Responses({0: ["x"], 2: ["z"]}, {"without_response": 1})
    bare = manifest_of(tmp_path / "none", "data", "train.parquet", pd.DataFrame({"problem": ["a"]}))
    with pytest.raises(
        UserError, match="the training data have no responses to learn. Name their column in `columns.response`"
    ):
        worked_responses(bare)


TABLE = pd.DataFrame(
    [
        (4, "a", True, 1.0), (4, "a", True, 1.0), (4, "b", True, 0.5), (4, "c", True, 1.0), (4, "d", True, 1.0),
        (6, "a", True, 0.0), (6, "b", False, 1.0),
        (9, "a", True, 1.0),
    ],
    columns=["row", "completion", "finished", "reward"],
)  # fmt: skip


@pytest.mark.parametrize(
    ("keep", "per_problem", "texts", "left_out"),
    [
        ("accepted", 1, {4: ["a"], 9: ["a"]}, (1, 1, 2)),
        ("accepted", 2, {4: ["a", "c"], 9: ["a"]}, (1, 1, 2)),
        ("accepted", 9, {4: ["a", "c", "d"], 9: ["a"]}, (1, 1, 2)),
        ("all", 2, {4: ["a", "b"], 6: ["a"], 9: ["a"]}, (0, 1, 0)),
    ],
)
def test_the_first_samples_that_differ_and_are_right_are_learnt(tmp_path, keep, per_problem, texts, left_out):
    samples = manifest_of(tmp_path, "samples", SAMPLES, TABLE)
    names = ("without_accepted_sample", "unfinished", "rejected")
    assert chosen_samples(samples, keep, per_problem) == Responses(texts, dict(zip(names, left_out, strict=True)))


def test_a_reward_short_of_the_full_one_is_a_rejection(tmp_path):
    samples = manifest_of(tmp_path, "samples", SAMPLES, TABLE.assign(reward=TABLE["reward"].clip(upper=0.99)))
    with pytest.raises(
        UserError, match="none of the 8 samples of 3 problems can be learnt: 1 did not come to an end, 7 were rejected"
    ):
        chosen_samples(samples, "accepted", 1)
