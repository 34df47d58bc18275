"""Wrong configurations, made from the schema and by hand: each ends in one line with the file, key, value and remedy."""

from __future__ import annotations

import contextlib
import copy
import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from commands import effopd
from effopd.artifacts.fingerprints import canonical_json
from effopd.common.errors import ConfigError
from effopd.config.files import Configuration, read_file, read_files
from effopd.config.load import complete
from effopd.config.schema import branch_of, fill, resolve, schema, typed
from effopd.workflow.job_specs import Plan

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "config/config.yaml"
QUICK = settings(deadline=None, suppress_health_check=list(HealthCheck))
REMEDY = re.compile(
    r"it must|it needs|items must differ|write one line|Did you mean|Known keys"
    r"|\b(Add|Ask|Change|Correct|Drop|Give|Indent|Keep|Leave|Lower|Name|Raise|Remove|Save|Set|Sort|Swap|Use|Write|Choose|Break) "
)

# A valid configuration in which every key of the schema has a place: all kinds of models and tasks, and every optional
# section.
SOURCES = {"sources": [{"files": ["a.csv"], "where": {"level": {"min": 3}}}, {"files": ["b.csv"]}]}
SPLITS = {"train": SOURCES, "validation": SOURCES, "test": SOURCES}
EXAMPLES = [{"user": "2 + 2", "assistant": "4"}]
EVERYTHING = {
    "models": {
        "base": {"kind": "pretrain"},
        "teacher": {"kind": "grpo", "init": "base", "early_stopping": {}},
        "by_dapo": {"kind": "dapo", "init": "base", "early_stopping": {}},
        "by_ppo": {"kind": "ppo", "init": "base", "early_stopping": {}},
        "packaged": {
            "kind": "pretrained",
            "package": {"name": "a-b", "version": "0.1.2", "sha256": "0" * 64, "file": "a_b/c.gguf"},
        },
        "by_sft": {"kind": "sft", "init": "base", "data": "samples", "lora": {}, "sampling": {"from": "teacher"}},
        "fetched": {"kind": "pretrained", "path": "./model"},
    },
    "training": {"lora": {}},
    "runs": {"opd": {"training": {"lora": {}, "horizon": {"tokens": 8}}, "extrapolation": {}}},
    "predictions": {"far": {"run": "opd", "method": "expo"}},
    "evaluation": {
        "tasks": {
            "more_arithmetic": {"task": {"name": "arithmetic", "splits": {}}},
            **{
                f"more_{name}": {"task": {"name": name, "splits": SPLITS, "prompt": {"examples": EXAMPLES}}}
                for name in ("math", "choice", "code")
            },
            "more_gym": {
                "task": {"name": "reasoning_gym", "datasets": [{"name": "gcd"}], "prompt": {"examples": EXAMPLES}}
            },
        }
    },
    "estimate": {
        "architectures": {
            "base": {
                **dict.fromkeys(
                    ("hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim", "vocabulary"), 8
                ),
                "tied": True,
            }
        }
    },
    "runtime": {"endpoints": {"teacher": {"url": "http://node7:8000/v1", "model": "t"}}},
}


def places(node, value, path=()):
    """(path, schema node, whether it is required) of every key below a value, with its sections and items."""
    node = branch_of(resolve(node), value)
    for key, child in node.get("properties", {}).items():
        yield (*path, key), child, key in node.get("required", ())
        if key in value or not resolve(child).get("required"):  # without which nothing in it can be named
            yield from below(resolve(child), value.get(key), (*path, key))
    others = node.get("additionalProperties")
    if isinstance(others, dict):
        for name in value:
            yield (*path, name), others, False
            yield from below(resolve(others), value[name], (*path, name))


def below(node, value, path):
    if node.get("type") == "object":
        yield from places(node, value or {}, path)
    elif node.get("type") == "array" and resolve(node["items"]).get("type") == "object":
        for number, item in enumerate(value or ()):
            yield from places(node["items"], item, (*path, number))


NOT_NUMBERS = ["fast", "true", "[1]", "{a: 1}", ".nan", "-.inf", "1.0e+400", "1e999", "010", "-08", "1:04", '"8"']


