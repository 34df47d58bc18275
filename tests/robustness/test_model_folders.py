"""Folders that commands write: made anew by rename, never through a link, and emptied of nothing but their own."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from commands import Ending, effopd, tree, untouched
from effopd.artifacts.folders import empty, filled, new_folder, remove
from effopd.artifacts.manifests import read_manifest
from effopd.common.errors import UserError
from effopd.models.models import load_model, load_tokenizer, save_model, save_tensors, weights_of
from effopd.workflow.job_specs import Plan
from tiny_checkpoints import tiny
from tiny_models import byte_tokenizer

CPU = torch.device("cpu")
SMALL = {"hidden_size": 8, "intermediate_size": 12, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 4}
Leave = Callable[[Path, Path], None]


@pytest.fixture(scope="module")
def plan() -> Plan:
    task = {"splits": {"train": 128, "validation": 16, "test": 16}, "corpus": {"size": 32}}
    models = {"base": {"kind": "pretrain", "steps": 1, **SMALL}, "teacher": {"kind": "grpo", "init": "base"}}
    return Plan({"task": task, "models": models, "runs": {"opd": {}}})


@pytest.fixture(scope="module")
def data(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    effopd("make-data", "--spec", plan.spec("make_data"), "--out", folder / "manifest.json", folder=folder).succeeded()
    return folder / "manifest.json"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Everything that belongs to somebody else: a model, a hub's cache with a snapshot of links, and other files."""
    folder = tmp_path / "theirs"
    model = tiny(0)
    save_model(model.config, weights_of(model), byte_tokenizer(), folder / "model")
    (folder / "blobs").mkdir()
    (folder / "snapshot").mkdir()
    for number, file in enumerate(sorted((folder / "model").iterdir())):
        shutil.copy(file, folder / f"blobs/{number}")
        (folder / "snapshot" / file.name).symlink_to(f"../blobs/{number}")
    (folder / "files/inner").mkdir(parents=True)
    (folder / "files/inner/step1.safetensors").write_bytes(b"precious")
    (folder / "files/config.json").write_bytes(b"precious")
    return folder


def train(plan: Plan, data: Path, out: Path) -> Ending:
    spec = plan.spec("pretrain_model", model="base")
    return effopd(
        "pretrain-model", "--spec", spec, "--data", data, "--out", out / "manifest.json", folder=data.parent, fresh=True
    )


def fetch(path: Path, out: Path) -> Ending:
    model = {"kind": "pretrained", "path": str(path), "dtype": "float32", "trust_remote_code": False}
    spec = json.dumps({"model": model, "code": "x"})
    return effopd("fetch-model", "--spec", spec, "--out", out / "manifest.json", folder=path.parent)


def _links_to_files(folder: Path, theirs: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors", "training.parquet", "manifest.json",
                 "resume.safetensors", "generation_config.json", ".digests.json", "chat_template.jinja"):  # fmt: skip
        (folder / name).symlink_to(theirs / "files/config.json")


def _links_to_folders(folder: Path, theirs: Path) -> None:
    for name in ("best", "checkpoints", "config.json", "tokenizer.json", "additional_chat_templates"):
        (folder / name).symlink_to(theirs / "files/inner")


def _loops(folder: Path, theirs: Path) -> None:
    for name in ("best", "config.json", "model.safetensors", "dangling"):
        (folder / name).symlink_to(name if name != "dangling" else "nowhere")


def _of_training(folder: Path, theirs: Path) -> None:
    for name in ("checkpoints/step1.safetensors", "best/step1.safetensors", "resume.safetensors", "training.parquet"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"of another model")
    (folder / "checkpoints/step2.safetensors").symlink_to(theirs / "files/config.json")


def _of_another_model(folder: Path, theirs: Path) -> None:
    for name in ("model.safetensors.index.json", "model-00001-of-00002.safetensors", "added_tokens.json", "vocab.json",
                 "manifest.pruned.json", "evil.py", ".config.json.x.part"):  # fmt: skip
        (folder / name).write_bytes(b"{}")
    shutil.copytree(theirs / "snapshot", folder / ".new.x.part", symlinks=True)


def _folders_for_files(folder: Path, theirs: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "training.parquet", ".digests.json"):
        (folder / name).mkdir()
        (folder / name / "x").symlink_to(theirs / "files")


def _odd_digests(folder: Path, theirs: Path) -> None:
    (folder / ".digests.json").write_text(json.dumps({"config.json": [1], "model.safetensors": "x"}))


LEFT = {leave.__name__.strip("_"): leave for leave in (
    _links_to_files, _links_to_folders, _loops, _of_training, _of_another_model, _folders_for_files, _odd_digests,
)}  # fmt: skip


