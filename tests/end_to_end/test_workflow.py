"""The promises of the DAG, on real runs of the tiny experiment."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from workflow_runs import ROOT, Workflow, kill_and_resume

pytestmark = pytest.mark.slow


def test_everything_promised_is_there_and_makes_sense(undisturbed):
    for name in (
        "config.yaml",
        "report.html",
        "data/arithmetic/test.parquet",
        "models/teacher/config.json",
        "models/teacher/checkpoints/step4.safetensors",
        "runs/effopd/seed1/rollouts/step3.parquet",
        "runs/effopd/seed1/scores/step3.safetensors",
        "runs/effopd/seed1/state/4/state.json",
        "runs/effopd/seed1/extrapolation/4/decision.json",
        "runs/effopd/seed1/metrics.parquet",
        "runs/effopd/seed1/cost.parquet",
        "evaluation/effopd/seed1/4.json",
        "dynamics/effopd/seed0/spectra.parquet",
        "dynamics/models/teacher/interventions.parquet",
        "tables/speedup.csv",
        "tables/comparison.csv",
        "tables/dynamics_interventions.csv",
        "figures/accuracy_vs_steps.svg",
        "figures/accuracy_vs_steps.png",
        "figures/spectra.png",
        "tables/paper_claims.csv",
        "dynamics.html",
    ):
        assert undisturbed.path(name).is_file(), name
    metrics = pd.read_parquet(undisturbed.path("runs/effopd/seed1/metrics.parquet"))
    assert metrics["step"].tolist() == [1, 2, 3, 4]
    assert metrics["importance_weight"].between(0.999, 1.001).all(), "engine and trainer disagree on log-probs"
    decision = json.loads(undisturbed.path("runs/line/seed0/extrapolation/2/decision.json").read_text())["result"]
    assert decision["trials"][0]["coefficient"] == 1
    assert len(decision["current"]["per_item"]) == 8
    speedup = pd.read_csv(undisturbed.path("tables/speedup.csv"))
    assert set(speedup["run"]) == {"opd", "effopd", "line"}
    assert (speedup.loc[speedup["run"] == "opd", "step_ratio"] == 1).all()


def test_the_first_segment_of_runs_that_differ_in_extrapolation_is_the_same(undisturbed):
    """Runs that differ only in extrapolation train their first segment alike, bitwise."""
    contents = undisturbed.contents()
    for name in ("weights.safetensors", "optimizer.safetensors", "metrics.parquet"):
        first = {contents[f"results/runs/{run}/seed0/state/1/{name}"] for run in ("opd", "effopd", "line")}
        assert len(first) == 1
    assert (
        contents["results/runs/opd/seed0/state/1/weights.safetensors"]
        != (contents["results/runs/opd/seed1/state/1/weights.safetensors"])
    )


def test_each_jump_is_along_the_update_since_the_last_accepted_weights(undisturbed):
    """The anchor is what training went on from at the previous trigger (paper section 2, as released)."""
    from effopd.extrapolation.candidates import candidate, moving_parameters
    from effopd.models.models import load_tensors

    jumps = 0
    for run in ("effopd", "line"):
        for seed in (0, 1):
            anchor = load_tensors(undisturbed.path("models/base/model.safetensors"))
            for step in (1, 2, 4):
                folder = undisturbed.path(f"runs/{run}/seed{seed}")
                current = load_tensors(folder / f"state/{step}/weights.safetensors")
                decision = json.loads((folder / f"extrapolation/{step}/decision.json").read_text())["result"]
                moving = moving_parameters(current, "attention_mlp")
                norm = sum(float((current[n] - anchor[n]).double().square().sum()) for n in moving) ** 0.5
                assert decision["update_norm"]["moving"] == pytest.approx(norm, rel=1e-6)
                if decision["coefficient"]:
                    jumps += 1
                    accepted = load_tensors(folder / f"extrapolation/{step}/weights.safetensors")
                    wanted = candidate(current, anchor, decision["coefficient"], moving)
                    assert all((accepted[name] == tensor).all() for name, tensor in wanted.items())
                    current = accepted
                anchor = current
    assert jumps, "no candidate was accepted: the test proves nothing"


def test_interventions_meet_the_problems_of_the_evaluation(undisturbed):
    """Kept states score on their problems what they score in the evaluation; the final one's variants at 1 are it."""
    items = pd.read_parquet(undisturbed.path("dynamics/effopd/seed0/interventions.items.parquet"))
    for step, name in (
        (1, "path 1"),
        (2, "path 2"),
        (4, "final"),
        (4, "equal_norm 1"),
        (4, "reconstruction top 100 %"),
    ):
        own = items[items["variant"] == name].drop(columns="variant").reset_index(drop=True)
        evaluated = pd.read_parquet(undisturbed.path(f"evaluation/effopd/seed0/{step}.items.parquet"))
        assert len(own) == 8
        pd.testing.assert_frame_equal(own.drop(columns="reverse_kl"), evaluated[:8].drop(columns="reverse_kl"))
        assert own["reverse_kl"].tolist() == pytest.approx(evaluated["reverse_kl"][:8].tolist(), abs=1e-5)