def wrong_values(node, required):
    """What is wrong for a schema node, as YAML text."""
    node = resolve(node)
    if required and "default" not in node:
        yield "null"
    if "oneOf" in node:
        yield from ("3.5", "{a: 1}", "true", *(["sometimes"] if "enum" in node["oneOf"][0] else []))
        lists = next(one for one in node["oneOf"] if one.get("type") == "array")
        yield from (f"[{item}]" for item in wrong_values(lists["items"], False))
        return
    if "const" in node or "enum" in node:
        known = [str(value) for value in node.get("enum", [node.get("const")])]
        yield from (f"'{known[0]}x'", "7", "[]", "{}", "true", '"a\\nb"')
        return
    kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
    if kinds == ["string", "number", "boolean"]:
        yield from ("[1]", "{a: 1}", ".nan", "010", "1:04", "yes")
    elif kinds[0] in ("integer", "number"):
        yield from NOT_NUMBERS
        yield from ["6.5", "1.0e+30", "9" * 30] if kinds == ["integer"] else []
        for bound, step in (("minimum", -1), ("exclusiveMinimum", 0), ("maximum", 1), ("exclusiveMaximum", 0)):
            yield from [str(node[bound] + step)] if bound in node else []
        yield from [str(node["multipleOf"] + 1)] if "multipleOf" in node else []
    elif kinds == ["boolean"]:
        yield from ("maybe", "1", "0", "[true]", '"yes"', '"true"', "1.0", "010")
    elif kinds == ["string"]:
        yield from ("5", "1.5", "true", "[a]", "{a: b}", '"a\\u0007b"', '"\\ud800"', ".nan", "!!binary aGk=")
        yield from ['""'] if node.get("minLength") else []
        yield from ['"a\\nb"', '"a\\u2028b"'] if "\\" in str(node.get("pattern")) else []
        yield from ['"no place for it"'] if "{" in str(node.get("pattern")) else []
        yield from ["'('", "'a{9999999999}'", "'[[a]'"] if node.get("format") == "regex" else []
        yield from ["node7:8000", "'http://:x'", "'http://h:99999'"] if node.get("format") == "http-url" else []
    elif kinds == ["array"]:
        yield from ("3", "text", "{a: 1}", "true", "[[]]")
        yield from ["[]"] if node.get("minItems") else []
        if resolve(node["items"]).get("type") != "object":
            yield from (f"[{item}]" for item in wrong_values(node["items"], False))
    elif kinds == ["object"]:
        yield from ("3", "text", "[1]", "true", "{'': 1}", "{1: 2}", "{a: 1, a: 2}", "{? [a] : 1}")
        if node.get("additionalProperties") is False or "allOf" in node:
            known = next(iter(node.get("properties", {"kind": None})))
            yield from (f"{{{known}z: 1}}", "{nonsense: 1}")
        yield from ["{'Upper Case': {}}", "{nan: {}}", '{"x\\n": {}}', f"{{{'a' * 65}: {{}}}}"] * (
            "propertyNames" in node
        )


def overlay(path, text):
    """A file whose only key is `path`, with the value `text`; lists on the way are those of EVERYTHING."""
    value = "@value@"
    for depth in reversed(range(len(path))):
        if isinstance(path[depth], int):
            items = copy.deepcopy(at(EVERYTHING, path[:depth]))
            items[path[depth]] = {**items[path[depth]], **value} if isinstance(value, dict) else value
            value = items
        else:
            value = {path[depth]: value}
    return yaml.safe_dump(value).replace("'@value@'", text)


def at(value, path):
    for part in path:
        value = value[part]
    return value


def configuration(path=()):
    """The embedded experiment with what `path` needs of EVERYTHING: one of its models and tasks beside the used ones."""
    needed = copy.deepcopy(EVERYTHING)
    needed["models"] = {name: model for name, model in needed["models"].items() if name in ("base", "teacher", *path)}
    tasks = needed["evaluation"]["tasks"]
    needed["evaluation"]["tasks"] = {name: task for name, task in tasks.items() if name in path}
    return Configuration({**needed, "runs": {"effopd": {}, **needed["runs"]}})


