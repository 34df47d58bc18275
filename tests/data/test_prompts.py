"""Prompts: made once, with a chat template or plainly, and the way from a file of problems to an evaluation."""

import json
import re
import time

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effopd.artifacts.manifests import read_manifest, write_manifest
from effopd.common.errors import ArtifactError, ConfigError, UserError
from effopd.data.prompts import Prompts, load_problems, load_prompts, load_tokens, tokenize_problems
from effopd.models.models import load_tokenizer, save_model, weights_of
from effopd.results.verify import Verified, verify
from effopd.specs.read import read_spec
from effopd.stages.evaluate import evaluate
from effopd.stages.make_data import make_data
from effopd.stages.tokenize_prompts import tokenize_prompts
from effopd.tasks.base import Problem
from tiny_models import byte_tokenizer, make_model

CHAT = {
    "format": "chat",
    "template": "{problem} Box it: \\boxed{}.",
    "system": "",
    "thinking": False,
    "max_tokens": 80,
    "examples": [],
}
PLAIN = {**CHAT, "format": "plain"}


def shown(settings, problem="1+1?", tokenizer=None):
    tokenizer = tokenizer or byte_tokenizer()
    return tokenizer.decode(tokenize_problems(tokenizer, [problem], settings)[0])


def test_a_chat_is_the_template_and_no_more():
    assert shown(CHAT) == "<user>1+1? Box it: \\boxed{}.<assistant><no thinking>"
    assert shown({**CHAT, "thinking": True}) == "<user>1+1? Box it: \\boxed{}.<assistant>"
    assert shown({**CHAT, "system": "Be brief."}).startswith("<system>Be brief.<user>1+1?")
    assert (
        shown(CHAT, "{problem} {} {{ 7*7 }} {% x %}")
        == "<user>{problem} {} {{ 7*7 }} {% x %} Box it: \\boxed{}.<assistant><no thinking>"
    )


def test_special_tokens_are_added_where_plain_and_left_to_the_template_in_a_chat():
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer("<start>{{ messages[0].content }}")
    tokenizer.add_special_tokens({"bos_token": "<start>"})
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<start> $A", special_tokens=[("<start>", begin)]
    )
    assert tokenize_problems(tokenizer, ["x"], PLAIN)[0].count(begin) == 1
    assert tokenize_problems(tokenizer, ["x"], CHAT)[0].count(begin) == 1


def test_plain_prompts_and_problems_that_are_their_own_prompts():
    assert shown(PLAIN) == "1+1? Box it: \\boxed{}."
    assert shown(None) == "1+1?"


EXAMPLES = [{"user": "2+2?", "assistant": "It is 4."}, {"user": "3+3?", "assistant": "Six."}]
BOX = "Box it: \\boxed{}."


def test_examples_are_turns_before_the_problem_and_put_into_the_template_like_it():
    turns = f"<user>2+2? {BOX}<assistant>It is 4.<user>3+3? {BOX}<assistant>Six."
    chat = {**CHAT, "examples": EXAMPLES}
    assert shown(chat) == f"{turns}<user>1+1? {BOX}<assistant><no thinking>"
    assert shown({**chat, "system": "Be brief."}) == f"<system>Be brief.{turns}<user>1+1? {BOX}<assistant><no thinking>"
    assert shown({**PLAIN, "examples": EXAMPLES}) == (f"2+2? {BOX}\n\nIt is 4.\n\n3+3? {BOX}\n\nSix.\n\n1+1? {BOX}")


@pytest.mark.parametrize(
    ("template", "answer", "expected"),
    [
        ("Q: {problem}\nA:", " 4", "Q: 2+2?\nA: 4\n\nQ: 1+1?\nA:"),
        ("Q: {problem}\nA: ", "4\n", "Q: 2+2?\nA: 4\nQ: 1+1?\nA: "),
        ("<u>{problem}<e>\n<a>\n", "4<e>\n", "<u>2+2?<e>\n<a>\n4<e>\n<u>1+1?<e>\n<a>\n"),
        ("\n{problem}", "4", "\n2+2?\n\n4\n1+1?"),
    ],
)
def test_plain_examples_are_parted_by_a_blank_line_where_there_is_no_white_space(template, answer, expected):
    settings = {**PLAIN, "template": template, "examples": [{"user": "2+2?", "assistant": answer}]}
    assert shown(settings) == expected


