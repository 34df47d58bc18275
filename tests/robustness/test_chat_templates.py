"""Chat templates as models bring them: the prompt holds problem, system message and assistant's turn, or one line says why not."""

from __future__ import annotations

import json
import time

import pandas as pd
import pytest

from commands import effopd
from effopd.artifacts.manifests import read_manifest, write_manifest
from effopd.common.errors import UserError
from effopd.data.prompts import tokenize_problems
from effopd.models.models import load_tokenizer, save_model, weights_of
from effopd.preflight.tokens import check_chat_template
from effopd.specs.read import read_spec
from effopd.stages.make_data import make_data
from tiny_models import byte_tokenizer, make_model

SYSTEM = "Be brief."
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = CHATML.replace("CONTENT", "m.content")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
INST = "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% elif m.role == 'system' %}<<SYS>>{{ m.content }}<</SYS>>{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
PARTS = CHATML.replace("{{ CONTENT }}", "{% for part in m.content %}{{ part.text }}{% endfor %}")
BOTH = CHATML.replace(
    "{{ CONTENT }}", "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}"
)
TYPED = CHATML.replace("{{ CONTENT }}", "{% for part in m.content %}{% if part.type == 'text' %}{{ part['text'] }}{% else %}{{ raise_exception('a part of unknown type') }}{% endif %}{% endfor %}")  # fmt: skip
NO_ANSWERS = "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"

# template, and the prompt of "7 + 8" without a system message and with one: text that it ends with, or words of the line
USER = "<|im_start|>user\n7 + 8<|im_end|>\n<|im_start|>assistant\n"
TEMPLATES = {
    "chatml": (PLAIN, USER, USER),
    "trimmed": (PLAIN.replace("m.content", "m.content | trim"), USER, USER),
    "inst": (INST, "[INST] 7 + 8 [/INST]", "<<SYS>>Be brief.<</SYS>>[INST] 7 + 8 [/INST]"),
    "no assistant's turns": (NO_ANSWERS, "<user>7 + 8", "<user>7 + 8"),
    "parts": (PARTS, USER, USER),
    "parts by index": (CHATML.replace("CONTENT", "m.content[0].text"), USER, USER),
    "parts by key": (CHATML.replace("CONTENT", "m['content'][0]['text']"), USER, USER),
    "parts with types": (TYPED, USER, USER),
    "text or parts": (BOTH, USER, USER),
    "named default": ({"default": PLAIN, "tool_use": "{{ raise_exception('tools') }}"}, USER, USER),
    "thinking": (PLAIN + "{% if not enable_thinking %}<think></think>{% endif %}", USER + "<think></think>", USER + "<think></think>"),
    "date": (PLAIN.replace("{% for", "{{ strftime_now('%Y') }}{% for", 1), USER, USER),
    "system refused": (NO_SYSTEM, USER, ["System role not supported", "set `task.prompt.system` to \"\""]),
    "system and parts refused": (PARTS.replace("{% for m", "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}{% for m", 1), USER, ["refuses the prompt (none)"]),
    "system left out": (PLAIN.replace("in messages", "in messages if m.role != 'system'"), USER, ["leaves out the system message", "`task.prompt.template`"]),
    "only the last message": (PLAIN.replace("in messages", "in messages[-1:]"), USER, ["leaves out the system message"]),
    "problem left out": (PLAIN.replace("in messages", "in messages if m.role == 'system'"), ["leaves the problem out"], ["leaves the problem out"]),
    "only the first message": (PLAIN.replace("in messages", "in messages[:1]"), USER, ["leaves the problem out"]),
    "constant": ("Hello", ["leaves the problem out"], ["leaves the problem out"]),
    "empty messages": (CHATML.replace("CONTENT", "m.text"), ["leaves the problem out"], ["leaves the problem out"]),
    "upper case": (PLAIN.replace("m.content", "m.content | upper"), ["leaves the problem out"], ["leaves the problem out"]),
    "cut": (PLAIN.replace("m.content", "m.content[:6]"), ["leaves the problem out"], ["leaves the problem out"]),
    "no generation prompt": (PLAIN.split("{% if add")[0], ["does not begin the assistant's turn"], ["does not begin the assistant's turn"]),
    "raises always": ("{{ raise_exception('line one\nline two') }}", ["refuses the prompt (line one)"], ["refuses the prompt (line one)"]),
    "not Jinja": ("{% for m in messages %}", ["refuses the prompt ("], ["refuses the prompt ("]),
    "unknown filter": ("{{ messages | nothing }}", ["refuses the prompt ("], ["refuses the prompt ("]),
    "unknown name": ("{{ nothing.at.all }}", ["refuses the prompt ("], ["refuses the prompt ("]),
    "wrong types": ("{{ messages + 'x' }}", ["refuses the prompt ("], ["refuses the prompt ("]),
    "division by zero": ("{{ 1 / 0 }}", ["refuses the prompt ("], ["refuses the prompt ("]),
    "unsafe": ("{{ messages.__class__.__mro__[1].__subclasses__() }}", ["refuses the prompt ("], ["refuses the prompt ("]),
    "named variants only": ({"tool_use": PLAIN, "rag": PLAIN}, ["several chat templates (tool_use, rag), and none is named `default`"], ["none is named `default`"]),
    "none": (None, ["has no chat template"], ["has no chat template"]),
    "empty": ("", ["has no chat template"], ["has no chat template"]),
}  # fmt: skip
CASES = [(name, "", without) for name, (_, without, _) in TEMPLATES.items()]
CASES += [(name, SYSTEM, with_system) for name, (_, _, with_system) in TEMPLATES.items()]