def test_weights_are_those_from_which_training_goes_on(undisturbed):
    from effopd.models.models import load_tensors

    base = load_tensors(undisturbed.path("models/base/model.safetensors"))
    run, norms = undisturbed.path("runs/effopd/seed0"), {}
    for step in (1, 2, 4):
        decision = json.loads((run / f"extrapolation/{step}/decision.json").read_text())["result"]
        folder = run / (f"extrapolation/{step}" if decision["coefficient"] else f"state/{step}")
        weights = load_tensors(folder / "weights.safetensors")
        norms[step] = sum(float((weights[n] - base[n]).double().square().sum()) for n in base) ** 0.5
    table = pd.read_parquet(undisturbed.path("dynamics/effopd/seed0/norms.parquet"))
    found = (table["frobenius_norm"] ** 2).groupby(table["step"]).sum() ** 0.5
    assert found.to_dict() == pytest.approx(norms, rel=1e-5)


def test_a_figure_is_redrawn_to_the_same_bytes(copy):
    figure = copy.path("figures/gate_vs_coefficient.svg")
    before = figure.read_bytes()
    figure.unlink()
    assert copy.planned() == {"plot_figure": 1, "write_report": 1}
    copy.run("results/figures/gate_vs_coefficient.svg")
    assert figure.read_bytes() == before
    assert b"step 4" in before


