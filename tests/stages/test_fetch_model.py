"""Pretrained models: linked, not copied; known by their contents; refused with one line if they cannot be used."""

import importlib.util
import json
import shutil

import pytest
import torch

from effopd.artifacts.fingerprints import file_sha256
from effopd.artifacts.manifests import read_manifest
from effopd.common.errors import ConfigError, UserError
from effopd.models.models import load_frozen, load_model, load_tokenizer, save_model, weights_of
from effopd.models.pretrained import local_model_files
from effopd.specs.read import read_spec
from effopd.stages import fetch_model as fetching
from effopd.stages.fetch_model import fetch_model
from effopd.training.checkpoints import Point
from made_wheels import make_wheel, model_of, only_from
from tiny_gguf import tiny_llama, write_gguf
from tiny_models import byte_tokenizer, make_family


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    model = make_family("qwen2", 0, vocabulary=259)  # its tokenizer adds one to the 258
    save_model(model.config, weights_of(model), byte_tokenizer(), folder)
    return folder


def spec_of(folder, **changes):
    model = {"kind": "pretrained", "path": str(folder), "dtype": "float32", "trust_remote_code": False, **changes}
    return read_spec("fetch_model", {"model": model, "code": "x"})


def fetched(folder, out, **changes):
    fetch_model(spec_of(folder, **changes), out)
    return read_manifest(out, "model")


def test_a_local_model_is_linked_and_its_manifest_holds_what_it_is(source, tmp_path):
    (source / "README.md").write_text("not needed")
    out = tmp_path / "results/models/tiny/manifest.json"
    manifest = fetched(source, out)
    weights = out.parent / "model.safetensors"
    assert weights.is_symlink()
    assert weights.resolve() == source / "model.safetensors"
    assert not (out.parent / "README.md").exists()
    assert list(manifest.problems()) == []
    assert manifest.spec["files"]["model.safetensors"] == manifest.files["model.safetensors"]["sha256"]
    assert manifest.result["architecture"] == "qwen2"
    assert manifest.result["parameters"] == sum(
        tensor.numel() for tensor in weights_of(load_model(source, torch.device("cpu"))).values()
    )
    assert load_tokenizer(out.parent)("ab")["input_ids"]


def test_contents_decide_the_fingerprint_and_unchanged_files_are_not_read_again(source, tmp_path, monkeypatch):
    out = tmp_path / "models/tiny/manifest.json"
    first = fetched(source, out)
    read = []
    digest = fetching.file_sha256
    monkeypatch.setattr(fetching, "file_sha256", lambda path: (read.append(path.name), digest(path))[1])
    assert fetched(source, out).fingerprint == first.fingerprint
    assert read == []
    copy = shutil.copytree(source, tmp_path / "copy")
    assert fetched(copy, out, path=str(source)).fingerprint != ""
    other = make_family("qwen2", 1, vocabulary=259)
    save_model(other.config, weights_of(other), byte_tokenizer(), source)
    second = fetched(source, out)
    assert second.fingerprint != first.fingerprint
    assert "model.safetensors" in read
    assert "altered" in "".join(first.problems())


