"""Keys under the names that they had in version 0.1."""

import copy

import pytest

from effopd.common.errors import ConfigError
from effopd.config.load import complete
from effopd.config.renamed_keys import with_new_names
from effopd.workflow.job_specs import Plan

OLD = """\
models:
  teacher: {kind: grpo, init: base, ranks: 2}
training: {kept_steps: [2, 4], importance_limit: 4, ranks: 2, objective: {lambda: 1.25}}
extrapolation: {accept: ">"}
runs:
  opd: {training: {ranks: 1, kept_steps: [1]}, extrapolation: {triggers: none, accept: ">="}}
predictions:
  expo: {run: opd, method: expo, accept: ">="}
"""
NEW = """\
models:
  teacher: {kind: grpo, init: base, num_processes: 2}
training: {checkpoint_steps: [2, 4], importance_ratio_cap: 4, num_processes: 2, objective: {reward_scale: 1.25}}
extrapolation: {accept_ties: false}
runs:
  opd: {training: {num_processes: 1, checkpoint_steps: [1]}, extrapolation: {triggers: none, accept_ties: true}}
predictions:
  expo: {run: opd, method: expo, accept_ties: true}
"""
BASE = "models: {base: {kind: pretrain}}\n"


def plan(folder, *texts):
    paths = [folder / f"{number}.yaml" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return Plan.of_files(paths)


def test_old_names_mean_what_the_new_ones_do_and_each_is_said_with_its_place(tmp_path, capsys):
    assert plan(tmp_path, BASE, OLD).config == plan(tmp_path, BASE, NEW).config
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 10
    assert said[0].endswith(
        "1.yaml, line 2: `models.teacher.ranks` is called `num_processes` now. The old name works for one more release."
    )
    assert all(line.startswith("warning: ") for line in said)


def test_an_overlay_may_use_either_name(tmp_path):
    for over in ("training: {ranks: 4}", "training: {num_processes: 4}"):
        for below in (OLD, NEW):
            assert plan(tmp_path, BASE, below, over).config["training"]["num_processes"] == 4


def test_an_assignment_may_use_the_old_name(tmp_path, capsys):
    (tmp_path / "new.yaml").write_text(BASE + "runs: {opd: {training: {teacher: base}}}")
    assert (
        Plan.of_files([tmp_path / "new.yaml"], ["training={ranks: 4, batch_size: 32}"]).config["training"][
            "num_processes"
        ]
        == 4
    )
    assert "--config training: `training.ranks` is called `num_processes` now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {ranks: 2, num_processes: 2}", "`training.ranks` is the old name of `num_processes`, and both are"),
        ("training: {ranks: 0}", "`training.num_processes` is 0; it must be at least 1."),
        ("extrapolation: {accept: '<'}", "`extrapolation.accept_ties` is '<'; it must be true or false."),
        ("training: {objective: {ranks: 2}}", "`training.objective.ranks` is not a key."),
    ],
)
def test_what_is_wrong_under_an_old_name_is_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match="line 1: ") as refused:
        plan(
            tmp_path, f"{text}\nmodels: {{base: {{kind: pretrain}}}}\nruns: {{opd: {{training: {{teacher: base}}}}}}\n"
        )
    assert message in str(refused.value)


def test_a_plugins_own_keys_and_what_has_no_old_name_stay():
    config = complete({"models": {"base": {"kind": "pretrain"}}, "runs": {"opd": {}}, "training": {"teacher": "base"}})
    before = copy.deepcopy(config)
    assert with_new_names(config) == (before, {})
