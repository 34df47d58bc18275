"""Interventions on a small run on disk: the same outcomes as the evaluation's, once each, whenever the job is killed."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from effopd.artifacts.manifests import write_manifest
from effopd.common.errors import ArtifactError
from effopd.data.rollouts import Rollouts
from effopd.dynamics.representation import representation_cosines
from effopd.models.models import save_tensors, weights_of
from effopd.report.dynamics_findings import dynamics_section
from effopd.specs.read import read_spec
from effopd.stages import evaluate_interventions as stage
from effopd.stages.analyze_weights import analyze_weights
from effopd.stages.evaluate import evaluate
from effopd.stages.make_data import make_data
from effopd.stages.make_dynamics_tables import make_dynamics_tables
from effopd.stages.tokenize_prompts import tokenize_prompts
from tiny_models import make_model
from typed_settings import ENGINE
from variant_settings import SETTINGS, section_of
from written_models import TASK, nudged, write_model

CPU = torch.device("cpu")
EVALUATION = {
    "temperature": 1.0,
    "seed": 0,
    "batch_size": 8,
    "max_new_tokens": 6,
    "precision": "float32",
    "split": "test",
}
ALL = [*SETTINGS["interventions"], "representation"]
SPEC = {
    "dynamics": section_of(interventions=ALL, problems=100),
    "evaluation": EVALUATION,
    "engine": ENGINE,
    "task": TASK,
    "code": "x",
}
STEPS = (1, 4, 16)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A results folder with data, prompts, base, teacher, and the states of a run; at step 4 a jump was accepted."""
    torch.set_num_threads(1)
    results = tmp_path_factory.mktemp("run") / "results"
    data, prompts = results / "data/arithmetic/manifest.json", results / "data/arithmetic/prompts-base/manifest.json"
    make_data(read_spec("make_data", {"task": {**TASK, "code": "x"}, "code": "x"}), data)
    base = write_model(results / "models/base", weights_of(make_model(0)))
    write_model(results / "models/teacher", nudged(0.1, 5), checkpoints=(1, 2))
    tokenize_prompts(read_spec("tokenize_prompts", {"prompt": None, "code": "x"}), data, base, prompts)
    for step in STEPS:
        folder = results / f"runs/opd/seed0/state/{step}"
        save_tensors(folder / "weights.safetensors", nudged(0.01 * step, step))
        state = write_manifest(
            folder / "state.json", kind="state", spec={"step": step}, parents={}, result={"step": step}, started=time.time(),
            files={"weights.safetensors": folder / "weights.safetensors"},
        )  # fmt: skip
    decision = results / "runs/opd/seed0/extrapolation/16"
    save_tensors(decision / "weights.safetensors", nudged(0.2, 9))
    write_manifest(
        decision / "decision.json", kind="decision", spec={}, parents={"state": state.fingerprint}, started=time.time(),
        result={"coefficient": 2}, files={"weights.safetensors": decision / "weights.safetensors"},
    )  # fmt: skip
    return results


def files_of(run, subject):
    if subject.startswith("models/"):
        return {"states": [run / subject / "manifest.json"], "decisions": []}
    states = [run / f"runs/opd/seed0/state/{step}/state.json" for step in STEPS]
    return {"states": states, "decisions": [run / "runs/opd/seed0/extrapolation/16/decision.json"]}


def intervene(run, out, spec=SPEC, subject="opd/seed0"):
    stage.evaluate_interventions(
        read_spec("evaluate_interventions", spec),
        base=run / "models/base/manifest.json",
        teacher=run / "models/teacher/manifest.json",
        prompts=run / "data/arithmetic/prompts-base/manifest.json",
        out=out / "interventions.json",
        device=CPU,
        **files_of(run, subject),
    )


def contents(folder):
    tables = {path.name: pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}
    manifest = json.loads((folder / "interventions.json").read_text())
    return {**tables, "manifest": pd.Series({key: str(manifest[key]) for key in manifest if key != "recorded"})}


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory):
    out = run / "dynamics/opd/seed0"
    intervene(run, out)
    return out


def test_states_score_as_in_the_evaluation_bitwise(run, undisturbed, tmp_path):
    table = pd.read_parquet(undisturbed / "interventions.parquet").set_index("variant")
    items = pd.read_parquet(undisturbed / "interventions.items.parquet")
    for step, name in ((1, "path 1"), (16, "final"), (16, "equal_norm 1"), (16, "reconstruction top 100 %")):
        out = tmp_path / f"{name}.json"
        spec = {"evaluation": {**EVALUATION, "samples": 1}, "engine": ENGINE, "task": TASK, "code": "x"}
        evaluate(
            read_spec("evaluate", spec),
            student=run / "models/base/manifest.json",
            teacher=run / "models/teacher/manifest.json",
            prompts=run / "data/arithmetic/prompts-base/manifest.json",
            state=run / f"runs/opd/seed0/state/{step}/state.json",
            decision=run / "runs/opd/seed0/extrapolation/16/decision.json" if step == 16 else None,
            out=out,
            device=CPU,
        )
        result = json.loads(out.read_text())["result"]
        assert table.loc[name, "accuracy"] == result["accuracy"]
        assert table.loc[name, "reverse_kl"] == result["reverse_kl"]
        own = items[items["variant"] == name].drop(columns="variant").reset_index(drop=True)
        pd.testing.assert_frame_equal(own, pd.read_parquet(out.with_suffix(".items.parquet")))


