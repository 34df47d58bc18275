"""`effopd extrapolate`: the same bits as in memory, for every layout and type, and nothing left by failures."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from checkpoint_tensors import tensors
from effopd.cli.commands import run_verb
from effopd.common.errors import UserError
from effopd.extrapolation.candidates import candidate, moving_parameters
from effopd.models import extrapolated_files as files
from effopd.models.extrapolated_files import extrapolate_folder
from effopd.models.models import weights_of
from effopd.models.weight_files import Checkpoint
from tiny_models import FAMILIES, make_family


def save(folder, family="qwen3", seed=0, dtype=torch.float32, drift=0.0, **options):
    """A model folder; `drift` moves every weight a little, as training does."""
    model = make_family(family, seed)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += drift * torch.randn(parameter.shape, generator=generator)
    model.to(dtype).save_pretrained(folder, **options)
    return folder


@pytest.fixture
def pair(tmp_path):
    return save(tmp_path / "anchor"), save(tmp_path / "current", drift=1e-3)


def wanted(anchor, current, coefficient, which):
    """By the function that the workflow uses, in memory."""
    then, now = ({n: t.float() for n, t in tensors(folder).items()} for folder in (anchor, current))
    return candidate(now, then, coefficient, moving_parameters(now, which))


@pytest.mark.parametrize("which", ["attention_mlp", "all", r"layers\.1\."])
def test_float32_gives_the_bits_of_the_candidate_in_memory(pair, tmp_path, which, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_ELEMENTS", 100)  # blocks end within rows
    extrapolate_folder(*pair, 6.0, tmp_path / "out", parameters=which)
    made, right = tensors(tmp_path / "out"), wanted(*pair, 6.0, which)
    assert made.keys() == right.keys()
    assert all(torch.equal(made[name], right[name]) for name in right)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_in_transformers_with_the_candidates_weights(family, tmp_path):
    anchor, current = save(tmp_path / "a", family), save(tmp_path / "c", family, drift=1e-3)
    extrapolate_folder(anchor, current, 2.0, tmp_path / "out", parameters="all")
    before, after, made = (
        weights_of(AutoModelForCausalLM.from_pretrained(folder)) for folder in (anchor, current, tmp_path / "out")
    )
    right = candidate(after, before, 2.0, list(after))
    assert all(torch.equal(made[name], right[name]) for name in right)


def test_shards_and_index_stay_those_of_the_current_checkpoint(pair, tmp_path):
    sharded = save(tmp_path / "sharded", drift=1e-3, max_shard_size="10KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    extrapolate_folder(pair[0], sharded, 2.0, tmp_path / "out")
    assert {f.name for f in (tmp_path / "out").iterdir()} == {f.name for f in sharded.iterdir()}
    made, right = tensors(tmp_path / "out"), wanted(*pair, 2.0, "attention_mlp")
    assert all(torch.equal(made[name], right[name]) for name in right)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_bfloat16_is_computed_in_float32_and_rounded_once(tmp_path):
    anchor = save(tmp_path / "a", dtype=torch.bfloat16)
    current = save(tmp_path / "c", dtype=torch.bfloat16, drift=1e-2)
    extrapolate_folder(anchor, current, 4.0, tmp_path / "out")
    extrapolate_folder(anchor, current, 4.0, tmp_path / "wide", dtype=torch.float32)
    right = wanted(anchor, current, 4.0, "attention_mlp")
    narrow, wide = tensors(tmp_path / "out"), tensors(tmp_path / "wide")
    for name, tensor in right.items():
        assert torch.equal(narrow[name], tensor.bfloat16())
        assert torch.equal(wide[name], tensor)
    assert json.loads((tmp_path / "wide/config.json").read_text())["dtype"] == "float32"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "wide").dtype == torch.float32


def test_the_number_of_threads_changes_neither_bits_nor_summary(tmp_path, monkeypatch):
    folders = [save(tmp_path / name, dtype=torch.bfloat16, drift=drift) for name, drift in (("a", 0), ("c", 1e-3))]
    monkeypatch.setattr(files, "BLOCK_ELEMENTS", 100)
    made = []
    for threads in (1, 4, 4):
        monkeypatch.setattr(files, "THREADS", threads)
        out = tmp_path / str(len(made))
        made.append((extrapolate_folder(*folders, 2.0, out), (out / "model.safetensors").read_bytes()))
    assert made[0] == made[1] == made[2]


def test_warns_where_16_bits_round_the_update_away(tmp_path, capfd):
    anchor, current = save(tmp_path / "a"), save(tmp_path / "c", drift=1e-6)
    arguments = ["extrapolate", "--anchor", str(anchor), "--current", str(current), "--coefficient", "2"]
    assert run_verb([*arguments, "--out", str(tmp_path / "b"), "--dtype", "bfloat16"]) == 0
    assert "--dtype float32 keeps it" in capfd.readouterr().err
    assert run_verb([*arguments, "--out", str(tmp_path / "f"), "--dtype", "float32"]) == 0
    assert "warning" not in capfd.readouterr().err
    narrow = [save(tmp_path / name, dtype=torch.bfloat16, drift=drift) for name, drift in (("na", 0), ("nc", 1e-6))]
    (warning,) = extrapolate_folder(*narrow, 2.0, tmp_path / "n").warnings()
    assert "are the same in both checkpoints" in warning


def test_a_tied_head_that_is_stored_moves_with_the_embedding(tmp_path):
    folders = []
    for name, drift in (("a", 0.0), ("c", 1e-3)):
        folder = save(tmp_path / name, "qwen2", drift=drift)
        stored = load_file(folder / "model.safetensors")
        stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
        if name == "c":
            save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        folders.append(folder)
    extrapolate_folder(*folders, 2.0, tmp_path / "out", parameters="all")
    made = tensors(tmp_path / "out")
    assert torch.equal(made["lm_head.weight"], made["model.embed_tokens.weight"])
    assert not torch.equal(made["lm_head.weight"], tensors(folders[1])["lm_head.weight"])


def test_configuration_and_tokenizer_come_along_and_trainer_files_do_not(pair, tmp_path):
    for name in ("tokenizer.json", "chat_template.jinja", "trainer_state.json", "optimizer.pt"):
        (pair[1] / name).write_text("{}")
    extrapolate_folder(*pair, 2.0, tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    }


def test_what_cannot_be_extrapolated_is_refused_and_leaves_nothing(pair, tmp_path):
    anchor, current = pair
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"lacks model.layers.0.self_attn.[kq]_norm.weight"):
        extrapolate_folder(save(tmp_path / "llama", "llama"), current, 2.0, out)
    stored = load_file(current / "model.safetensors")
    wider = shutil.copytree(current, tmp_path / "wider")
    save_file({**stored, "lm_head.weight": torch.zeros(25, 32)}, wider / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"wider .* lm_head.weight is \(25, 32\), not \(24, 32\)"):
        extrapolate_folder(anchor, wider, 2.0, out)
    with pytest.raises(UserError, match="are the same"):
        extrapolate_folder(current, current, 2.0, out)
    with pytest.raises(UserError, match="does not exist"):
        extrapolate_folder(tmp_path / "nowhere", current, 2.0, out)
    with pytest.raises(UserError, match="matches no parameter"):
        extrapolate_folder(anchor, current, 2.0, out, parameters="nothing")
    with pytest.raises(UserError, match="coefficient is nan"):
        extrapolate_folder(anchor, current, float("nan"), out)
    broken = shutil.copytree(current, tmp_path / "broken")
    stored["model.layers.1.mlp.up_proj.weight"][3, 5] = float("inf")
    save_file(stored, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="up_proj.weight gets values that are not finite with coefficient 2"):
        extrapolate_folder(anchor, broken, 2.0, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anchor", "broken", "current", "llama", "wider"]
    out.mkdir()
    (out / "precious").touch()
    with pytest.raises(UserError, match="exists already"):
        extrapolate_folder(anchor, current, 2.0, out)
    assert [path.name for path in out.iterdir()] == ["precious"]


def test_memory_does_not_grow_with_the_tensors(tmp_path):
    """Peak memory above that of the start: less than the largest tensor, of 32 MiB."""
    for name in ("a", "c"):
        (tmp_path / name).mkdir()
        weights = {
            f"model.layers.{i}.mlp.up_proj.weight": torch.full((2048, 4096), 0.5 + (name == "c")) for i in (0, 1)
        }
        save_file(weights, tmp_path / name / "model.safetensors")
    script = (
        "import resource, sys; from pathlib import Path; import effopd.models.extrapolated_files as f, torch\n"
        "torch.set_num_threads(1); torch.ones(9).sum(); peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); root = Path(sys.argv[1]); f.extrapolate_folder(root / 'a', root / 'c', 2.0, root / 'o')\n"
        "print((peak() - before) / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 32
    assert load_file(tmp_path / "o/model.safetensors")["model.layers.1.mlp.up_proj.weight"][5, 7] == 3.5


@pytest.mark.slow
def test_a_killed_run_leaves_no_folder_and_the_next_one_clears_what_it_left(tmp_path):
    for name in ("a", "c"):
        (tmp_path / name).mkdir()
        weights = {f"model.layers.{i}.mlp.up_proj.weight": torch.ones(2048, 4096) for i in range(4)}
        save_file(weights, tmp_path / name / "model.safetensors")
    command = [sys.executable, "-m", "effopd", "extrapolate", "--coefficient", "2"]
    command += ["--anchor", str(tmp_path / "a"), "--current", str(tmp_path / "c"), "--out", str(tmp_path / "o")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = tmp_path / ".o.part"
    while process.poll() is None and not (list(part.glob("*.safetensors")) if part.exists() else []):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert part.exists(), "it was over before it could be killed: the test proves nothing"
    assert not (tmp_path / "o").exists()
    subprocess.run(command, check=True, capture_output=True)
    assert not part.exists()
    assert len(Checkpoint.open(tmp_path / "o").tensors) == 4
