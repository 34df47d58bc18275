"""Files that the project writes can be read by whom the user's umask lets, whatever wrote them."""

import os
import subprocess
import sys

import pytest
import torch

from effopd.artifacts.folders import filled, new_folder
from effopd.artifacts.manifests import write_text
from effopd.models.models import save_model, save_tensors, weights_of
from tiny_models import byte_tokenizer, make_model

MASK = os.umask(0)
os.umask(MASK)


def mode_of(path):
    return path.stat().st_mode & 0o777


def private(path):
    path.touch(mode=0o600)


def test_nothing_that_is_written_is_private(tmp_path):
    model = make_model(0, vocabulary=258)
    save_model(model.config, weights_of(model), byte_tokenizer(), tmp_path / "model")
    save_tensors(tmp_path / "state/weights.safetensors", {"w": torch.ones(2)})
    write_text(tmp_path / "state/config.yaml", "a: 1")
    with filled(tmp_path / "filled") as part:
        private(part / "a")
    with new_folder(tmp_path / "new") as folder:
        (folder / "below").mkdir()
        private(folder / "a")
        private(folder / "below/b")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 6
    assert {path.name: oct(mode_of(path)) for path in files if mode_of(path) != 0o666 & ~MASK} == {}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_users_umask_decides(tmp_path, mask):
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        f"os.umask({mask})\n"
        "from effopd.artifacts.manifests import write_text\nwrite_text(Path(sys.argv[1]), 'a')"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "a"], check=True)
    assert mode_of(tmp_path / "a") == 0o666 & ~mask


def test_what_a_link_leads_to_keeps_its_permissions(tmp_path):
    private(tmp_path / "theirs")
    with new_folder(tmp_path / "new") as folder:
        (folder / "link").symlink_to(tmp_path / "theirs")
    with filled(tmp_path / "filled") as part:
        (part / "link").symlink_to(tmp_path / "theirs")
    assert mode_of(tmp_path / "theirs") == 0o600