@pytest.mark.parametrize("source", ["model", "snapshot"])
@pytest.mark.parametrize("left", LEFT)
def test_a_model_is_linked_over_whatever_was_there(left, source, theirs, tmp_path):
    out, fresh = tmp_path / "results/models/m", tmp_path / "results/models/fresh"
    fetch(theirs / source, fresh).succeeded()
    out.mkdir()
    (out / ".lock").touch()
    LEFT[left](out, theirs)
    with untouched(theirs):
        fetch(theirs / source, out).succeeded()
    assert entries(out) == entries(fresh)
    assert list(read_manifest(out / "manifest.json", "model").problems()) == []
    assert torch.equal(loaded(out)["model.norm.weight"], loaded(theirs / "model")["model.norm.weight"])


@pytest.mark.parametrize(
    "left",
    [
        "snapshot",
        "links_to_folders",
        *(pytest.param(left, marks=pytest.mark.slow) for left in LEFT if left != "links_to_folders"),
    ],
)
def test_a_model_is_trained_over_whatever_was_there(left, theirs, plan, data, tmp_path):
    """A model's `kind` becomes `pretrain`: once after it was fetched, and once over each kind of leftover."""
    out, fresh = tmp_path / "results/models/m", data.parent / "fresh"
    if not fresh.exists():
        train(plan, data, fresh).succeeded()
    if left in LEFT:
        out.mkdir(parents=True)
        (out / ".lock").touch()
        LEFT[left](out, theirs)
        (out / "manifest.json").unlink(missing_ok=True)  # as Snakemake does before a job
    else:
        fetch(theirs / left, out).succeeded()
    with untouched(theirs, data.parent):
        train(plan, data, out).succeeded()
    assert entries(out) == entries(fresh)
    assert [path for path in out.rglob("*") if path.is_symlink()] == []
    assert list(read_manifest(out / "manifest.json", "model").problems()) == []
    for name, tensor in loaded(fresh).items():
        assert torch.equal(loaded(out)[name], tensor)
    assert load_tokenizer(out).eos_token_id is not None


def test_and_back_again(theirs, plan, data, tmp_path):
    out = tmp_path / "results/models/m"
    with untouched(theirs):
        train(plan, data, out).succeeded()
        fetch(theirs / "snapshot", out).succeeded()
        first = entries(out)
        train(plan, data, out).succeeded()
        fetch(theirs / "snapshot", out).succeeded()
    assert entries(out) == first


def test_a_model_folder_that_is_a_link_is_refused(theirs, plan, data, tmp_path):
    out = tmp_path / "m"
    out.symlink_to(theirs / "files")
    with untouched(tmp_path):
        train(plan, data, out).refused("is a link to", str(theirs / "files"))
        fetch(theirs / "model", out).refused("is a link to", str(theirs / "files"))


def test_a_refused_model_leaves_the_one_before_it(theirs, tmp_path):
    out, broken = tmp_path / "m", theirs / "broken"
    fetch(theirs / "model", out).succeeded()
    shutil.copytree(theirs / "model", broken)
    (broken / "tokenizer.json").unlink()
    with untouched(theirs, out):
        fetch(broken, out).refused(str(broken), "has no tokenizer")


@pytest.mark.parametrize("inside", [".", "inner"])
def test_a_model_is_not_linked_to_itself(inside, theirs, tmp_path):
    """A trained model of the workflow whose `kind` becomes `pretrained`, with its own folder as `path`."""
    shutil.copytree(theirs / "snapshot", tmp_path / "theirs/models/m" / inside)
    with untouched(theirs):
        fetch(theirs / "models/m" / inside, theirs / "models/m").refused("Move it to another place")


def test_tables_replace_links_in_their_folder(theirs, tmp_path):
    save_model(tiny(1).config, weights_of(tiny(1)), byte_tokenizer(), theirs / "other")
    for name in ("partial.jsonl", "analysis.json", "norms.parquet", "spectra.parquet", "analysis.pruned.json"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).symlink_to(theirs / "files/config.json")
    with untouched(theirs):
        effopd("analyze", "--base", theirs / "snapshot", "--trained", theirs / "other", "--out", tmp_path / "out",
               folder=theirs).succeeded()  # fmt: skip
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_only_the_weights_that_are_loaded_are_linked(theirs, tmp_path):
    """vLLM reads all safetensors of a folder without an index."""
    shutil.copy(theirs / "files/config.json", theirs / "model/model-00001-of-00002.safetensors")
    fetch(theirs / "model", tmp_path / "m").succeeded()
    assert [path.name for path in (tmp_path / "m").glob("*.safetensors")] == ["model.safetensors"]