@settings(deadline=None)
@given(
    turns=st.lists(st.fixed_dictionaries({"user": st.text("ab {}\n", min_size=1), "assistant": st.text("cd \n", min_size=1)}), max_size=3),
    problems=st.lists(st.text("xy {}\n"), min_size=1, max_size=3),
    chosen=st.sampled_from([CHAT, PLAIN]),
)  # fmt: skip
def test_all_prompts_begin_alike_and_end_as_without_examples(turns, problems, chosen):
    tokenizer, settings = byte_tokenizer(), {**chosen, "examples": turns}
    alone = tokenize_problems(tokenizer, problems, chosen)
    prompts = tokenize_problems(tokenizer, problems, settings)
    before = {tuple(whole[: len(whole) - len(end)]) for whole, end in zip(prompts, alone, strict=True)}
    assert [whole[len(whole) - len(end) :] for whole, end in zip(prompts, alone, strict=True)] == alone
    assert len(before) == 1
    text, place = tokenizer.decode(before.pop()), 0
    for turn in turns:
        for part in (settings["template"].replace("{problem}", turn["user"]), turn["assistant"]):
            place = text.index(part, place) + len(part)


def test_a_chat_without_a_template_is_refused():
    with pytest.raises(UserError, match="`task.prompt.format` is chat, and the model's tokenizer has no chat template"):
        shown(CHAT, tokenizer=byte_tokenizer(chat_template=None))


PROBLEMS = [f"What is {n} + {n}?" + " Think." * (n % 10) for n in range(60)]
TASK = {
    "name": "math",
    "seed": 0,
    "splits": {"train": {"sources": []}, "validation": {"share": 0.2}, "test": {"share": 0.3}},
}


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps({"problem": p, "answer": str(n)}) + "\n" for n, p in enumerate(PROBLEMS)))
    source = {
        "files": [str(file)],
        "where": {},
        "columns": {"problem": "problem", "answer": "answer"},
        "split": "train",
    }
    task = {**TASK, "splits": {**TASK["splits"], "train": {"sources": [source, source]}}}
    out = tmp_path / "results/data/math/manifest.json"
    make_data(read_spec("make_data", {"task": task, "code": "x"}), out, (file,))
    return out


@pytest.fixture
def model(tmp_path):
    out = tmp_path / "results/models/tiny/manifest.json"
    random = make_model(0, vocabulary=258)
    random.config.max_position_embeddings = 128  # the longest prompt with a completion
    save_model(random.config, weights_of(random), byte_tokenizer(), out.parent)
    files = {path.name: path for path in out.parent.iterdir()}
    write_manifest(out, kind="model", spec={}, parents={}, files=files, started=time.time())
    return out


@pytest.fixture
def prompts(data, model):
    out = data.parent / "prompts-tiny/manifest.json"
    tokenize_prompts(read_spec("tokenize_prompts", {"prompt": CHAT}), data, model, out)
    return out


def test_the_data_says_what_was_left_out_and_depends_on_the_files_contents(data, tmp_path, capfd):
    manifest = read_manifest(data, "data")
    assert sum(manifest.result["duplicates"].values()) == 60
    assert sum(manifest.result["rows"].values()) == 60
    file = tmp_path / "problems.jsonl"
    known = {key: value for key, value in manifest.spec.items() if key != "files"}
    make_data(read_spec("make_data", known | {"code": "x"}), tmp_path / "same/manifest.json", (file,))
    assert re.search(
        r"left out, duplicates: \d+ of test, \d+ of validation, \d+ of train\ndone: ", capfd.readouterr().err
    )
    assert read_manifest(tmp_path / "same/manifest.json").fingerprint == manifest.fingerprint
    file.write_text(file.read_text().replace('"answer": "7"', '"answer": "8"'))
    make_data(read_spec("make_data", known), tmp_path / "other/manifest.json", (file,))
    assert read_manifest(tmp_path / "other/manifest.json").fingerprint != manifest.fingerprint


def test_prompts_are_written_once_and_read_with_their_problems(prompts, data, model):
    manifest, problems = read_manifest(prompts, "prompts"), load_problems(read_manifest(data), "train")
    tokenizer = load_tokenizer(model.parent)
    read = load_prompts(manifest, "train")
    assert list(load_tokens(manifest, "train")) == list(read.tokens)
    assert list(read.tokens[-2:]) == [read.tokens[len(read) - 2], read.tokens[len(read) - 1]]
    everything = tokenize_problems(tokenizer, [p.text for p in problems], CHAT)
    fitting = [(t, p) for t, p in zip(everything, problems, strict=True) if len(t) <= 80]
    assert list(zip(read.tokens, read.problems, strict=True)) == fitting
    facts = manifest.result["train"]
    assert facts["too_long"] == len(problems) - len(read) > 0
    assert facts["prompts"] == len(read)
    assert facts["longest"] == max(map(len, read.tokens)) <= 80
    assert facts["tokens"] == sum(map(len, read.tokens))
    assert all(isinstance(token, int) for token in read.tokens[0])
    some = read.select([2, 0, 2])
    assert some == Prompts([read.tokens[i] for i in (2, 0, 2)], [read.problems[i] for i in (2, 0, 2)])