def completed(file, path=()):
    """The configuration completed after reading a file over it, as `Plan.of_files` does."""
    together = configuration(path)
    together.add(read_file(file))
    with together.located():
        return complete(together.values)


def refusal(file, path=()):
    """The one line with which a file is refused."""
    with pytest.raises(ConfigError) as caught:
        completed(file, path)
    line = str(caught.value)
    assert "\n" not in line, line
    assert len(line) < 1000, line
    assert line.startswith(str(file)), line  # the file, and mostly the line
    assert REMEDY.search(line), line
    return line


PLACES = list(places(schema(), EVERYTHING))
FIRST: dict[
    int, tuple
] = {}  # the first key of each node of the schema; others that share it are wrong in the same ways
for _path, _node, _ in PLACES:
    FIRST.setdefault(id(_node), _path)
CASES = [
    (path, text) for path, node, required in PLACES if FIRST[id(node)] == path for text in wrong_values(node, required)
]
AT_ONCE = 50


def test_every_key_of_the_schema_has_wrong_values():
    def keys(node):
        for name, value in node.items() if isinstance(node, dict) else ():
            if name == "properties":
                yield from map(id, value.values())
            yield from keys(value)

    left = set(keys(schema())) - set(FIRST)
    missed = {key: child for key, child in nodes(schema()) if id(child) in left and "const" not in child}
    assert not missed  # `const` is the key that chooses a branch


def nodes(node):
    """(key, mapping) of everything in a schema."""
    for key, child in node.items() if isinstance(node, dict) else ():
        yield key, child
        yield from nodes(child)


def check(cases, tmp_path):
    for number, (path, text) in enumerate(cases):
        file = tmp_path / f"{number}.yaml"
        file.write_text(overlay(path, text))
        line = refusal(file, path)
        assert ".".join(map(str, path)) in line, (text, line)
        assert value_is_named(text, line), (text, line)


SAMPLE = CASES[::11]  # of every kind of key some, and of every way


@pytest.mark.parametrize("start", range(0, len(SAMPLE), AT_ONCE))
def test_keys_are_wrong_in_one_line(start, tmp_path):
    assert len(SAMPLE) > 250
    check(SAMPLE[start : start + AT_ONCE], tmp_path)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("start", range(0, len(CASES), AT_ONCE))
def test_every_key_is_wrong_in_every_way_in_one_line(start, tmp_path):
    check(CASES[start : start + AT_ONCE], tmp_path)


def value_is_named(text, line):
    """Whether a line shows what was found, or a part of it that is wrong; what has no letter or digit is not looked for."""
    if text in ("null", "{'': 1}"):
        return text == "null" or "''" in line
    parts = re.findall(r"[\w.-]+", re.sub(r"\\\w", " ", text.replace("1.0e+30", "1e+30").replace("'", "")))
    return not parts or any(part[:30].lower() in line.lower() for part in parts)


