"""`effopd analyze` on real checkpoint folders: right values, whatever the layout; resumed; refused where it must be."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from effopd.artifacts.resume_log import Journal
from effopd.cli.commands import run_verb
from effopd.common.errors import UserError
from effopd.dynamics import analysis
from effopd.dynamics.analysis import analyse_checkpoints, analyse_parameter, arrow_table
from effopd.dynamics.summary import numbered, summarize
from effopd.models.weight_files import Parameter
from tiny_models import FAMILIES, make_family

CPU = torch.device("cpu")
KEYS = ["parameter", "layer", "module", "step"]
SPECTRA = [*KEYS, "spectral_norm", "spectral_to_frobenius", "effective_rank", "top1pct_norm_ratio", "frobenius_norm"]


def trained_from(family, out, amounts, dtype=torch.float32, **save):
    """A base and its trained versions: base + amount * (one fixed direction) + noise of each its own."""
    base = make_family(family, 0)
    base.to(dtype).save_pretrained(out / "base", **save)
    generator = torch.Generator().manual_seed(1)
    directions = [1e-3 * torch.randn(p.shape, generator=generator) for p in base.parameters()]
    for step, amount in enumerate(amounts, start=1):
        model = make_family(family, 0)
        with torch.no_grad():
            for parameter, direction in zip(model.parameters(), directions, strict=True):
                parameter += amount * direction + 1e-4 * torch.randn(direction.shape, generator=generator)
        model.to(dtype).save_pretrained(out / f"checkpoint-{step}", **save)
    return out / "base", {step: out / f"checkpoint-{step}" for step in range(1, len(amounts) + 1)}


def analyzed(base, trained, out):
    return {name: table.to_pandas() for name, table in analyse_checkpoints(base, trained, out, CPU).items()}


def summary(tables):
    return summarize({name: pa.Table.from_pandas(table) for name, table in tables.items()})


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A base and one trained version."""
    return trained_from("qwen3", tmp_path_factory.mktemp("pair"), [1.0])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A base and six checkpoints along one way."""
    return trained_from("qwen3", tmp_path_factory.mktemp("path"), [0.1, 0.3, 0.5, 0.7, 0.9, 1.0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pair_of_every_family_against_numpy(family, tmp_path):
    base, trained = trained_from(family, tmp_path, [1.0])
    tables = analyzed(base, trained, tmp_path / "out")
    assert tables.keys() == {"norms", "sparsity", "spectra", "embeddings"}
    for name, table in tables.items():
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / f"out/{name}.parquet"), table)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, trained[1]))
    norms = tables["norms"].set_index("parameter")
    assert set(norms.index) == set(before)
    for name, tensor in before.items():
        delta = (after[name] - tensor).double().numpy()
        assert norms.loc[name, "frobenius_norm"] == pytest.approx(np.linalg.norm(delta), rel=1e-5)
        assert norms.loc[name, "elements"] == delta.size
    assert list(tables["spectra"].columns[: len(SPECTRA)]) == SPECTRA
    for row in tables["spectra"].itertuples():
        delta = (after[row.parameter] - before[row.parameter]).double().numpy()
        sigma = np.linalg.svd(delta, compute_uv=False)
        p = sigma / sigma.sum()
        assert row.spectral_norm == pytest.approx(sigma[0], rel=1e-3)
        assert row.effective_rank == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-3)
        assert row.frobenius_norm == pytest.approx(norms.loc[row.parameter, "frobenius_norm"], rel=1e-5)
    for tolerance, rows in tables["sparsity"].groupby("tolerance"):
        for row in rows.itertuples():
            delta = (after[row.parameter] - before[row.parameter]).abs()
            assert row.sparsity == pytest.approx(float((delta <= tolerance).float().mean()))
    for row in tables["embeddings"].itertuples():
        cosines = torch.cosine_similarity(before[row.parameter].double(), after[row.parameter].double())
        assert row.mean_cosine == pytest.approx(float(cosines.mean()), rel=1e-6)
        assert row.min_cosine == pytest.approx(float(cosines.min()), rel=1e-6)
        assert row.rows == len(cosines)
    assert set(tables["embeddings"]["module"]) <= {"embedding", "lm_head"}
    assert tables["norms"]["layer"].dtype == "Int64"
    assert "14 spectra" in summary(tables) or family == "mixtral"


def test_identical_checkpoints_have_no_update(pair, tmp_path):
    tables = analyzed(pair[0], {1: pair[0]}, tmp_path)
    assert not tables["norms"]["frobenius_norm"].any()
    assert (tables["sparsity"]["sparsity"] == 1).all()
    assert (tables["spectra"]["method"] == "zero").all()
    assert tables["spectra"]["effective_rank"].isna().all()
    assert "14 by zero" in summary(tables)


def test_sharding_and_the_order_of_parameters_change_nothing(pair, tmp_path):
    expected = analyzed(*pair, tmp_path / "one")
    base, trained = trained_from("qwen3", tmp_path, [1.0], max_shard_size="15KB")
    assert len(list(base.glob("*.safetensors"))) > 3
    sharded = analyzed(base, trained, tmp_path / "two")
    tensors = load_file(pair[0] / "model.safetensors")
    save_file(dict(reversed(tensors.items())), tmp_path / "reversed.safetensors")
    bare = analyzed(tmp_path / "reversed.safetensors", pair[1], tmp_path / "three")
    for name, table in expected.items():
        pd.testing.assert_frame_equal(sharded[name], table)
        pd.testing.assert_frame_equal(bare[name], table)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_types_are_subtracted_in_float32(dtype, tmp_path):
    base, trained = trained_from("llama", tmp_path, [1.0], dtype)
    tables = analyzed(base, trained, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, trained[1]))
    norms = tables["norms"].set_index("parameter")["frobenius_norm"]
    for name in before:
        delta = after[name].float() - before[name].float()
        assert norms[name] == pytest.approx(float(delta.norm()), rel=1e-5)


def test_reading_in_small_blocks_changes_nothing(pair, tmp_path, monkeypatch):
    expected = analyzed(*pair, tmp_path / "one")
    monkeypatch.setattr("effopd.models.weight_files.BLOCK_ELEMENTS", 100)
    for name, table in analyzed(*pair, tmp_path / "two").items():
        pd.testing.assert_frame_equal(table, expected[name])


def test_checkpoints_along_one_way_align_with_the_last(path, tmp_path):
    tables = analyzed(*path, tmp_path)
    assert tables.keys() == set(analysis.TABLES)
    alignment = tables["alignment"]
    assert sorted(alignment["step"].unique()) == [1, 2, 3, 4, 5]
    assert list(alignment.columns[:5]) == [*KEYS, "direction"]
    counts = alignment.groupby(["parameter", "step"])["direction"].max()
    assert set(counts) == {16, 20}  # k_proj and v_proj have 16 singular values
    for column in ("left_cosine", "right_cosine", "left_principal_cosine", "right_principal_cosine"):
        assert alignment[column].between(0, 1).all()
    by_step = alignment[alignment["direction"] == 1].groupby("step")["left_cosine"].mean()
    assert by_step[5] > 0.9 > by_step[1]
    trajectory = tables["trajectory"]
    assert len(trajectory) == 14 * 6
    last = trajectory[trajectory["step"] == 6]
    np.testing.assert_allclose(last["cosine_to_final"], 1, rtol=1e-5)
    assert trajectory["explained_variance_ratio"].between(0, 1).all()
    assert np.isfinite(trajectory[["pc1", "pc2", "tsne1", "tsne2"]]).all(axis=None)
    text = summary(tables)
    assert "step 6 against the base, by module type" in text
    assert "step 5: cosine of its leading directions to step 6's 0." in text


def test_the_same_analysis_takes_tensors_from_memory(path, tmp_path):
    tables = analyzed(*path, tmp_path)
    base, trained = path
    name = "model.layers.1.mlp.down_proj.weight"
    states = {step: load_file(folder / "model.safetensors")[name] for step, folder in trained.items()}
    before = load_file(base / "model.safetensors")[name]
    parameter = Parameter(name, tuple(before.shape), 1, "down")
    rows = analyse_parameter(parameter, sorted(states), lambda step: iter([(before, states[step])]), CPU)
    assert rows.pop("embeddings") == []
    for table in rows:
        on_disk = tables[table][tables[table]["parameter"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(arrow_table(rows[table]).to_pandas(), on_disk)


def test_a_second_call_reads_back_and_another_input_computes_anew(pair, tmp_path, capfd):
    first = analyzed(*pair, tmp_path / "out")
    for name, table in analyzed(*pair, tmp_path / "out").items():
        pd.testing.assert_frame_equal(table, first[name])
    assert "holds this analysis already" in capfd.readouterr().err
    other = analyzed(pair[0], {1: pair[0]}, tmp_path / "out")
    assert not other["norms"]["frobenius_norm"].any()
    (tmp_path / "out/norms.parquet").write_bytes(b"torn")
    again = analyzed(pair[0], {1: pair[0]}, tmp_path / "out")
    pd.testing.assert_frame_equal(again["norms"], other["norms"])


def test_tables_of_an_earlier_analysis_do_not_stay(path, pair, tmp_path):
    analyse_checkpoints(*path, tmp_path, CPU)
    assert (tmp_path / "alignment.parquet").is_file()
    analyse_checkpoints(*pair, tmp_path, CPU)
    assert not (tmp_path / "alignment.parquet").is_file()


def test_a_journal_keeps_whole_lines_of_its_own_analysis_alone(tmp_path):
    file = tmp_path / "partial.jsonl"
    journal = Journal(file, "f")
    journal.add("a", {"norms": [{"x": 1.5}]})
    journal.add("b", {"norms": [{"x": float("nan")}]})
    with file.open("a") as handle:
        handle.write('{"part": "c", "va')
    read = Journal(file, "f")
    assert list(read.parts) == ["a", "b"]
    assert read.parts["a"] == {"norms": [{"x": 1.5}]}
    read.add("c", {"norms": []})
    assert list(Journal(file, "f").parts) == ["a", "b", "c"]
    whole = file.read_bytes()
    for damaged in (b"[1]", b"null", b'{"part": "d"}', b"\xff", b"[" * 100_000, b'{"value": 1}'):
        file.write_bytes(whole + damaged + b'\n{"part": "d", "value": 1}\n')
        assert list(Journal(file, "f").parts) == ["a", "b", "c"], "nothing counts from what is damaged on"
        assert file.read_bytes() == whole
    assert Journal(file, "g").parts == {}
    assert Journal(file, "f").parts == {}  # g's analysis dropped them


def command(base, trained, out):
    steps = [argument for folder in trained.values() for argument in ("--trained", str(folder))]
    return ["analyze", "--base", str(base), *steps, "--out", str(out), "--device", "cpu"]


@pytest.mark.slow
def test_a_killed_analysis_goes_on_where_it_was(path, tmp_path, monkeypatch):
    undisturbed = analyzed(*path, tmp_path / "undisturbed")
    out, names = tmp_path / "killed", set(undisturbed["norms"]["parameter"])
    process = subprocess.Popen([sys.executable, "-m", "effopd", *command(*path, out)], stderr=subprocess.DEVNULL)
    journal = out / "partial.jsonl"
    while not journal.is_file() or journal.read_bytes().count(b"\n") < 5:
        assert process.poll() is None, "it finished before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = journal.read_bytes().count(b"\n") - 1
    assert 4 <= finished < len(names)
    computed = []
    original = analysis.analyse_parameter

    def spy(parameter, *arguments):
        computed.append(parameter.name)
        return original(parameter, *arguments)

    monkeypatch.setattr(analysis, "analyse_parameter", spy)
    resumed = analyzed(*path, out)
    assert len(computed) == len(names) - finished
    for name, table in undisturbed.items():
        pd.testing.assert_frame_equal(resumed[name], table)
    assert not journal.exists()


def test_the_command_prints_a_summary(pair, tmp_path, capsys):
    assert run_verb(command(*pair, tmp_path / "out")) == 0
    printed = capsys.readouterr()
    assert "14 spectra: 14 by gram32" in printed.out
    assert "model.embed_tokens.weight: rows' cosine to the base's " in printed.out
    assert (
        f"wrote norms.parquet, sparsity.parquet, spectra.parquet, embeddings.parquet to {tmp_path / 'out'}"
        in printed.out
    )
    assert "parameters 25/25" in printed.err


def test_weights_that_are_not_finite_are_refused_by_name(pair, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    tensors = load_file(pair[0] / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, broken / "model.safetensors")
    assert run_verb(command(pair[0], {1: broken}, tmp_path / "out")) == 2
    assert "model.norm.weight has values that are not finite, in the base or at step 1" in capsys.readouterr().err


def test_mistakes_on_the_command_line_are_one_line_each(pair, tmp_path, capsys):
    other = tmp_path / "llama"
    make_family("llama", 0).save_pretrained(other)
    base, trained = pair
    capsys.readouterr()
    assert run_verb(command(base, {1: other}, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert run_verb(command(base, {1: trained[1], 2: trained[1]}, tmp_path / "out")) == 2
    assert "step 1 is given 2 times. Name the steps with STEP=PATH" in capsys.readouterr().err
    assert run_verb(command(tmp_path / "none", trained, tmp_path / "out")) == 2
    assert "no safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "out/analysis.json").exists()


def test_steps_come_from_labels_names_or_order(tmp_path):
    assert list(numbered(["50=a", "10=b"])) == [50, 10]
    assert list(numbered(["run/checkpoint-8", "run/global_step_16"])) == [8, 16]
    assert list(numbered(["Qwen2.5-7B", "other"])) == [1, 2]
    assert list(numbered(["some/model-7"])) == [1]
    assert numbered(["3=x=y"])[3].name == "x=y"
    with pytest.raises(UserError, match="Give all or none"):
        numbered(["1=a", "b"])