def test_norms_and_identities(undisturbed):
    table = pd.read_parquet(undisturbed / "interventions.parquet").set_index("variant")
    base, final = weights_of(make_model(0)), nudged(0.2, 9)
    norm = sum(float((final[n].double() - base[n].double()).square().sum()) for n in base) ** 0.5
    assert table.loc["final", "norm"] == pytest.approx(norm)
    assert table.loc["base", "norm"] == 0
    assert table.loc["equal_norm 0.3", "relative_norm"] == pytest.approx(0.3, rel=1e-4)
    assert table.loc["reconstruction top 10 %", "relative_norm"] == pytest.approx(1, rel=1e-6)
    assert table.loc["norm_scaling 1", "relative_norm"] == pytest.approx(1, rel=1e-4)
    assert table.loc["norm_scaling 0.5", "step"] == 1
    assert table["weights"].nunique() < len(table)


def test_a_killed_job_goes_on_to_the_same_bits_and_measures_the_same_weights_once(
    run, undisturbed, tmp_path, monkeypatch
):
    measure, calls = stage.measure, []

    def dying(*arguments, **options):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return measure(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "measure", dying)
        with pytest.raises(KeyboardInterrupt):
            intervene(run, tmp_path)
    assert not (tmp_path / "interventions.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(stage, "measure", lambda *a, **o: calls.append(1) or measure(*a, **o))
        intervene(run, tmp_path)
    resumed, whole = contents(tmp_path), contents(undisturbed)
    whole = {name: whole[name] for name in whole if name in resumed}  # beside it lie the tables of the weights
    assert "interventions.items.parquet" in whole
    assert len(calls) == whole["interventions.parquet"]["weights"].nunique()
    for name, table in resumed.items():
        if name == "manifest":
            assert table.equals(whole[name])
        else:
            pd.testing.assert_frame_equal(table, whole[name])
    assert not (tmp_path / ".interventions/partial.jsonl").exists()


def test_a_finished_job_is_left_alone_and_other_settings_are_not(run, tmp_path, capsys):
    few = {**SPEC, "dynamics": section_of(interventions=["equal_norm"], problems=3)}
    intervene(run, tmp_path, few)
    assert not (tmp_path / "representation.parquet").exists()
    table = pd.read_parquet(tmp_path / "interventions.parquet")
    assert table["variant"].tolist() == ["base", "final", "equal_norm 0", "equal_norm 0.3", "equal_norm 1"]
    assert set(pd.read_parquet(tmp_path / "interventions.items.parquet")["index"]) == {0, 1, 2}
    capsys.readouterr()
    intervene(run, tmp_path, few)
    assert "finished meanwhile" in capsys.readouterr().err


def test_a_models_checkpoints_are_its_states(run, tmp_path):
    few = {**SPEC, "dynamics": section_of(interventions=["path"], problems=3)}
    intervene(run, tmp_path, few, "models/teacher")
    table = pd.read_parquet(tmp_path / "interventions.parquet")
    assert table["step"].tolist() == [0, 20, 1, 2]
    assert table.set_index("variant").loc["final", "reverse_kl"] == pytest.approx(0, abs=1e-6)


def test_a_damaged_state_is_named(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "results")
    (copy / "runs/opd/seed0/state/4/weights.safetensors").write_bytes(b"torn")
    with pytest.raises(ArtifactError, match=r"state/4/weights\.safetensors is truncated"):
        intervene(copy, tmp_path / "out")


def test_representation_cosines_against_a_loop():
    base, trained = make_model(0), make_model(0)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    prompts, completions = [[3, 4], [5], [6, 7, 8]], [[9, 10, 1], [11, 1], [12]]
    rollouts = Rollouts(prompts, completions, [np.zeros(len(c), np.float32) for c in completions], [True] * 3)
    sums = representation_cosines(base, trained, rollouts, pad_id=0, batch_size=2)
    assert sums.shape == (3, 3)
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        tokens = torch.tensor([prompt + completion])
        with torch.no_grad():
            states = [m(tokens, output_hidden_states=True).hidden_states for m in (base, trained)]
        for layer in range(3):
            ours, theirs = (hidden[layer][0, len(prompt) :] for hidden in states)
            wanted = sum(float(a @ b / a.norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))
            assert sums[layer, i] == pytest.approx(wanted, rel=1e-5)
    same = representation_cosines(base, base, rollouts, pad_id=0, batch_size=3)
    np.testing.assert_array_equal(same, np.tile([3, 2, 1], (3, 1)))


def test_tables_of_a_run_and_a_model(run, undisturbed):
    for subject in ("opd/seed0", "models/teacher"):
        analyze_weights(
            read_spec("analyze_weights", {"tolerance": 1e-3, "code": "x"}),
            base=run / "models/base/manifest.json",
            out=run / f"dynamics/{subject}/weight_analysis.json",
            device=CPU,
            **files_of(run, subject),
        )
    intervene(run, run / "dynamics/models/teacher", subject="models/teacher")
    names = ["spectra", "norms", "alignment", "interventions", "representation"]
    spec = {
        "subjects": [
            {"subject": "opd/seed0", "run": "opd", "seed": 0},
            {"subject": "models/teacher", "run": "models/teacher", "seed": 3},
        ],
        "tables": [f"dynamics_{name}" for name in names],
        "confidence": 0.95,
        "code": "x",
    }
    make_dynamics_tables(read_spec("make_dynamics_tables", spec), run, run / "tables")
    tables = {name: pd.read_csv(run / f"tables/dynamics_{name}.csv") for name in names}
    for table in tables.values():
        assert set(table["run"]) == {"opd", "models/teacher"}
        assert set(table.loc[table["run"] == "opd", "seed"].astype(str)) == {"0", "mean"}
    norms = tables["norms"]
    whole = norms[(norms["run"] == "opd") & (norms["seed"] == "0") & (norms["step"] == 16)].set_index(
        ["module", "layer"]
    )
    assert whole.loc[("all", "all"), "frobenius_norm"] == pytest.approx(
        pd.read_parquet(undisturbed / "interventions.parquet").set_index("variant").loc["final", "norm"], rel=1e-5
    )
    layers = whole.xs("all", level="module").drop("all")
    assert set(layers.index) == {"0", "1", "none"}
    assert layers["share"].sum() == pytest.approx(1, rel=1e-5)
    assert whole.xs("all", level="layer").drop("all")["share"].sum() == pytest.approx(1, rel=1e-5)
    found = tables["interventions"]
    own = found[(found["run"] == "opd") & (found["seed"] == "0")].set_index("variant")
    items = pd.read_parquet(undisturbed / "interventions.items.parquet").set_index("variant")
    for name in ("base", "norm_scaling 1"):
        assert own.loc[name, "accuracy_difference"] == pytest.approx(
            items.loc[name, "reward"].mean() - items.loc["final", "reward"].mean()
        )
        low, high = own.loc[name, "reverse_kl_difference_low"], own.loc[name, "reverse_kl_difference_high"]
        assert low < own.loc[name, "reverse_kl_difference"] < high
    assert own.loc["equal_norm 1", "reverse_kl_difference_high"] == 0
    named = {f"dynamics_{name}": table for name, table in tables.items()}
    section = dynamics_section({"runs": {"opd": {"label": "Plain"}}}, named)
    titles = [part["title"] for part in section["tables"]]
    assert len(titles) == 11
    assert all(row.keys() == part["rows"][0].keys() for part in section["tables"] for row in part["rows"])
    assert [row["run"] for row in section["tables"][0]["rows"]] == ["Plain", "teacher (model)"]
    assert sum("is not shown to be better than its base" in sentence for sentence in section["findings"]) == 2


def claims(**base):
    variants = pd.DataFrame(
        [
            ("path", "base", np.nan, np.nan, 0.0),
            ("reconstruction", "reconstruction top 10 %", "top", 0.1, 0.953),
            ("reconstruction", "reconstruction top 50 %", "top", 0.5, 1.02),
            ("norm_scaling", "norm_scaling 1", np.nan, 1.0, 0.8),
        ],
        columns=["analysis", "variant", "part", "amount", "recovered"],
    ).assign(run="opd", seed=0, step=8, accuracy=0.5, accuracy_low=np.nan, accuracy_high=np.nan)
    for name in ("accuracy_difference", "accuracy_difference_low", "accuracy_difference_high"):
        variants[name] = base[name]
    norms = pd.DataFrame({"run": ["opd"], "seed": [0], "step": [8], "module": ["all"], "layer": ["all"]})
    for name in ("frobenius_norm", "relative_norm", "share"):
        norms[[name, f"{name}_low", f"{name}_high"]] = [1.0, np.nan, np.nan]
    empty = {
        f"dynamics_{name}": pd.DataFrame(columns=["run", "seed", "step", "module"]) for name in ("spectra", "alignment")
    }
    tables = {"dynamics_norms": norms, "dynamics_interventions": variants, **empty}
    return dynamics_section({"runs": {"opd": {}}}, tables)["findings"]


def test_the_report_shares_out_a_gain_only_where_there_is_one():
    bounds = ("accuracy_difference", "accuracy_difference_low", "accuracy_difference_high")
    assert claims(**dict(zip(bounds, (-0.2, -0.3, -0.1), strict=True))) == [
        "Of what opd gained in accuracy over its base, 95 % with the leading 10 % of each matrix's directions; "
        "80 % with the update of step 8 at the final norm."
    ]
    (nothing,) = claims(**dict(zip(bounds, (-0.2, -0.5, 0.1), strict=True)))
    assert nothing.startswith("opd is not shown to be better than its base")
