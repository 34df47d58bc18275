"""Damaged results folders: whatever is wrong in one, each command does what is right or refuses it in one line.

Nothing outside the folder changes, and only `prune --apply` changes anything in it.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commands import Ending, effopd, tree, untouched
from effopd.artifacts.manifest_format import seal
from effopd.artifacts.manifests import fingerprint_of, held_at, read_manifest, release
from effopd.artifacts.own_files import is_own, numbered
from effopd.common.errors import ArtifactError, UserError
from effopd.common.strict_json import parse_json, read_json
from effopd.results.compare import compare
from effopd.results.export import export_state  # noqa: F401 - imported once, before any fork
from effopd.results.prune import prune
from effopd.results.samples import Wanted, samples
from effopd.results.status import describe, status
from effopd.results.verify import verify
from effopd.stages import collect_run  # noqa: F401 - the same
from effopd.workflow.job_specs import Plan
from small_results import CONFIG, SmallResults

RUN = "runs/effopd/seed0"
STATE, LAST = f"{RUN}/state/1/state.json", f"{RUN}/state/2/state.json"
MANIFESTS = {
    "state": LAST,
    "decision": f"{RUN}/extrapolation/1/decision.json",
    "candidates": f"{RUN}/extrapolation/1/candidates.json",
    "scores": f"{RUN}/scores/step1.json",
    "evaluation": "evaluation/effopd/seed0/2.json",
    "model": "models/base/manifest.json",
    "data": "data/arithmetic/manifest.json",
}

SAMPLES = "evaluation/effopd/seed0/2.samples.parquet"


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "results"
    SmallResults(folder).make()
    for leftover in ("models/base/resume.safetensors", f"{RUN}/.scores.x.part"):
        (folder / leftover).write_bytes(b"left over")
    (
        describe(status(folder)),
        prune(folder, 1, False),
        samples(folder, Wanted()),
    )  # what they work out once, the commands' forks inherit
    return folder


@pytest.fixture
def place(finished, tmp_path) -> Path:
    """A folder with a copy of the finished results, and beside it what belongs to somebody else."""
    shutil.copytree(finished, tmp_path / "results", symlinks=True)
    beside = tmp_path / "beside"
    for name in ("model", "best"):
        (beside / name).mkdir(parents=True)
        (beside / name / "resume.safetensors").write_bytes(b"somebody's")
        (beside / name / "weights.safetensors").write_bytes(b"somebody's")
    (beside / ".their.x.part").write_bytes(b"somebody's")
    (beside / "notes.txt").write_text("somebody's")
    return tmp_path


def all_commands() -> dict[str, tuple[str, ...]]:
    spec = Plan(CONFIG).spec("collect_run", run="effopd", seed=0)
    folder = f"results/{RUN}"
    return {
        "verify": ("verify",),
        "status": ("status",),
        "status --json": ("status", "--json"),
        "prune": ("prune", "--optimizers", "1"),
        "compare": ("compare", "results", "results"),
        "samples": ("samples", "results"),
        "samples --full": ("samples", "results", "--full"),
        "samples --json": ("samples", "results", "--json"),
        "export": ("export", "--run", "effopd", "--step", "2", "--out", "exported"),
        "collect-run": ("collect-run", "--spec", spec, "--run-folder", folder, "--out", "metrics.parquet"),
        "prune --apply": ("prune", "--optimizers", "1", "--apply"),
    }


def run_all(place: Path) -> dict[str, Ending]:
    """Run every command on a damaged folder, `prune --apply` last, and check how each ends and what it changes."""
    commands = all_commands()
    writing = ("export", "collect-run", "prune --apply")
    with untouched(place / "beside"):
        with untouched(place / "results"):
            found = {name: effopd(*words, folder=place) for name, words in commands.items() if name not in writing}
        found |= {name: effopd(*commands[name], folder=place) for name in writing}
    for ending in found.values():
        ending.right_or_refused()
    return found


# --- manifests that are no manifests ---------------------------------------------------------------------------------

TEXTS: dict[str, Callable[[str], str | bytes]] = {
    "empty": lambda text: "",
    "cut short": lambda text: text[:-30],
    "something else": lambda text: "not JSON",
    "null": lambda text: "null",
    "a list": lambda text: f"[{text}]",
    "a number": lambda text: "3",
    "NaN": lambda text: text.replace('"seconds": ', '"seconds": NaN, "old": ', 1),
    "infinite": lambda text: text.replace('"seconds": ', '"seconds": 1e999, "old": ', 1),
    "endless": lambda text: text.replace('"seconds": ', f'"seconds": {"9" * 5000}, "old": ', 1),
    "deep": lambda text: text.replace('"result": ', f'"result": {"[" * 100_000}{"]" * 100_000}, "old": ', 1),
    "twice": lambda text: text.replace('"kind": ', '"kind": "state", "kind": ', 1),
    "half a character": lambda text: text.replace('"kind": "', '"kind": "\\ud800', 1),
    "UTF-16": lambda text: text.encode("utf-16"),
    "Latin-1": lambda text: text.replace('"kind": "', '"kind": "é', 1).encode("latin-1"),
    "a mark": lambda text: "\ufeff" + text,
}

# --- fields of wrong types, or with names that lead elsewhere: with fingerprint and digest made anew -----------------

WEIGHTS = {"size": 3, "sha256": "0" * 64}
FIELDS: dict[str, tuple[str, Any]] = {
    "kind": ("kind", ["state"]),
    "spec": ("spec", []),
    "spec.step": ("spec.step", "1"),
    "parents": ("parents", ["a"]),
    "a parent": ("parents.state", {"a": 1}),
    "no name": ("parents", {"": "0" * 32}),
    "files": ("files", ["weights.safetensors"]),
    "a file": ("files", {"weights.safetensors": "0" * 64}),
    "a size": ("files", {"weights.safetensors": {**WEIGHTS, "size": "3"}}),
    "a negative size": ("files", {"weights.safetensors": {**WEIGHTS, "size": -1}}),
    "a digest": ("files", {"weights.safetensors": {**WEIGHTS, "sha256": "../x"}}),
    "no result": ("result", None),
    "an empty result": ("result", {}),
    "a step": ("result.step", "1"),
    "a coefficient": ("result.coefficient", "2"),
    "trials": ("result.trials", {"a": 1}),
    "recorded": ("recorded", []),
    "a time": ("recorded.finished", "yesterday"),
    "no such time": ("recorded.finished", "2026-99-99T00:00:00Z"),
    "seconds": ("recorded.seconds", "3"),
    "cost": ("recorded.cost", {"seconds": 3}),
    "a cost": ("recorded.cost", [3]),
    "half a cost": ("recorded.cost", [{"stage": "x"}]),
    "versions": ("recorded.versions", ["torch"]),
    "a host": ("recorded.host", "here"),
} | {
    f"the name {name[:30]!r}": ("files", {name: WEIGHTS})
    for name in ("../../../../beside/notes.txt", "/etc/passwd", "a/../../x", "", ".", "..", "a//b", "./a", "a\\..\\b",
                 "a\0b", "a\nb", "\x1b[2J", "\ud800", "a" * 300, "state.json", "manifest.json", "decision.json")
}  # fmt: skip


def with_value(entry: dict[str, Any], place: Sequence[Any], value: Any, fitting: bool = True) -> dict[str, Any]:
    """A manifest with another value somewhere; where `fitting`, fingerprint and digest fit it as far as they can."""
    *parents, last = place
    changed = holder = copy.deepcopy(entry)
    for parent in parents:
        holder = holder[parent]
    holder[last] = value
    if fitting:
        with suppress(TypeError, ValueError, AttributeError):
            changed["fingerprint"] = fingerprint_of(changed["kind"], changed["spec"], changed["parents"])
            changed = seal(changed)
    return changed


# What a manifest of that kind may hold: nothing is read of it.
ALLOWED = {
    *((target, "an empty result") for target in MANIFESTS),
    *((target, "a step") for target in ("scores", "model", "data")),
    *((target, "a coefficient") for target in MANIFESTS if target != "decision"),
    *((target, "trials") for target in MANIFESTS if target != "decision"),
    *((target, f"the name {name!r}") for target in MANIFESTS for name in ("state.json", "manifest.json", "decision.json")
      if name != Path(MANIFESTS[target]).name),
}  # fmt: skip


# --- what is in the place of a file or folder -------------------------------------------------------------------------


def instead(path: Path, make: Callable[[Path], object]) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    make(path)


KINDS: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "a broken link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "garbage": lambda path: path.write_bytes(b"\xff\0{"),
}


def moved_out(results: Path, name: str) -> None:
    """A folder of the results is beside them now, and a link in its place."""
    there = results.with_name("beside") / "moved"
    shutil.move(results / name, there)
    (results / name).symlink_to(there)


def linked(results: Path, name: str, target: str) -> None:
    (results / name).parent.mkdir(parents=True, exist_ok=True)
    instead(results / name, lambda path: path.symlink_to(results.with_name("beside") / target))


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "a model elsewhere": lambda results: moved_out(results, "models/base"),
    "a state elsewhere": lambda results: moved_out(results, f"{RUN}/state/1"),
    "states elsewhere": lambda results: moved_out(results, f"{RUN}/state"),
    "a run elsewhere": lambda results: moved_out(results, "runs/effopd"),
    "runs elsewhere": lambda results: moved_out(results, "runs"),
    "scores elsewhere": lambda results: moved_out(results, f"{RUN}/scores"),
    "checkpoints elsewhere": lambda results: moved_out(results, "models/base/checkpoints"),
    "a link in models": lambda results: linked(results, "models/x", "model"),
    "best elsewhere": lambda results: linked(results, "models/base/best", "best"),
    "a file of best elsewhere": lambda results: linked(results, "models/base/best/model.safetensors", "notes.txt"),
    "moments elsewhere": lambda results: linked(results, f"{RUN}/state/1/optimizer.safetensors", "notes.txt"),
    "a resume point elsewhere": lambda results: linked(results, "models/base/resume.safetensors", "notes.txt"),
    "an unfinished write elsewhere": lambda results: linked(results, f"{RUN}/.x.part", "notes.txt"),
    "unfinished writes elsewhere": lambda results: linked(results, f"{RUN}/linked", "."),
    "a lock elsewhere": lambda results: linked(results, f"{RUN}/state/2/.lock", "notes.txt"),
    "a claim elsewhere": lambda results: linked(results, ".workflow.lock", "notes.txt"),
    "a record elsewhere": lambda results: linked(results, f"{RUN}/state/1/state.pruned.json", "notes.txt"),
    "an unfinished folder": lambda results: (results / "models/.x.part").mkdir(),
    "state/1x": lambda results: shutil.copytree(results / f"{RUN}/state/1", results / f"{RUN}/state/1x"),
    "state/01": lambda results: shutil.copytree(results / f"{RUN}/state/1", results / f"{RUN}/state/01"),
    "state/²": lambda results: shutil.copytree(results / f"{RUN}/state/1", results / f"{RUN}/state/²"),
    "state/1 and many digits": lambda results: shutil.copytree(
        results / f"{RUN}/state/1", results / f"{RUN}/state/{'1' * 200}"
    ),
    "names that control a terminal": lambda results: shutil.copytree(
        results / "models/base", results / "models/\x1b[2J\nerror: x"
    ),
    "names of bytes": lambda results: shutil.copytree(
        os.fsencode(results / "models/base"), os.fsencode(results / "models") + b"/\xff"
    ),
    "no state": lambda results: shutil.rmtree(results / f"{RUN}/state"),
    "a file instead of runs": lambda results: instead(results / "runs", lambda path: path.write_text("x")),
    "a claim that is a list": lambda results: (results / ".workflow.lock").write_text("[1]"),
    "a claim of no process": lambda results: (results / ".workflow.lock").write_text('{"pid": "x", "since": 3}'),
    "a claim of no time": lambda results: (results / ".workflow.lock").write_text(
        '{"pid": 3, "since": "2026-99-01 00:00:00", "log": null}'
    ),
    "a log that never ends": lambda results: (results / ".workflow.lock").write_text(
        '{"pid": 3, "since": "2026-01-01 00:00:00", "log": "/dev/zero"}'
    ),
    "a record that is a list": lambda results: (results / f"{RUN}/state/1/state.pruned.json").write_text("[]"),
    "a record of nothing": lambda results: (results / f"{RUN}/state/1/state.pruned.json").write_text(
        json.dumps({"fingerprint": json.loads((results / STATE).read_text())["fingerprint"], "files": [], "recorded": 3})
    ),
    "no configuration": lambda results: (results / "config.yaml").unlink(),
    "another configuration": lambda results: (results / "config.yaml").write_text("[1, 2]"),
    "a configuration cut short": lambda results: (results / "config.yaml").write_text("runs: {effopd: {tr"),
}  # fmt: skip


def rewritten(path: str, change: Callable[[str], str | bytes], results: Path) -> None:
    changed = change((results / path).read_text())
    (results / path).write_bytes(changed if isinstance(changed, bytes) else changed.encode())


def refilled(path: str, field: str, value: Any, results: Path) -> None:
    entry = json.loads((results / path).read_text())
    (results / path).write_text(json.dumps(with_value(entry, field.split("."), value)))


OF_MANIFESTS: dict[str, Callable[[Path], object]] = {
    f"{target}: {name}": damage
    for target, path in MANIFESTS.items()
    for name, damage in (
        *((name, partial(rewritten, path, change)) for name, change in TEXTS.items()),
        *((name, partial(refilled, path, field, value)) for name, (field, value) in FIELDS.items()),
    )
    if (target, name) not in ALLOWED
}
OF_PLACES: dict[str, Callable[[Path], object]] = {
    f"{target}: {name}": lambda results, path=path, make=make: instead(results / path, make)
    for target, path in {
        **MANIFESTS,
        "samples": SAMPLES,
        "claim": ".workflow.lock",
        "lock": f"{RUN}/state/2/.lock",
    }.items()
    for name, make in KINDS.items()
}
DAMAGES = OF_MANIFESTS | OF_PLACES | LAYOUTS
# Spread over all: a number that shares no factor with the numbers of targets and kinds.
FAST = {*[*OF_MANIFESTS][::37], *[*OF_PLACES][::13], *[*LAYOUTS][::4]}


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=[pytest.mark.slow, pytest.mark.exhaustive]) for n in DAMAGES]
)
def test_every_command_is_right_or_refuses(place, name):
    DAMAGES[name](place / "results")
    endings = run_all(place)
    if name in OF_MANIFESTS:
        endings["verify"].refused("problems in")
        path = MANIFESTS[name.split(":")[0]]
        assert f"results/{path}" in endings["verify"].output


def test_enough_is_tried():
    assert len(FAST) * len(all_commands()) >= 170


@pytest.mark.parametrize("name", OF_MANIFESTS)
def test_no_damaged_manifest_is_read(finished, tmp_path, name):
    path = tmp_path / MANIFESTS[name.split(":")[0]]
    path.parent.mkdir(parents=True)
    shutil.copy(finished / MANIFESTS[name.split(":")[0]], path)
    assert read_manifest(path)
    OF_MANIFESTS[name](tmp_path)
    with pytest.raises(ArtifactError) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_waited_for_in_the_place_of_a_manifest(tmp_path, name):
    folder = tmp_path / "results/models/base"
    folder.mkdir(parents=True)
    instead(folder / "manifest.json", KINDS[name])
    line = effopd("verify", folder=tmp_path, timeout=20).refused()
    assert (
        "holds no artifacts" if name in ("a broken link", "a link to itself") else "1 problems in 1 artifacts"
    ) in line


def test_prune_deletes_what_it_should_and_nothing_else(place):
    before = tree(place / "results")
    said = effopd("prune", "--optimizers", "1", "--apply", folder=place).succeeded()
    assert "Left alone" not in said
    after = tree(place / "results")
    gone = before.keys() - after.keys()
    assert gone == {f"{RUN}/state/1/optimizer.safetensors", f"{RUN}/.scores.x.part", "models/base/resume.safetensors"}
    assert {path: after[path] for path in before.keys() - gone} == {path: before[path] for path in before.keys() - gone}


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name.endswith("elsewhere")])
def test_prune_leaves_alone_what_links_lead_to(place, name):
    LAYOUTS[name](place / "results")
    links = [path for path in (place / "results").rglob("*") if path.is_symlink()]
    with untouched(place / "beside"):
        effopd("prune", "--optimizers", "1", "--apply", folder=place).right_or_refused()
    assert all(path.is_symlink() for path in links), "the links themselves are somebody's, too"


# --- verify finds an edit anywhere ------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a JSON value, but the value itself."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def other(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"{value[:-1]}{'0' if value[-1:] != '0' else '1'}"
        case None:
            return 0.5
        case dict() | list():
            return type(value)()


@pytest.mark.parametrize("target", MANIFESTS)
@pytest.mark.parametrize("how", ["changed", "gone", "new"])
def test_an_edit_anywhere_is_found(finished, tmp_path, target, how):
    entry = json.loads((finished / MANIFESTS[target]).read_text())
    path = tmp_path / Path(MANIFESTS[target]).name
    tried = 0
    for *parents, last in places(entry):
        edited = holder = copy.deepcopy(entry)
        for parent in parents:
            holder = holder[parent]
        match how:
            case "changed":
                holder[last] = other(holder[last])
            case "gone":
                del holder[last]
            case "new" if isinstance(holder[last], dict):
                holder[last]["new"] = 1
        if edited == entry:
            continue
        tried += 1
        path.write_text(json.dumps(edited))
        with pytest.raises(ArtifactError):
            read_manifest(path)
    assert tried >= 5


def test_the_folder_says_what_was_edited(place):
    path = place / "results" / MANIFESTS["evaluation"]
    entry = json.loads(path.read_text())
    entry["result"]["accuracy"] = 1.0
    path.write_text(json.dumps(entry))
    assert "evaluation/effopd/seed0/2.json was edited" in effopd("verify", folder=place).output
    assert effopd("status", folder=place).succeeded().count("1/2")


def without_digests(results: Path) -> None:
    """As an older version wrote it."""
    for path in results.rglob("*.json"):
        entry = json.loads(path.read_text())
        if "recorded" in entry:
            del entry["recorded"]["format"], entry["recorded"]["digest"]
            path.write_text(json.dumps(entry))


def test_manifests_of_an_older_version_are_read(place):
    without_digests(place / "results")
    endings = run_all(place)
    assert all(ending.status == 0 for ending in endings.values()), endings
    assert "were written by an older version, without a digest" in endings["verify"].output


class ResultsOf01(SmallResults):
    """A folder with the names of version 0.1."""

    def write(self, path, kind, spec, parents, **parts):
        if kind == "decision":
            ties = parts["result"].pop("accept_ties")
            parts["result"]["accept"] = ">=" if ties else ">"
            path, kind = path.replace("decision.json", "ledger.json"), "ledger"
        parents = {"ledger" if name == "decision" else name: value for name, value in parents.items()}
        return super().write(path, kind, spec, parents, **parts)


def test_results_of_version_01_are_read(tmp_path):
    old = ResultsOf01(tmp_path / "results")
    old.make()
    training = dict(old.config["training"])
    config = {**old.config, "training": {**training, "kept_steps": training.pop("checkpoint_steps"), "ranks": 1}}
    del config["training"]["checkpoint_steps"]
    (tmp_path / "results/config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "beside").mkdir()
    SmallResults(tmp_path / "new").make()
    endings = run_all(tmp_path)
    assert all(ending.status == 0 for ending in endings.values()), endings
    held = tmp_path / "results" / RUN / "extrapolation/1/ledger.json"
    assert held_at(held.with_name("decision.json")) == held
    assert read_manifest(held.with_name("decision.json"), "decision").path == held
    compared = effopd("compare", "new", "new", folder=tmp_path).output  # what decisions cost among it
    assert endings["compare"].output.split("configuration: ")[1] == compared.split("configuration: ")[1]
    assert (tmp_path / "exported/model.safetensors").is_file()


# --- whatever damages come next ---------------------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("0" * 32),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("step"), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(target=st.sampled_from(sorted(MANIFESTS)), data=st.data())
def test_any_manifest_is_read_or_refused(finished, target, data):
    """In one folder for all examples: each is put back afterwards."""
    path = finished / MANIFESTS[target]
    text = path.read_text()
    *parents, last = data.draw(st.sampled_from(sorted(places(json.loads(text)), key=str)))
    entry = with_value(json.loads(text), (*parents, last), data.draw(ANYTHING), fitting=data.draw(st.booleans()))
    try:
        path.write_text(json.dumps(entry))
        for command in (
            lambda: verify(finished),
            lambda: describe(status(finished)),
            lambda: prune(finished, 1, False),
            lambda: compare(finished, finished, None),
        ):
            with suppress(UserError):
                command()
    finally:
        path.write_text(text)


@settings(deadline=None)
@given(st.binary(max_size=40) | st.text(max_size=40) | ANYTHING.map(lambda value: json.dumps({"a": value})))
def test_any_text_is_strict_json_or_refused(text):
    with suppress(ArtifactError):
        value = parse_json(text, "here")
        assert json.loads(json.dumps(value, allow_nan=False)) == value


def test_a_key_that_lacks_is_an_error_that_names_the_file():
    with pytest.raises(ArtifactError, match=r"^here has no `c`"):
        parse_json('{"a": {"b": 1}}', "here")["a"]["c"]


def test_only_regular_files_below_the_folder_are_its_own(tmp_path):
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (folder / "a/file").touch()
    (tmp_path / "file").touch()
    (folder / "link").symlink_to("a")
    (folder / "a/link").symlink_to("file")
    assert is_own(folder / "a/file", folder)
    for path in (
        folder, folder / "a", folder / "none", folder / "a/link", folder / "link/file", folder / "../file",
        folder / "a/../a/file", tmp_path / "file", folder / "a/file/file", folder / ("a" * 300), folder / "a\0b",
    ):  # fmt: skip
        assert not is_own(path, folder), path


def test_steps_are_folders_with_plain_numbers(tmp_path):
    for name in ("10", "2", "0", "01", "1x", "²", "-1", "1 ", "1" * 30):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").touch()
    (tmp_path / "3").mkdir()
    assert [*numbered(tmp_path, "state.json")] == [0, 2, 10]


def test_release_passes_over_links(place):
    state = read_manifest(place / "results" / STATE)
    weights = state.path.with_name("weights.safetensors")
    content = weights.read_bytes()
    weights.rename(place / "beside/weights")
    weights.symlink_to(place / "beside/weights")
    assert release(state, state.files, "a test") > 0
    assert weights.is_symlink()
    assert (place / "beside/weights").read_bytes() == content
    assert "weights.safetensors" not in read_json(state.record_path)["files"]