def test_verify_finds_what_was_altered_and_what_does_not_belong(copy):
    def verify():
        command = [str(Path(sys.executable).with_name("effopd")), "verify"]
        done = subprocess.run(command, cwd=copy.folder, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    assert verify() == (0, "123 artifacts of results are whole, and made from each other.\n")
    weights = copy.path("runs/opd/seed0/state/2/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    shutil.rmtree(copy.path("runs/line/seed1/state/4"))
    status, output = verify()
    assert status == 2
    assert "runs/opd/seed0/state/2/weights.safetensors is altered" in output
    assert "runs/line/seed1/extrapolation/4/decision.json was made from a state with fingerprint" in output


def test_a_second_run_does_nothing_quickly(copy):
    started = time.monotonic()
    output = copy.run()
    assert "nothing to be done" in output
    assert time.monotonic() - started < 10
    assert copy.planned() == {}


def test_two_runs_are_bitwise_equal_warm_or_cold(undisturbed, tmp_path):
    """Each stage that computes, cold and started by the `snakemake` command itself."""
    cold = Workflow(tmp_path)
    cold.config["runtime"]["warm"] = "off"
    run, evaluation = "results/runs/effopd/seed0", "results/evaluation"
    targets = [
        f"{run}/extrapolation/2/decision.json",
        f"{evaluation}/effopd/seed0/2.json",
        f"{evaluation}/models/base.json",
    ]
    done = subprocess.run(cold.command(*targets), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    mine, theirs = cold.contents(), undisturbed.contents()
    compared = [name for name in mine if re.search(r"results/(data|models|runs|evaluation)/", name)]
    assert len(compared) > 40
    assert {name: mine[name] for name in compared} == {name: theirs[name] for name in compared}


def test_a_killed_segment_replays_its_rollouts(copy):
    """Artifacts of finished steps are kept and used again; only what is missing is made."""
    run = copy.path("runs/opd/seed0")
    before = {path: path.stat().st_mtime_ns for path in run.glob("rollouts/*")}
    scores = {path: path.stat().st_mtime_ns for path in run.glob("scores/*")}
    contents = copy.contents()
    (run / "state/4/state.json").unlink()
    (run / "scores/step4.safetensors").write_bytes(b"torn")
    copy.run("results/runs/opd/seed0/state/4/state.json")
    assert {path: path.stat().st_mtime_ns for path in run.glob("rollouts/*")} == before
    changed = {path.name for path, time in scores.items() if path.stat().st_mtime_ns != time}
    assert changed == {"step4.json", "step4.safetensors"}
    assert copy.contents() == contents


def test_a_killed_segment_goes_on_from_its_resume_point(copy, monkeypatch):
    """Steps before the resume point are not even replayed, and the state is bitwise the undisturbed one."""
    contents = copy.contents()
    kill_and_resume(copy, "opd", monkeypatch)
    assert copy.contents() == contents


def test_a_second_workflow_on_the_same_results_says_so_and_leaves(tmp_path):
    workflow = Workflow(tmp_path)
    first = workflow.start()
    while not (tmp_path / "results/.workflow.lock").exists() and first.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    output = workflow.run(status=1)
    assert re.search(r"another workflow \(process \d+, since .*\) is working on results", output)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()


def test_bad_configuration_is_one_line_and_touches_nothing(copy):
    before = copy.contents()
    copy.config["training"]["lr"] = "0.01"
    output = copy.run(status=1)
    (line,) = [line for line in output.splitlines() if "training.lr" in line]
    assert re.search(r"config/config\.yaml, line \d+: `training\.lr` is '0\.01', which is text\. Write 0\.01 w", line)
    assert output.splitlines()[-1] == line
    assert "Traceback" not in output
    assert copy.contents() == before


def test_a_truncated_state_is_named_and_earlier_artifacts_are_untouched(copy):
    weights = copy.path("runs/opd/seed0/state/2/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-9])
    copy.path("runs/opd/seed0/state/4/state.json").unlink()
    before = copy.contents()
    output = copy.run("results/runs/opd/seed0/state/4/state.json", status=1)
    assert "seed0/state/2/weights.safetensors is truncated or altered" in output
    assert "Delete results/runs/opd/seed0/state/2/state.json and run the workflow again" in output
    assert copy.contents() == before


def test_a_diverging_run_ends_with_one_line_and_the_others_go_on(copy):
    copy.config["runs"]["opd"]["training"] = {"lr": 1.0e30}
    output = copy.run(status=1)
    assert re.search(
        r"train_segment opd 0 2: error: the (loss|gradient) of optimizer step 2 (is|has norm) \w+. Lower `lr`", output
    )
    assert copy.path("runs/effopd/seed0/state/4/state.json").is_file()
    assert copy.path("models/base/manifest.json").is_file()


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a file system read-only")
def test_a_read_only_results_folder_is_one_line_and_nothing_changes(copy):
    copy.path("tables/models.csv").unlink()
    before = copy.contents()
    command = " ".join(f"'{part}'" for part in copy.command())
    script = f"mount --bind results results && mount -o remount,ro,bind results && {command}"
    ended = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script], cwd=copy.folder, capture_output=True, text=True
    )
    output = ended.stdout + ended.stderr
    if "mount" in output and "denied" in output:
        pytest.skip("may not mount here")
    assert ended.returncode == 1, output
    assert [line for line in output.splitlines() if "error" in line.lower()] == [output.splitlines()[-1]]
    assert re.search(r"error: results\S* cannot be written: its file system is read-only", output)
    assert copy.contents() == before


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a small file system")
def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_space(undisturbed, tmp_path):
    workflow = Workflow(tmp_path)
    command = " ".join(f"'{part}'" for part in workflow.command())
    (tmp_path / "results").mkdir()
    script = f"mount -t tmpfs -o size=600k none results && {command}; code=$?; cp -a results kept; exit $code"
    ended = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    output = ended.stdout + ended.stderr
    if "mount" in output and "denied" in output:
        pytest.skip("may not mount here")
    assert ended.returncode == 1, output
    assert "error: the disk is full" in output
    assert "Traceback" not in output
    shutil.rmtree(tmp_path / "results")
    (tmp_path / "kept").rename(tmp_path / "results")
    workflow.run()
    assert workflow.contents() == undisturbed.contents()


def test_an_exported_state_loads_and_is_the_accepted_candidate(undisturbed, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from effopd.models.models import load_tensors

    out = tmp_path / "model"
    effopd = ROOT / ".venv/bin/effopd"
    command = [str(effopd) if effopd.exists() else "effopd", "export", "--run", "line", "--seed", "0", "--step", "4"]
    subprocess.run([*command, "--out", str(out)], cwd=undisturbed.folder, check=True)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert AutoTokenizer.from_pretrained(out)("7+8=")["input_ids"]
    trigger = undisturbed.path("runs/line/seed0/extrapolation/4")
    decision = json.loads((trigger / "decision.json").read_text())["result"]
    source = trigger if decision["coefficient"] else undisturbed.path("runs/line/seed0/state/4")
    for name, tensor in load_tensors(source / "weights.safetensors").items():
        assert (dict(model.named_parameters())[name] == tensor).all()
    again = subprocess.run([*command, "--out", str(out)], cwd=undisturbed.folder, capture_output=True, text=True)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_finished_jobs_leave_no_timers_behind(copy):
    """Snakemake's default rate limit has each of them start one, which wakes the scheduler every second."""
    threads = []
    with copy.started("--forcerun", "plot_figure", "plot_weight_figure") as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            threads.append(int(status.partition("Threads:")[2].split()[0]))
            time.sleep(0.1)
        output, _ = process.communicate()
    assert process.returncode == 0, output
    figures = len([*copy.path("figures").glob("*.png")])
    assert max(threads) < figures