def test_prompts_of_other_data_are_refused(prompts, data):
    manifest = read_manifest(prompts)
    spec = {key: value for key, value in read_manifest(data).spec.items() if key != "files"}
    make_data(read_spec("make_data", {**spec, "code": "y"}), data)
    with pytest.raises(
        ArtifactError, match=r"was made from other data than .*manifest.json \(fingerprint \w+, not \w+\)"
    ):
        load_prompts(manifest, "test")


def test_no_prompt_that_fits_is_an_error(data, model, tmp_path):
    def refused(length, **changes):
        with pytest.raises(
            UserError,
            match=f"every prompt of the train split is longer than {length} tokens. Raise `task.prompt.max_tokens`",
        ):
            spec = read_spec("tokenize_prompts", {"prompt": {**CHAT, "max_tokens": length, **changes}})
            tokenize_prompts(spec, data, model, tmp_path / "out/manifest.json")

    refused(5)
    refused(80, examples=EXAMPLES)  # which count


@pytest.fixture
def elsewhere(data, tmp_path):
    """The data of another task, that nothing is trained on."""
    file = tmp_path / "others.jsonl"
    file.write_text(json.dumps({"problem": "What is 1 + 100?", "answer": "101"}) + "\n")
    columns = {"problem": "problem", "answer": "answer"}
    source = {"files": [str(file)], "where": {}, "columns": columns, "split": "train"}
    out = data.parents[1] / "other/manifest.json"
    make_data(
        read_spec("make_data", {"task": {**TASK, "splits": {"test": {"sources": [source]}}}, "code": "x"}),
        out,
        (file,),
        training=data,
    )
    return out


def test_what_is_wrong_with_another_task_names_its_section(elsewhere, model, tmp_path):
    """Changing `task`, which is trained on, would run everything again."""
    prompts, key = elsewhere.parent / "prompts-tiny/manifest.json", "`evaluation.tasks.other.task.prompt.max_tokens`"
    with pytest.raises(UserError, match=f"the test split is longer than 5 tokens. Raise {key}"):
        tokenize_prompts(
            read_spec("tokenize_prompts", {"prompt": {**CHAT, "max_tokens": 5}}), elsewhere, model, prompts
        )
    tokenize_prompts(read_spec("tokenize_prompts", {"prompt": CHAT}), elsewhere, model, prompts)
    evaluation = {
        "split": "test",
        "temperature": 1.0,
        "samples": 1,
        "seed": 0,
        "precision": None,
        "max_new_tokens": 128,
        "batch_size": 8,
    }
    where = {"state": model, "decision": None, "out": tmp_path / "none.json", "device": torch.device("cpu")}
    spec = read_spec(
        "evaluate", {"evaluation": evaluation, "engine": {"name": "transformers"}, "task": {"name": "math"}}
    )
    with pytest.raises(ConfigError, match=rf"do not fit the 128 that the model sees.* \({key}\)"):
        evaluate(spec, student=model, teacher=None, prompts=prompts, **where)


def test_prompts_of_no_problems_are_no_prompts():
    with pytest.raises(ValueError, match="2 prompts of 1 problems"):
        Prompts([[1], [2]], [Problem("a", "b")])


def test_a_model_is_evaluated_on_them(prompts, model, tmp_path):
    """The way of the workflow: a file of problems, data, prompts, evaluation; and all of it verifies."""
    out = tmp_path / "results/evaluation/models/tiny.json"
    spec = {
        "task": {"name": "math"},
        "evaluation": {
            "temperature": 1.0,
            "samples": 2,
            "seed": 0,
            "batch_size": 8,
            "max_new_tokens": 6,
            "precision": "float32",
            "split": "test",
        },
        "engine": {"name": "transformers"},
    }
    evaluate(
        read_spec("evaluate", spec),
        student=model,
        teacher=model,
        prompts=prompts,
        state=model,
        decision=None,
        out=out,
        device=torch.device("cpu"),
    )
    result = read_manifest(out, "evaluation").result
    count = read_manifest(prompts).result["test"]["prompts"]
    assert result["completions"] == 2 * count
    assert result["reverse_kl"] == pytest.approx(0, abs=1e-5)
    items = pd.read_parquet(out.with_suffix(".items.parquet"))
    assert set(items["reason"]) == {"no answer: nothing is boxed"}
    assert verify(tmp_path / "results") == Verified(artifacts=4)