def settings_of(system="", **changes):
    return {
        "format": "chat",
        "template": "{problem}\n",
        "system": system,
        "thinking": False,
        "max_tokens": 400,
        "examples": [],
        **changes,
    }


@pytest.mark.parametrize(
    ("name", "system", "expected"), CASES, ids=[f"{c[0]}{' with system' * bool(c[1])}" for c in CASES]
)
def test_a_prompt_is_whole_or_refused(name, system, expected):
    tokenizer = byte_tokenizer(chat_template=TEMPLATES[name][0])
    settings = settings_of(system, template="{problem}")
    good = byte_tokenizer(chat_template=PLAIN)
    if isinstance(expected, str):
        (tokens,) = tokenize_problems(tokenizer, ["7 + 8"], settings)
        shown = tokenizer.decode(tokens)
        assert shown.endswith(expected)
        assert shown.count("7 + 8") == 1
        assert system in shown
        assert check_chat_template("chat", tokenizer, tokenizer, ["7 + 8"], settings).outcome == "passed"
        return
    with pytest.raises(UserError) as refusal:
        tokenize_problems(tokenizer, ["7 + 8"], settings)
    assert "\n" not in str(refusal.value)
    for words in expected:
        assert words in str(refusal.value)
    for role, pair in {"student": (tokenizer, good), "teacher": (good, tokenizer)}.items():
        found = check_chat_template("chat", *pair, ["7 + 8"], settings)
        assert found.outcome == "failed"
        assert f"the {role}'s tokenizer" in found.line


