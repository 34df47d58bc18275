"""The registry: this package's entries, those of other packages, and what is wrong with some."""

import re
import sys
from pathlib import Path

import pytest

from effopd.artifacts import fingerprints
from effopd.artifacts.fingerprints import _closure, code_digest
from effopd.common import registry
from effopd.common.errors import ConfigError
from effopd.config.load import _validator, complete
from effopd.config.schema import run_settings, schema
from effopd.workflow.job_specs import Plan

CACHES = (registry.entries, registry.module_file, schema, _validator, code_digest, _closure, fingerprints._imports, fingerprints._tree_digest)  # fmt: skip
CONFIG = {
    "models": {"base": {"kind": "pretrain"}, "teacher": {"kind": "grpo", "init": "base"}},
    "runs": {"opd": {}, "other": {}},
}
CODE = "def found(*arguments, **options):\n    return arguments, options\n"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that installs a package: its entry points by kind, and its files."""

    def forget():
        for cached in CACHES:
            cached.cache_clear()
        for name in [name for name in sys.modules if name.split(".")[0] in ("one", "two")]:
            del sys.modules[name]

    def package(name, entry_points, files):
        facts = tmp_path / f"{name}-1.0.dist-info"
        facts.mkdir(parents=True)
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = (f"[effopd.{kind}]\n{line}\n" for kind, line in entry_points.items())
        (facts / "entry_points.txt").write_text("".join(lines))
        for path, text in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text)
        forget()
        return tmp_path / name

    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield package
    monkeypatch.undo()
    forget()


def test_everything_that_is_registered_here_is_there_and_is_what_it_has_to_be():
    for kind, table in registry.BUILT_IN.items():
        for name in table:
            if name != "vllm":  # perhaps not installed
                assert registry.load(kind, name) is not None
            assert registry.module_file(registry.find(kind, name).module).is_file()


def test_a_name_of_another_package_is_known_and_imported_only_on_use(install):
    install("one", {"gates": "mine = one.gate:found"}, {"__init__.py": "", "gate.py": CODE})
    assert registry.names("gates")[-1] == "mine"
    assert "one" not in sys.modules
    assert registry.load("gates", "mine")(1, a=2) == ((1,), {"a": 2})


SPLITS = "properties: {splits: {type: object}}"
FAULTY = {
    "a name that is taken here": ({"gates": "accuracy = one:found"}, {"__init__.py": CODE}, "the gate `accuracy` of the package one has the name of the gate `accuracy` of the package effopd. Uninstall one of them."),
    "an unusable name": ({"gates": "My-Gate = one:found"}, {"__init__.py": CODE}, "the gate `My-Gate` of the package one: the name is not usable."),
    "no module": ({"gates": "mine = one.gate:found"}, {"__init__.py": ""}, "the gate `mine` of the package one is said to be 'one.gate:found', and there is no such module."),
    "no attribute": ({"gates": "mine = one"}, {"__init__.py": ""}, "is said to be 'one', and there is no such module. Write `module:attribute`"),
    "a module that cannot be imported": ({"gates": "mine = one:found"}, {"__init__.py": "import nothing_like_it"}, "the gate `mine` of the package one cannot be imported (ModuleNotFoundError: No module named 'nothing_like_it')."),
    "a module without it": ({"gates": "mine = one:found"}, {"__init__.py": ""}, "the gate `mine` of the package one cannot be imported (AttributeError: module 'one' has no attribute 'found')."),
    "a module that ends the program": ({"gates": "mine = one:found"}, {"__init__.py": "import sys\nsys.exit(0)"}, "the gate `mine` of the package one cannot be imported (SystemExit: 0)."),
    "no function": ({"gates": "mine = one:found"}, {"__init__.py": "found = 1"}, "the gate `mine` of the package one is one:found, which lacks __call__"),
    "no task": ({"tasks": "mine = one:found"}, {"__init__.py": CODE}, "the task `mine` of the package one is one:found, which lacks make_tables, verify"),
    "half a task": ({"tasks": "mine = one:found"}, {"__init__.py": "from effopd.tasks.base import Task\nclass found(Task):\n    def verify(self, problem, completion): ...\n"}, "which lacks make_tables, right_completion, wrong_completion (docs/plugins.md)"),
    "no method": ({"predictors": "mine = one:found"}, {"__init__.py": CODE}, "the predictor `mine` of the package one is one:found, which lacks predict, states, accuracies"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTY)
def test_what_is_wrong_with_a_package_is_one_line_that_names_it(install, fault):
    entry_points, files, line = FAULTY[fault]
    install("one", entry_points, files)
    with pytest.raises(ConfigError) as raised:
        ((kind, _),) = entry_points.items()
        registry.names(kind)
        registry.load(kind, "mine")
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_two_packages_with_one_name_are_refused(install):
    for name in ("one", "two"):
        install(name, {"searches": f"mine = {name}:found"}, {"__init__.py": CODE})
    with pytest.raises(
        ConfigError, match="search `mine` of the package two has the name of the search `mine` of the package one"
    ):
        complete(CONFIG)


SCHEMAS = {
    "a task without one": ({"tasks": "mine = one:found"}, None, "the task `mine` of the package one has no mine.schema.yaml beside its module with its `splits`. Add it."),
    "a task without splits": ({"tasks": "mine = one:found"}, "properties: {}", "with its `splits`"),
    "a list": ({"gates": "mine = one:found"}, "[1]", "the gate `mine` of the package one has a schema that cannot be used"),
    "no schema": ({"gates": "mine = one:found"}, "properties: {a: {type: many}}", "'many' is not valid under any of the given schemas"),
    "no YAML": ({"gates": "mine = one:found"}, "properties: {a", "the gate `mine` of the package one has a schema that cannot be used"),
    "a mapping of itself": ({"gates": "mine = one:found"}, "properties: &a {x: {properties: *a}}", "has a schema that cannot be used"),
    "too deep": ({"gates": "mine = one:found"}, "[" * 3000, "has a schema that cannot be used"),
    "anything": ({"gates": "mine = one:found"}, "properties: {a: true}", "(`a` is no mapping of its own: references and `true` are not read)"),
    "a reference": ({"gates": "mine = one:found"}, "properties: {a: {$ref: '#/$defs/nope'}}", "(`a` is no mapping of its own"),
    "of no mapping": ({"gates": "mine = one:found"}, "{type: string, properties: {}}", "(it is of no mapping)"),
    "a default of another type": ({"gates": "mine = one:found"}, "properties: {a: {type: integer, default: hello}}", "('hello' is not of type 'integer')"),
    "the name of a key beside it": ({"gates": "samples = one:found"}, "properties: {}", "the gate `samples` of the package one has options, and its name is a key of theirs already"),
}  # fmt: skip


@pytest.mark.parametrize("fault", SCHEMAS)
def test_what_is_wrong_with_a_packages_schema_is_one_line_that_names_it(install, fault):
    entry_points, text, line = SCHEMAS[fault]
    files = {"__init__.py": CODE} | ({} if text is None else {"mine.schema.yaml": text, "samples.schema.yaml": text})
    install("one", entry_points, files)
    with pytest.raises(ConfigError) as raised:
        complete(CONFIG)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture
def losses(install):
    files = {
        "__init__.py": "",
        "loss.py": "from . import helper\nfrom effopd.losses import divergences\n" + CODE,
        "helper.py": "x = 1\n",
        "gate.py": CODE,
        "mine.schema.yaml": "properties: {weight: {type: number, minimum: 0, default: 0.5}}",
    }
    return install("one", {"objectives": "mine = one.loss:found", "gates": "ours = one.gate:found"}, files)


def chosen(**objective):
    return {**CONFIG, "runs": {"opd": {}, "other": {"training": {"objective": {"divergence": "mine", **objective}}}}}


def test_options_are_filled_in_where_they_are_chosen_and_nowhere_else(losses):
    config = complete(chosen())
    assert "mine" not in config["training"]["objective"]
    assert run_settings(config, "opd")["training"]["objective"].keys() == {
        "support",
        "divergence",
        "top_k",
        "reward_scale",
    }
    assert run_settings(config, "other")["training"]["objective"]["mine"] == {"weight": 0.5}
    config = complete({**chosen(), "training": {"objective": {"mine": {"weight": 2}}}})  # for runs that choose it
    assert "mine" not in run_settings(config, "opd")["training"]["objective"]
    assert run_settings(config, "other")["training"]["objective"]["mine"] == {"weight": 2}
    assert complete(config) == config


BAD = {
    "an unknown name": (chosen(divergence="yours"), "it must be one of reverse_kl, forward_kl, js, mine."),
    "an unknown option": (chosen(mine={"wait": 1}), "`runs.other.training.objective.mine.wait` is not a key. Did you mean `weight`?"),
    "a bad value": (chosen(mine={"weight": -1}), "`runs.other.training.objective.mine.weight` is -1; it must be at least 0."),
    "options of what is not chosen": (chosen(divergence="reverse_kl", mine={"weight": 1}), "`runs.other.training.objective.mine` is of what is not chosen there. Choose `mine`, or remove it."),
    "a gate within steps": ({**CONFIG, "extrapolation": {"triggers": "every_step", "gate": {"metric": "ours", "source": "rollouts"}}}, "`extrapolation.gate.metric` is 'ours', and with"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_names_and_options_of_packages_are_checked(losses, case):
    config, line = BAD[case]
    with pytest.raises(ConfigError) as raised:
        complete(config)
    assert line in str(raised.value)


def test_a_run_depends_on_the_code_that_it_chooses_and_on_all_that_this_imports(losses):
    def specs():
        for cached in CACHES:
            cached.cache_clear()
        plan, where = Plan(chosen()), {"seed": "0", "step": "1"}
        return {run: plan.spec("train_segment", run=run, **where) for run in ("opd", "other")}

    before = specs()
    assert _closure("one.loss") >= {"one", "one.loss", "one.helper", "effopd.losses.divergences"}
    assert not _closure("one.loss") & {"one.gate"}
    for file, changes in (("loss.py", True), ("helper.py", True), ("__init__.py", True), ("gate.py", False)):
        path = losses / file
        text = path.read_text()
        path.write_text(f"{text}\nCHANGED = 1\n")
        after = specs()
        assert after["opd"] == before["opd"]
        assert (after["other"] != before["other"]) is changes, file
        path.write_text(f'"""Why."""\n{text}# How.\n')
        assert specs() == before
        path.write_text(text)


def test_a_module_that_is_not_python_is_named(losses):
    (losses / "loss.py").write_text("def f(:\n")
    code_digest.cache_clear()
    _closure.cache_clear()
    fingerprints._imports.cache_clear()
    with pytest.raises(ConfigError, match=r"one/loss.py, line 1: this is not Python \(invalid syntax\)"):
        code_digest("one.loss")


def test_every_block_of_the_documentation_is_of_the_package_that_is_tested():
    root = Path(__file__).parents[2]
    sources = [
        path.read_text()
        for path in (root / "tests/helpers/plugin").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    ]
    blocks = re.findall(r"^```\w+\n(.*?)^```$", (root / "docs/plugins.md").read_text(), flags=re.S | re.M)
    assert len(blocks) == 8
    for block in blocks:
        assert any(block in source for source in sources), block