def test_a_bf16_teacher_is_held_in_bf16_and_a_student_starts_in_float32(tmp_path):
    model = make_family("llama", 0, vocabulary=258)
    folder = tmp_path / "source"
    save_model(model.config, weights_of(model), byte_tokenizer(), folder)
    load_model(folder, torch.device("cpu"), torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    out = tmp_path / "models/tiny/manifest.json"
    manifest = fetched(folder, out, dtype="bfloat16")
    assert manifest.result["stored_as"] == ["BF16"]
    assert load_frozen(out.parent, torch.device("cpu")).dtype == torch.bfloat16
    rounded = {name: tensor.bfloat16().float() for name, tensor in weights_of(model).items()}
    weights = Point.open(out).weights()
    assert weights.keys() == rounded.keys()
    assert all(torch.equal(weights[name], rounded[name]) for name in rounded)


def test_what_cannot_be_used_is_refused_with_one_line(source, tmp_path):
    out = tmp_path / "models/tiny/manifest.json"

    def refusal(error=UserError, folder=source):
        with pytest.raises(error) as caught:
            fetched(folder, out)
        assert "\n" not in str(caught.value)
        assert not out.exists()
        return str(caught.value)

    assert "does not exist. Correct its `path` in `models`" in refusal(ConfigError, tmp_path / "nothing")
    (source / "config.json").rename(source / "kept.json")
    assert "is not a model that transformers knows" in refusal()
    (source / "config.json").write_text(json.dumps({"model_type": "of-tomorrow"}))
    assert "is not a model that transformers knows" in refusal()
    (source / "kept.json").rename(source / "config.json")
    (source / "tokenizer.json").rename(source / "kept.json")
    assert "has no tokenizer (tokenizer.json or" in refusal()
    (source / "kept.json").rename(source / "tokenizer.json")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors cannot be read" in refusal()
    weights.rename(source / "pytorch_model.bin")
    assert (
        "holds only pytorch_model.bin and the like, which may run code when read. Save the model as safetensors"
        in refusal(ConfigError)
    )


def test_a_gguf_file_is_dequantized_and_its_contents_decide_the_fingerprint(tmp_path):
    file, out = write_gguf(tmp_path / "tiny.gguf", tiny_llama()), tmp_path / "models/tiny/manifest.json"
    first = fetched(file, out)
    assert list(first.problems()) == []
    assert first.spec["files"] == {"tiny.gguf": file_sha256(file)}
    assert first.result == {"architecture": "llama", "parameters": 32096, "stored_as": ["F32"]}
    assert not any(path.is_symlink() for path in out.parent.iterdir())
    weights = Point.open(out).weights()
    assert all(torch.equal(weights[name], weight) for name, weight in weights_of(tiny_llama()).items())
    assert fetched(file, out).fingerprint == first.fingerprint
    assert list(first.problems()) == []  # the same bits
    write_gguf(file, tiny_llama(seed=1))
    assert fetched(file, out).fingerprint != first.fingerprint


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path):
    (tmp_path / "source").mkdir()
    file = write_gguf(tmp_path / "source/tiny.Q8_0.gguf", tiny_llama())
    (tmp_path / "source/README.md").write_text("not needed")
    assert local_model_files(spec_of(tmp_path / "source").model) == [file]
    assert fetched(tmp_path / "source", tmp_path / "models/tiny/manifest.json").spec["files"].keys() == {file.name}
    write_gguf(tmp_path / "source/tiny.F16.gguf", tiny_llama())
    with pytest.raises(ConfigError) as refusal:
        fetched(tmp_path / "source", tmp_path / "models/tiny/manifest.json")
    assert str(refusal.value) == (
        f"config: the model folder {tmp_path / 'source'} holds several GGUF files (tiny.F16.gguf, tiny.Q8_0.gguf). Name one "
        "of them as `path` in `models`."
    )


def test_safetensors_beside_a_gguf_file_are_the_model(source, tmp_path):
    write_gguf(source / "tiny.gguf", tiny_llama())
    assert fetched(source, tmp_path / "models/tiny/manifest.json").result["architecture"] == "qwen2"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "config: the GGUF file {file} does not exist. Correct its `path` in `models`."),
        (b"PK and more", "{file} is no GGUF file (it does not begin with GGUF)"),
        (b"GGUF\3\0\0\0", "{file} is damaged (it ends before its header does)"),
    ],
)
def test_a_gguf_file_that_cannot_be_read_is_one_line(tmp_path, content, words):
    file, out = tmp_path / "tiny.gguf", tmp_path / "models/tiny/manifest.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        fetched(file, out)
    assert words.format(file=file) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not out.exists()


def test_a_model_comes_out_of_a_package_that_is_not_installed(tmp_path, monkeypatch):
    only_from(tmp_path / "wheels", monkeypatch)
    content = write_gguf(tmp_path / "tiny.gguf", tiny_llama()).read_bytes()
    package = make_wheel(
        tmp_path / "wheels", {"llm_tiny/tiny.gguf": content, "llm_tiny/__init__.py": b"raise SystemExit"}
    )
    out = tmp_path / "models/tiny/manifest.json"
    fetch_model(read_spec("fetch_model", {"model": model_of(package), "code": "x"}), out)
    manifest = read_manifest(out, "model")
    assert list(manifest.problems()) == []
    assert manifest.spec["files"] == {"llm_tiny/tiny.gguf": file_sha256(tmp_path / "tiny.gguf")}
    assert {path.name for path in out.parent.iterdir()} == {*manifest.files, "manifest.json", ".digests.json", ".lock"}
    weights = Point.open(out).weights()
    assert all(torch.equal(weights[name], weight) for name, weight in weights_of(tiny_llama()).items())
    assert importlib.util.find_spec("llm_tiny") is None
    assert local_model_files(read_spec("fetch_model", {"model": model_of(package)}).model) == []


def test_what_is_wrong_with_a_file_in_a_package_names_the_package(tmp_path, monkeypatch):
    only_from(tmp_path / "wheels", monkeypatch)
    package = make_wheel(tmp_path / "wheels", {"llm_tiny/tiny.gguf": b"GGUF"})
    out = tmp_path / "models/tiny/manifest.json"
    with pytest.raises(UserError) as refusal:
        fetch_model(read_spec("fetch_model", {"model": model_of(package), "code": "x"}), out)
    assert str(refusal.value).startswith("llm_tiny/tiny.gguf of the package llm-tiny 0.1.2 is damaged (")
    assert [path.name for path in out.parent.iterdir()] == [".lock"]