EXAMPLE = [{"user": "1 + 2", "assistant": "<think>easy</think>3"}]
# template, and the end of the prompt of "7 + 8" after EXAMPLE, or words of the line
WITH_EXAMPLE = {
    "chatml": (PLAIN, "<|im_start|>user\n1 + 2<|im_end|>\n<|im_start|>assistant\n<think>easy</think>3<|im_end|>\n" + USER),
    "inst": (INST, "[INST] 1 + 2 [/INST] <think>easy</think>3</s>[INST] 7 + 8 [/INST]"),
    "parts": (PARTS, "<|im_start|>assistant\n<think>easy</think>3<|im_end|>\n" + USER),
    "no assistant's turns": (NO_ANSWERS, ["refuses the prompt (no). To use this model, leave `task.prompt.examples` empty; or set `task.prompt.format`"]),
    "no system either": (NO_ANSWERS, ["leave `task.prompt.examples` empty; or set `task.prompt.system` to \"\" and write"]),
    "only the last message": (PLAIN.replace("in messages", "in messages[-1:]"), ["leaves out or changes '1 + 2' of the examples. To use this model, leave `task.prompt.examples` empty"]),
    "thoughts left out": (PLAIN.replace("m.content", "m.content.split('</think>')[-1]"), ["leaves out or changes '<think>easy</think>3' of the examples"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_examples_are_whole_turns_or_refused(name):
    template, expected = WITH_EXAMPLE[name]
    tokenizer = byte_tokenizer(chat_template=template)
    settings = settings_of(SYSTEM * (name == "no system either"), template="{problem}", examples=EXAMPLE)
    if isinstance(expected, str):
        (tokens,) = tokenize_problems(tokenizer, ["7 + 8"], settings)
        assert tokenizer.decode(tokens).endswith(expected)
        return
    with pytest.raises(UserError) as refusal:
        tokenize_problems(tokenizer, ["7 + 8"], settings)
    assert "\n" not in str(refusal.value)
    for words in expected:
        assert words in str(refusal.value)


@pytest.mark.parametrize("short", ["1", "a", "user", "."])
def test_a_short_problem_is_not_found_by_chance(short):
    tokenizer = byte_tokenizer(chat_template="1 a user. <|im_start|>")
    with pytest.raises(UserError, match="leaves the problem out"):
        tokenize_problems(tokenizer, [short], settings_of())


def test_a_template_that_changes_one_problem_is_refused():
    changing = PLAIN.replace("m.content", "m.content.split('</think>')[-1]")
    with pytest.raises(UserError, match=r"leaves out or changes the problem 'What is </think>\?"):
        tokenize_problems(byte_tokenizer(chat_template=changing), ["7 + 8", "What is </think>?"], settings_of())
    raising = PLAIN.replace("m.content", "(raise_exception('bad word') if 'bad' in m.content else m.content)")
    with pytest.raises(UserError, match=r"refuses a problem \(bad word\)"):
        tokenize_problems(byte_tokenizer(chat_template=raising), ["7 + 8", "bad"], settings_of())


def test_a_plain_prompt_begins_once():
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    plain = settings_of(format="plain")
    assert tokenize_problems(tokenizer, ["x"], plain)[0].count(begin) == 1
    with pytest.raises(UserError, match="prompts would begin with <s> twice.*`task.prompt.template`"):
        tokenize_problems(tokenizer, ["x"], {**plain, "template": "<s>{problem}"})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data and a tiny model, as the workflow makes them."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "a.jsonl").write_text(
        "".join(json.dumps({"problem": f"{n} + {n}", "answer": str(2 * n)}) + "\n" for n in range(9))
    )
    columns = {"problem": "problem", "answer": "answer"}
    source = {"files": [str(folder / "a.jsonl")], "where": {}, "columns": columns, "split": "train"}
    task = {"name": "math", "seed": 0, "splits": {"test": {"sources": [source]}}}
    make_data(read_spec("make_data", {"task": task, "code": "x"}), folder / "data/math/manifest.json")
    return folder / "data/math/manifest.json"


@pytest.mark.parametrize(
    "name", ["parts", "system refused", "problem left out", "named variants only", "no generation prompt", "not Jinja"]
)
def test_the_command_says_so(data, tmp_path, name):
    model = make_model(0, vocabulary=258)
    out = tmp_path / "models/tiny/manifest.json"
    save_model(model.config, weights_of(model), byte_tokenizer(chat_template=TEMPLATES[name][0]), out.parent)
    write_manifest(
        out,
        kind="model",
        spec={},
        parents={},
        files={p.name: p for p in out.parent.iterdir() if p.is_file()},
        started=time.time(),
    )
    prompts = data.parent / f"prompts-{name.replace(' ', '-')}/manifest.json"
    spec = json.dumps({"prompt": settings_of(SYSTEM), "code": "x"})
    ending = effopd(
        "tokenize-prompts", "--spec", spec, "--data", data, "--model", out, "--out", prompts, folder=tmp_path
    )
    expected = TEMPLATES[name][2]
    if isinstance(expected, str):
        ending.succeeded()
        table = pd.read_parquet(prompts.with_name("test.parquet"))
        assert len(table) == read_manifest(data).result["rows"]["test"]
        assert "+" in load_tokenizer(out.parent).decode(table["tokens"][0])
    else:
        ending.refused(*expected)
        assert not prompts.exists()