PARTS: dict[str, tuple[Leave, str]] = {
    "link_to_a_folder": (lambda part, theirs: part.symlink_to(theirs / "files"), "is taken"),
    "dangling_link": (lambda part, theirs: part.symlink_to(theirs / "nowhere"), "is taken"),
    "file": (lambda part, theirs: part.write_bytes(b"precious"), "is taken"),
    "folder_of_somebody": (lambda part, theirs: shutil.copytree(theirs / "files", part), "is taken"),
    "left_over": (lambda part, theirs: _left_over(part, theirs), ""),
    "empty": (lambda part, theirs: part.mkdir(), ""),
}


def _left_over(part: Path, theirs: Path) -> None:
    shutil.copytree(theirs / "files", part / "inner")
    (part / ".lock").touch()
    (part / "link").symlink_to(theirs / "files")
    (part / "config.json").symlink_to(theirs / "files/config.json")


@pytest.mark.parametrize("case", PARTS)
def test_extrapolate_beside_whatever_is_there(case, theirs, tmp_path):
    other = tiny(1)
    save_model(other.config, weights_of(other), byte_tokenizer(), theirs / "other")
    out = tmp_path / "out"
    leave, words = PARTS[case]
    leave(tmp_path / ".out.part", theirs)
    before = tree(tmp_path)
    with untouched(theirs):
        ending = extrapolate(theirs, out)
    if words:
        ending.refused(words, ".out.part")
        assert tree(tmp_path) == before
    else:
        ending.succeeded()
        assert not (tmp_path / ".out.part").exists()
        assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (theirs / "other").iterdir())


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda out: out.symlink_to("nowhere"), os.mkfifo])
def test_nothing_is_written_where_something_is(make, theirs, tmp_path):
    save_model(tiny(1).config, weights_of(tiny(1)), byte_tokenizer(), theirs / "other")
    make(tmp_path / "out")
    with untouched(tmp_path):
        extrapolate(theirs, tmp_path / "out").refused("exists already")