RUN = "runs: {{opd: {{label: {}}}}}"
TRAPS = {  # what a file holds, and words of the line that refuses it
    "completions that nobody has the time for": ("evaluation: {samples: 1000000000}", "`evaluation.samples` is 1000000000; it must be at most 65536"),
    "threads that no machine has": ("runtime: {threads: 1000000}", "`runtime.threads` is 1000000; it must be at most 4096"),
    "a coefficient that is none": ("extrapolation: {coefficients: [2, 1.0e+300]}", "it must be at most 1000000"),
    "a pattern of which Python warns": ("extrapolation: {parameters: '[[a]'}", "`extrapolation.parameters` is '[[a]'"),
    "a list": ("- training", "holds a list. Write sections"),
    "a scalar": ("training", "holds a single value. Write sections"),
    "two documents": ("seeds: [1]\n---\nseeds: [2]", "line 2: a second document begins here"),
    "a key twice": ("training: {lr: 1.0}\nseeds: [1]\ntraining: {steps: 8}", "line 3: `training` is written twice, first in line 1. Keep one"),
    "a key twice, once in quotes": ("training: {steps: 8, 'steps': 16}", "`training.steps` is written twice"),
    "octal": ("training:\n  steps: 010", "line 2: `training.steps` is 010, which readers of YAML take for different numbers"),
    "octal in a list": ("seeds: [1, 010]", "`seeds.1` is 010"),
    "sexagesimal": ("training: {max_new_tokens: 1:04}", "`training.max_new_tokens` is 1:04, which readers"),
    "leading zero": ("training: {steps: 08}", "`training.steps` is 08, which readers"),
    "octal of YAML 1.2": ("training: {steps: 0o10}", "`training.steps` is '0o10'; it must be a whole number"),
    "not a number": ("training: {lr: .nan}", "`training.lr` is .nan, which is not finite. Write a number"),
    "infinite": ("evaluation: {temperature: .inf}", "`evaluation.temperature` is .inf, which is not finite"),
    "overflow": ("training: {lr: 1.0e+400}", "`training.lr` is 1.0e+400, which is not finite. Write a smaller"),
    "overflow of YAML 1.2": ("training: {lr: 1e400}", "`training.lr` is 1e400, which is not finite. Write a smaller"),
    "enormous whole number": ("training: {steps: " + "9" * 5000 + "}", "beyond 9223372036854775807. Write a smaller number"),
    "enormous whole float": ("seeds: [1.0e+300]", "`seeds.0` is 1e+300, beyond 9223372036854775807"),
    "fraction": ("seeds: [0.5]", "`seeds.0` is 0.5; it must be a whole number"),
    "truth as a number": ("training: {steps: true}", "`training.steps` is true; it must be a whole number"),
    "number in quotes": ("training: {lr: '1e-5'}", "`training.lr` is '1e-5', which is text. Write 1e-5 without quotes"),
    "truth in quotes": ("dynamics: {enabled: 'no'}", "`dynamics.enabled` is 'no'; it must be true or false"),
    "truth or text": ("evaluation: {tasks: {m: {task: {name: math, splits: {test: {sources: [{files: [a.csv], where: {x: {equals: yes}}}]}}}}}}", "equals` is yes, a truth value or a word. Write true or false, or the word in quotes"),
    "tab": ("training:\n\tsteps: 8", "line 2: this is not YAML (found character '\\t' that cannot start any token). Indent with spaces"),
    "UTF-16": ("seeds: [1]".encode("utf-16"), "is UTF-16. Save it as UTF-8"),
    "Latin-1": ("a: 1\nb: \u00e9".encode("latin-1"), "line 2: the byte 0xe9 is not UTF-8. Save the file as UTF-8"),
    "NUL": (b"seeds: [1]\n\0", "line 2: the character U+0000 is not allowed. Remove it"),
    "escape": ("seeds: \x1b[2J", "the character U+001B is not allowed"),
    "escaped control character": (RUN.format('"a\\e[2Jb"'), "`runs.opd.label` holds the control character U+001B"),
    "lone surrogate": (RUN.format('"\\ud83d"'), "`runs.opd.label` holds the control character U+D83D"),
    "line break in a label": (RUN.format('"a\\nb"'), "`runs.opd.label` is 'a\\nb'; write one line of text"),
    "line break in a path": ('models: {base: {kind: pretrained, path: "./a\\nb"}}', "`models.base.path` is './a\\nb', which holds a line break"),
    "empty label": (RUN.format("''"), "`runs.opd.label` is ''; it must not be empty"),
    "number as a label": (RUN.format("2024"), "`runs.opd.label` is 2024; it must be text. Write it in quotes"),
    "Python object": ("training: !!python/object/apply:os.system [ls]", "`training` has the tag `!!python/object/apply:os.system`"),
    "binary": ("training: {teacher: !!binary aGk=}", "`training.teacher` has the tag `!!binary`"),
    "own tag": ("training: !include other.yaml", "`training` has the tag `!include`, which is not read"),
    "set": ("seeds: !!set {1}", "`seeds` has the tag `!!set`"),
    "number as a key": ("runs: {1: {}}", "`runs` has the key 1, which is not text. Write it in quotes"),
    "null as a key": ("runs: {~: {}}", "`runs` has the key ~, which is not text"),
    "truth as a key": ("runs: {true: {}}", "`runs` has the key true, which is not text"),
    "list as a key": ("? [a]\n: 1", "the file has a list or mapping as a key"),
    "endless keys": ("? " * 3000, "the file has a list or mapping as a key"),
    "deep lists": ("a: " + "[" * 3000, "sections are nested more than 50 deep"),
    "deep mappings": ("{a: " * 3000, "sections are nested more than 50 deep"),
    "alias in itself": ("seeds: &a [*a]", "`seeds.0` is the alias `*a` of an anchor that is not complete above it"),
    "unknown alias": ("seeds: *a", "`seeds` is the alias `*a`"),
    "aliases without end": ("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)), "more than 20000 values. Write fewer"),
    "merge of a number": ("training: {<<: 3}", "`training.<<` does not name mappings to take keys from"),
    "unclosed": ("seeds: [1", "this is not YAML (expected ',' or ']', but got '<stream end>'). Correct it"),
    "two colons": ("a: b: c", "line 1: this is not YAML (mapping values are not allowed here)"),
    "escape beyond Unicode": ('a: "\\UFFFFFFFF"', "this is not YAML"),
    "another YAML": ("%YAML 3.0\n---\nseeds: [1]", "this is not YAML (found incompatible YAML document"),
    "template": ("__use_yte__: true", "`__use_yte__` is not a key"),
    "not text at all": (bytes(range(256)), "not UTF-8"),
    "name nan": ("runs: {nan: {}}", "`runs.nan`: the name `nan` is not usable. Use at most 64 lower-case letters"),
    "name null": ("models: {'null': {kind: pretrain}}", "`models.null`: the name `null` is not usable"),
    "name true": ("evaluation: {tasks: {'true': {task: {}}}}", "`evaluation.tasks.true`: the name `true` is not usable"),
    "name with a line break": ('runs: {"x\\n": {}}', "`runs.x\\n`: the name `x\\n` is not usable"),
    "long name": ("runs: {" + "a" * 65 + ": {}}", "is not usable. Use at most 64"),
    "name in Unicode": ("runs: {\u00e9: {}}", "the name `\u00e9` is not usable"),
    "coefficients that print alike": ("extrapolation: {coefficients: [2, 2.0000001]}", "`extrapolation.coefficients` has 2 and 2.0000001, which are alike to six digits. Drop one"),
    "predicted coefficients that print alike": ("predictions: {p: {run: opd, method: expo, coefficients: [1.0000001, 1.0000002]}}", "`predictions.p.coefficients` has 1.0000001 and 1.0000002"),
    "fractions that print alike": ("dynamics: {norm_scaling: {betas: [0.1, 0.10000001]}}", "`dynamics.norm_scaling.betas` has 0.1 and 0.10000001"),
    "more tokens than the vocabulary": ("training: {objective: {support: top_k, top_k: 16}}", "`training.objective.top_k` is 16, and `base` knows 16 tokens. Lower it to 15"),
    "more tokens than a teacher's": ("models: {m: {kind: pretrained, path: ./m}}\ntraining: {student: m, objective: {support: top_k}}", "`training.objective.top_k` is 64, and `base` knows 16 tokens"),
    "password in a wrong address": ("runtime: {endpoints: {teacher: {model: t, url: 'http://me:secret@host:99999/v1'}}}", "'http://***@host:99999/v1', which is no usable address (its port"),
    "password with a slash": ("runtime: {endpoints: {teacher: {model: t, url: 'http://me:se/cret@host/v1'}}}", "'http://***@host/v1', which is no usable address (its port"),
    "label of spaces": (RUN.format("' '"), "`runs.opd.label` is ' '; write one line of text"),
    "temperature that is all but 0": ("training: {temperature: 1.0e-300}", "`training.temperature` is 1e-300; it must be at least 1e-06"),
    "temperature of evaluation": ("evaluation: {temperature: 1.0e-300}", "`evaluation.temperature` is 1e-300; it must be 0 (greedy) or at least"),
    "a default that does not fit a run": ("runs: {effopd: {extrapolation: {gate: {source: rollouts}}}}", "line 1: `runs.effopd.extrapolation.gate.metric` is 'accuracy', and with source `rollouts`"),
    "a value that does not fit a run": ("extrapolation: {gate: {samples: 2}}", "line 1: `extrapolation.gate.samples` is 2, and with source `rollouts`"),
    "hub name beyond ASCII": ("models: {m: {kind: pretrained, path: \u00e4/b, revision: abc}}", "`models.m.path` is '\u00e4/b', neither a model of the hub"),
    "architecture of no model": ("estimate: {architectures: {basis: {hidden_size: 8, intermediate_size: 8, layers: 1, heads: 1, kv_heads: 1, head_dim: 8, vocabulary: 9, tied: true}}}", "`estimate.architectures.basis` is not named as a model"),
    "rows that cannot be": ("evaluation: {tasks: {m: {task: {name: math, splits: {test: {sources: [{files: [a.csv], where: {x: {min: 2, max: 1}}}]}}}}}}", "sources.0.where.x` is {'min': 2, 'max': 1}, which no row can meet"),
    "revision of local files": ("evaluation: {tasks: {m: {task: {name: math, splits: {test: {sources: [{files: [a.csv], revision: abc}]}}}}}}", "sources.0.revision`: local files have none"),
    "more steps than anybody has": ("training: {steps: 9999999999}", "`training.steps` is 9999999999; it must be at most 1000000"),
    "word in a list": ("extrapolation: {triggers: [often]}", "`extrapolation.triggers.0` is 'often'; it must be a whole number"),
    "typo": ("training: {stepz: 3}", "`training.stepz` is not a key. Did you mean `steps`?"),
    "a constraint on a default": ("training:\n  steps: 48", "line 2: `extrapolation.triggers`: triggers at powers of two need `training.steps` to be one"),
}  # fmt: skip


def written(folder, content, name="overlay.yaml"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("trap", TRAPS)
def test_traps_of_yaml_and_of_constraints(trap, tmp_path):
    content, words = TRAPS[trap]
    with pytest.raises(ConfigError) as caught:
        Plan.of_files([EMBEDDED, written(tmp_path, content)])
    line = str(caught.value)
    assert words in line
    assert line.startswith(f"{tmp_path}/overlay.yaml"), line
    assert "\n" not in line
    assert REMEDY.search(line), line
    assert "secret" not in line


@pytest.mark.parametrize("trap", ["octal", "Latin-1", "a list", "NUL", "deep lists", "name with a line break", "typo"])
@pytest.mark.parametrize("command", ["verify", "estimate"])
def test_commands_refuse_as_the_workflow_does(command, trap, tmp_path):
    content, words = TRAPS[trap]
    overlay = written(tmp_path, content)
    effopd(command, "--configfile", EMBEDDED, "--configfile", overlay, folder=tmp_path).refused(overlay.name, words)


@pytest.mark.parametrize("name", ["none.yaml", "folder", "nul\0", "x" * 300, "fifo", "large.yaml"])
def test_files_that_are_none(name, tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large.yaml").write_bytes(b"#" * 2**21)
    with pytest.raises(ConfigError, match="Name (the|another)|Correct its name"):
        read_files([tmp_path / name])


SAME = {  # what says the same as something else: (file, key, value)
    "whole float": ("training: {steps: 32.0}", "training.steps", 32),
    "whole floats": ("seeds: [0.0, 1.0]", "seeds", [0, 1]),
    "exponent": ("training: {steps: 3.2e1}", "training.steps", 32),
    "exponent without a point": ("training: {lr: 1e-5}", "training.lr", 1e-5),
    "whole floats in a list or word": ("training: {checkpoint_steps: [4.0, 16.0]}", "training.checkpoint_steps", [4, 16]),
    "whole float in an enum": ("training: {zero_stage: 1.0}", "training.zero_stage", 1),
    "a float stays one": ("training: {lr: 1.0}", "training.lr", 1.0),
    "byte-order mark": (b"\xef\xbb\xbfseeds: [3]", "seeds", [3]),
    "Windows": (b"training:\r\n  steps: 32\r\n", "training.steps", 32),
    "empty": ("", "seeds", [0, 1, 2]),
    "comments": ("# nothing\n---\n", "seeds", [0, 1, 2]),
    "nothing": ("null", "seeds", [0, 1, 2]),
    "JSON": ('{"training": {"lr": 1e-4, "steps": 32}}', "training.lr", 1e-4),
    "yes": ("dynamics: {enabled: no}", "dynamics.enabled", False),
    "a word where one is meant": ("runtime: {warm: on}", "runtime.warm", "on"),
    "a word as a name": ("runs: {no: {label: off}}", "runs.no.label", "off"),
    "a label like a time": (RUN.format("12:30"), "runs.opd.label", "12:30"),
    "a label like a number": (RUN.format("007"), "runs.opd.label", "007"),
    "a label like a date": (RUN.format("2024-01-01"), "runs.opd.label", "2024-01-01"),
    "a commit like a number": ("models: {m: {kind: pretrained, path: o/n, revision: " + "1" * 38 + "e5}}", "models.m.revision", "1" * 38 + "e5"),
    "an emoji as JSON writes it": (RUN.format('"\\ud83d\\ude00"'), "runs.opd.label", "\U0001f600"),
    "merge": ("training: {<<: [{lr: 0.5, steps: 16}, {lr: 2.0}], steps: 32}", "training", {"lr": 0.5, "steps": 32}),
    "alias": ("runs: {a: {label: &l x}, b: {label: *l}}", "runs.b.label", "x"),
    "string tag": (RUN.format("!!str 5"), "runs.opd.label", "5"),
    "a null takes out": ("runs: {opd_tuned: null}", "runs.opd_tuned", None),
    "credentials in an address": ("runtime: {endpoints: {teacher: {model: t, url: 'http://me:secret@[::1]:8000/v1'}}}", "runtime.endpoints.teacher.model", "t"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_what_is_clear_is_read_rightly(case, tmp_path):
    content, key, value = SAME[case]
    found = Plan.of_files([EMBEDDED, written(tmp_path, content)]).config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else found
    if isinstance(value, dict):
        found = {name: found[name] for name in value}
    assert found == value
    assert repr(found) == repr(value)  # 1 and 1.0 are equal, and have other fingerprints


def test_whole_floats_have_the_fingerprints_of_integers(tmp_path):
    texts = "seeds: [0, 1]\ntraining: {steps: 32}", "seeds: [0.0, 1.0]\ntraining: {steps: 32.0}"
    one, other = (Plan.of_files([EMBEDDED, written(tmp_path, text)]) for text in texts)
    assert canonical_json(one.config) == canonical_json(other.config)


def test_assignments_are_read_as_files_are():
    plan = Plan.of_files([EMBEDDED], ["seeds=[4.0]", "training={'steps': 32, 'lr': 1e-4}", "figures="])
    assert (plan.seeds, plan.config["training"]["steps"], plan.config["training"]["lr"]) == ([4], 32, 1e-4)
    with pytest.raises(ConfigError, match="^--config training: `training.steps` is 010, which readers"):
        Plan.of_files([EMBEDDED], ["training={steps: 010}"])


# Pieces of YAML that mean something alone or together.
PIECES = ["a: ", "b", "- ", "[", "]", "{", "}", "&x ", "*x ", "<<: ", "? ", ": ", "!!str ", "!t ", "'", '"', "\\", "|\n", ">\n", "#", "%YAML 1.1\n", "---\n", "...\n", "\n", "\n  ", "\t", ",", "010", "1:04", "1e5", ".nan", "yes", "null", "training: ", "steps: ", "runs: ", "\ufeff", "\x85", "\u2028"]  # fmt: skip
FILES = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.sampled_from(PIECES), max_size=30).map(lambda pieces: "".join(pieces).encode()),
)


@settings(QUICK, max_examples=200)
@given(content=FILES)
def test_any_file_is_a_mapping_or_refused(content, tmp_path_factory):
    file = written(tmp_path_factory.getbasetemp(), content)
    try:
        values = read_file(file).values
    except ConfigError as error:
        assert str(error).startswith(str(file))  # noqa: PT017 - it need not be raised
        return
    assert isinstance(values, dict)
    if values:
        together = configuration()
        together.add(Configuration(values))
        with contextlib.suppress(ConfigError):
            complete(together.values)


def valid_values(node):
    """A strategy of what a schema node takes, by itself."""
    node = resolve(node)
    if "oneOf" in node:
        return st.one_of(*map(valid_values, node["oneOf"]))
    if "enum" in node:
        return st.sampled_from(node["enum"])
    kind = node.get("type")
    if kind == "boolean":
        return st.booleans()
    if kind == "integer":
        step = node.get("multipleOf", 1)
        low, high = node.get("minimum", -(2**63) + 1), node.get("maximum", 2**63 - 1)
        return st.integers(-(-low // step), high // step).map(lambda number: number * step)
    if kind == "number":
        return st.floats(
            node.get("minimum", node.get("exclusiveMinimum")), node.get("maximum", node.get("exclusiveMaximum")),
            exclude_min="exclusiveMinimum" in node, exclude_max="exclusiveMaximum" in node,
            allow_nan=False, allow_infinity=False,
        )  # fmt: skip
    if kind == "array":
        sizes = {"min_size": node.get("minItems", 0), "max_size": node.get("maxItems", 5)}
        return st.lists(valid_values(node["items"]), unique_by=repr if node.get("uniqueItems") else None, **sizes)
    text = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=20)
    return text if kind == "string" else None


def takes_values(node):
    """Whether a schema node takes a value, or a list of them, that `valid_values` makes."""
    node = resolve(node)
    kinds = [resolve(one).get("type", "word") for one in (node, node.get("items", {}))]
    return all(isinstance(kind, str) and kind != "object" for kind in kinds) and not {"const", "format"} & {*node}


CHOOSING = [id(schema()["$defs"][kind]["properties"][key]) for kind, key in (("task", "name"), ("model", "kind"))]
LEAVES = [
    (path, node)
    for path, node, _ in PLACES
    if FIRST[id(node)] == path and takes_values(node) and id(node) not in CHOOSING  # whose values change the other keys
]


@settings(QUICK, max_examples=30)
@given(data=st.data())
def test_valid_values_are_read_as_they_are_written(data, tmp_path_factory):
    """What the schema takes survives the file, and is refused by nothing but what it must fit together with."""
    path, node = data.draw(st.sampled_from(LEAVES))
    value = data.draw(valid_values(node))
    if "{problem}" in str(resolve(node).get("pattern")):
        value = f"{value}{{problem}}"
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
    file = written(tmp_path_factory.getbasetemp(), overlay(path, text))
    values = read_file(file).values
    assert at(typed(values, schema()), path) == value
    together = configuration(path)
    together.add(Configuration(values))
    filled = fill(typed(together.values, schema()), schema())
    assert Draft202012Validator(schema()).is_valid(filled), (path, value)
    try:
        complete(together.values)
    except ConfigError as error:
        assert REMEDY.search(str(error)), error  # noqa: PT017 - it need not be raised


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "config").glob("*.yaml")))
def test_shipped_configurations_are_valid(name):
    Plan.of_files([EMBEDDED, ROOT / "config" / name])


@pytest.mark.parametrize(
    ("domain", "row", "more"),
    [
        ("math", "justrl_1.5b", ()), ("code", "justrl_1.5b", ()), ("math", "prorl_1.5b", ("gpqa",)),
        ("math", "brorl_1.5b", ("every_step",)), ("math", "qwen3_8b_base_dapo", ("teacher_dapo",)),
        ("math", "qwen3_8b_base_ppo", ("teacher_ppo",)), ("math", "qwen3_4b_grpo", ("teacher_grpo",)),
        ("code", "qwen3_14b_grpo", ()), ("math", "qwen2.5_32b_dapo", ()), ("code", "qwen3_14b_base_dapo", ("gpqa",)),
    ],
)  # fmt: skip
def test_configurations_of_the_paper_are_valid(domain, row, more):
    Plan.of_files([EMBEDDED, *(ROOT / f"config/paper/{name}.yaml" for name in (domain, row, *more))])
