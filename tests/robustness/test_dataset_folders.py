"""A local data set's folder: what is not read of it reruns nothing, and what may be read does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from effopd.tasks.sources import local_files, rows_of

NOT_READ = [
    ".git/HEAD", ".git/objects/ab/cdef", ".git/rows.jsonl", ".gitattributes", ".DS_Store", "data/.DS_Store",
    ".cache/huggingface/download/train.jsonl.metadata", ".cache/train-1.jsonl", ".ipynb_checkpoints/train-1.jsonl",
    "__pycache__/load.cpython-311.pyc", "__pycache__/train-1.jsonl", ".train-00000.jsonl.swp",
    "._train-00000.jsonl", "a/.b/train.jsonl",
]  # fmt: skip
READ = [
    ".git/HEAD", ".git/objects/ab/cdef", ".git/rows.jsonl", ".gitattributes", ".DS_Store", "data/.DS_Store",
    ".cache/huggingface/download/train.jsonl.metadata", ".cache/train-1.jsonl", ".ipynb_checkpoints/train-1.jsonl",
    "__pycache__/load.cpython-311.pyc", "__pycache__/train-1.jsonl", "LICENSE", "Makefile", "NOTES.md", "data/README",
    "convert.py", "train-00000.jsonl.lock", ".train-00000.jsonl.swp", "._train-00000.jsonl",
]  # fmt: skip
READ = [
    "train-00001.jsonl",
    "data/train.csv",
    "test.parquet",
    "README.md",
    "train.jsonl.gz",
    "x.json",
    "a/b/c.arrow",
    "notes.txt",
]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / ".hidden/set"
    folder.mkdir(parents=True)
    (folder / "train-00000.jsonl").write_text(json.dumps({"question": "1 + 1?"}) + "\n")
    return folder


def add(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"question": "not read"}) + "\n")
    return path


@pytest.mark.parametrize("name", NOT_READ)
def test_what_is_not_read_does_not_count(folder, name):
    add(folder, name)
    assert [path.name for path in local_files({"dataset": str(folder)})] == ["train-00000.jsonl"]


@pytest.mark.parametrize("name", READ)
def test_what_may_be_read_counts(folder, name):
    assert add(folder, name) in local_files({"dataset": str(folder)})


def test_the_data_set_has_no_row_of_what_does_not_count(folder):
    for name in NOT_READ:
        add(folder, name)
    rows = list(rows_of({"dataset": str(folder), "split": "train"}))
    assert [row for _, row in rows] == [{"question": "1 + 1?"}]