NO_NAMES = {  # of folders to write, and words of the line
    "x/..": "is no name for a new folder",
    "nowhere/..": "is no name for a new folder",
    "..": "is no name for a new folder",
    ".": "is no name for a new folder",
    "/": "is no name for a new folder",
    "file/x": "is no folder",
    "file/x/y": "is no folder",
    "dangling/x": "is no folder",
    "file/": "exists already",
}


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_folder_that_cannot_be_made_is_refused_before_any_work(name, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("elsewhere")
    with (
        untouched(tmp_path),
        pytest.raises(UserError, match=NO_NAMES[name]),
        new_folder(Path(tmp_path, name) if name not in ("/", ".", "..") else Path(name)),
    ):
        pytest.fail("work was begun")


def test_a_slash_behind_a_new_folder_changes_nothing(theirs, tmp_path):
    save_model(tiny(1).config, weights_of(tiny(1)), byte_tokenizer(), theirs / "other")
    extrapolate(theirs, f"{tmp_path}/out/").succeeded()
    assert (tmp_path / "out/config.json").is_file()


TABLE_FOLDERS: dict[str, tuple[str, str]] = {  # where tables are to go, and words of the line; "" if they may
    "base": ("snapshot", "holds the checkpoint"),
    "base, written differently": ("other/../snapshot/.", "holds the checkpoint"),
    "trained": ("other", "holds the checkpoint"),
    "a link to one": ("link", "holds the checkpoint"),
    "the folder of a file": ("files", "holds the checkpoint"),
    "somebody's model": ("model", "somebody else's"),
    "a model of the workflow": ("made", "somebody else's"),
    "somebody's table": ("tables", "somebody else's"),
    "a file": ("tables/norms.parquet", "is no folder"),
    "in a file": ("tables/norms.parquet/x", "is no folder"),
    "through a link": ("link to tables", "is a link"),
    "an empty folder": ("empty", ""),
    "killed at once": ("locked", ""),
    "within a checkpoint": ("other/analysis", ""),
}


@pytest.mark.parametrize("case", TABLE_FOLDERS)
def test_where_tables_may_go(case, theirs):
    save_model(tiny(1).config, weights_of(tiny(1)), byte_tokenizer(), theirs / "other")
    for name in ("made", "tables", "empty", "locked"):
        (theirs / name).mkdir()
    for name in ("made/.lock", "made/manifest.json", "made/norms.parquet", "tables/norms.parquet", "locked/.lock"):
        (theirs / name).write_text("" if name.endswith(".lock") else "precious")
    (theirs / "link").symlink_to("snapshot")
    (theirs / "link to tables").symlink_to("tables")
    (theirs / "files/one.safetensors").write_bytes((theirs / "other/model.safetensors").read_bytes())
    out, words = TABLE_FOLDERS[case]
    trained = "files/one.safetensors" if out == "files" else "other"
    before = tree(theirs)
    command = ("analyze", "--base", "snapshot", "--trained", f"1={trained}", "--out", out)
    ending = effopd(*command, folder=theirs)
    if words:
        ending.refused(words)
        assert tree(theirs) == before
    else:
        ending.succeeded()
        effopd(*command, folder=theirs).succeeded()
        assert before.items() <= tree(theirs).items()


def extrapolate(theirs: Path, out: Path | str) -> Ending:
    return effopd(
        "extrapolate", "--anchor", theirs / "snapshot", "--current", theirs / "other", "--coefficient", "1", "--out", out,
        folder=theirs,
    )  # fmt: skip


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    return weights_of(load_model(folder, CPU))


def test_links_are_removed_and_not_what_they_point_to(theirs, tmp_path):
    for name, target in (("file", "files/config.json"), ("folder", "files"), ("nothing", "nowhere")):
        with untouched(theirs):
            (tmp_path / name).symlink_to(theirs / target)
            remove(tmp_path / name)
            assert not os.path.lexists(tmp_path / name)
    (tmp_path / "own/kept").mkdir(parents=True)
    (tmp_path / "own/best").symlink_to(theirs / "files")
    (tmp_path / "own/x").mkdir()
    (tmp_path / "own/x/y").symlink_to(theirs)
    with untouched(theirs):
        empty(tmp_path / "own", keep=("kept", "best"))  # a link is never what a folder keeps
    assert entries(tmp_path / "own") == ["kept"]


def test_a_folder_that_could_not_be_filled_is_as_before(theirs, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/config.json").symlink_to(theirs / "files/config.json")
    with untouched(tmp_path), pytest.raises(UserError), filled(tmp_path / "own", keep=()) as part:
        (part / "config.json").write_bytes(b"new")
        raise UserError("no")
    with untouched(tmp_path), pytest.raises(UserError), new_folder(tmp_path / "new") as part:
        (part / "config.json").write_bytes(b"new")
        raise UserError("no")


def test_the_lock_is_not_opened_through_a_link(theirs, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/.lock").symlink_to(theirs / "files/config.json")
    with untouched(theirs):
        fetch(theirs / "model", tmp_path / "m").right_or_refused()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 32 kB in all; skipped if it cannot be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no permission to mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(full_disk, theirs, plan, data):
    save_model(tiny(1).config, weights_of(tiny(1)), byte_tokenizer(), theirs / "other")
    extrapolate(theirs, full_disk / "out").refused("the disk is full", str(full_disk))
    assert entries(full_disk) == []
    large = Plan(
        {
            **plan.config,
            "models": {**plan.config["models"], "base": {**plan.config["models"]["base"], "hidden_size": 64}},
        }
    )
    train(large, data, full_disk / "m").refused("the disk is full", str(full_disk))
    assert entries(full_disk) == ["m", "m/.lock"]
    for write in (
        lambda: save_tensors(full_disk / "x.safetensors", {"x": torch.zeros(20_000)}),
        lambda: save_model(tiny(1).config, weights_of(tiny(1)), byte_tokenizer(), full_disk / "n"),
    ):
        with pytest.raises(OSError, match="No space left") as caught:
            for _ in range(3):
                write()
                shutil.move(full_disk / "n/model.safetensors", full_disk / "kept")
        assert caught.value.errno == errno.ENOSPC
        assert list(full_disk.rglob("*.part")) == []


@pytest.mark.parametrize("limit", [0, 100, 1000, 10_000])
def test_a_limit_on_the_size_of_files(limit, theirs, tmp_path):
    """What `ulimit -f` does: writing fails at any point."""
    save_model(tiny(1).config, weights_of(tiny(1)), byte_tokenizer(), theirs / "other")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with untouched(theirs), pytest.raises(OSError, match="too large") as caught:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            save_model(tiny(1).config, weights_of(tiny(1)), byte_tokenizer(), tmp_path / "m")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert caught.value.errno == errno.EFBIG
    assert entries(tmp_path / "m") == []


@pytest.mark.parametrize("theirs_in_it", ["thesis.txt", ".hidden", "folder/thesis.txt"])
def test_a_folder_of_somebody_else_is_not_emptied(theirs, plan, data, tmp_path, theirs_in_it):
    out = tmp_path / "m"
    (out / theirs_in_it).parent.mkdir(parents=True)
    (out / theirs_in_it).write_text("years of work")
    with untouched(tmp_path):
        fetch(theirs / "model", out).refused(str(out), "Choose another folder")
        train(plan, data, out).refused(str(out), "Choose another folder")
