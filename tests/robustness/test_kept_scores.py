"""Scores that are kept: nothing is written that cannot be trained on, and what is damaged is scored again."""

from __future__ import annotations

import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from effopd.artifacts.manifests import write_manifest
from effopd.common.errors import ArtifactError, UserError
from effopd.data.checked_numbers import NumberError
from effopd.distillation.step_artifacts import ROLLOUTS as ROLLOUTS_KIND
from effopd.distillation.step_artifacts import SCORES, StepArtifact
from effopd.distillation.step_sharing import make_or_reuse, put_together
from effopd.teachers.scoring import Scores
from effopd.training.trainer import Trainer, TrainerSettings
from raw_server import http, saying
from served_teacher import ROLLOUTS, assert_right, at, changed, put, teacher_at
from tiny_models import make_model

SPEC, PARENTS = {"step": 1}, {"rollouts": "a"}


def scores():
    """The columns of valid scores of rollouts with 2 and 3 tokens."""
    return {
        "lengths": np.array([2, 3]),
        "logprobs": np.full(5, -1.5, np.float32),
        "top_ids": np.tile(np.array([3, 2], np.int32), (5, 1)),
        "top_logprobs": np.tile(np.array([-0.5, -1.5], np.float32), (5, 1)),
        "hidden_states": np.ones((5, 3), np.float32),
        "reference_logprobs": np.full(5, -2.0, np.float32),
    }


def setting(name, position, value):
    def damage(columns):
        columns[name].flat[position] = value

    return damage


def replacing(name, make):
    def damage(columns):
        columns[name] = make(columns[name])

    return damage


DAMAGES = {
    **{
        f"{value} in {name}": setting(name, position, value)
        for name, position in (("logprobs", 0), ("logprobs", 4), ("top_logprobs", 3), ("reference_logprobs", 2))
        for value in (np.nan, np.inf, -np.inf, 0.5)
    },
    "nan in hidden_states": setting("hidden_states", 7, np.nan),
    "an id below 0": setting("top_ids", 9, -1),
    "another order": setting("top_logprobs", 3, -0.1),
    "more than certain": setting("top_logprobs", 3, -0.5),
    "lengths of too many": setting("lengths", 1, 4),
    "lengths of too few": setting("lengths", 1, 2),
    "a length of 0": lambda columns: columns.update(lengths=np.array([0, 5])),
    "a length below 0": lambda columns: columns.update(lengths=np.array([-1, 6])),
    "lengths in float": replacing("lengths", lambda column: column.astype(np.float32)),
    "lengths as a table": replacing("lengths", lambda column: column[None]),
    "no lengths": lambda columns: columns.pop("lengths"),
    "no rollouts": lambda columns: columns.update(lengths=np.zeros(0, np.int64)),
    "no logprobs": lambda columns: columns.pop("logprobs"),
    "no top_ids": lambda columns: columns.pop("top_ids"),
    "no top_logprobs": lambda columns: columns.pop("top_logprobs"),
    "fewer ids": replacing("top_ids", lambda column: column[:, :1].copy()),
    "fewer tokens": replacing("logprobs", lambda column: column[:4].copy()),
    "logprobs in float64": replacing("logprobs", lambda column: column.astype(np.float64)),
    "ids in int64": replacing("top_ids", lambda column: column.astype(np.int64)),
    "logprobs as a table": replacing("logprobs", lambda column: column[:, None].copy()),
    "ids in a row": replacing("top_ids", lambda column: column.ravel()),
}


def keep(folder, columns, content=None):
    """Kept scores as they are found: a file and the manifest that was written for it."""
    file = folder / "step1.safetensors"
    save_file(columns, file)
    if content is not None:
        file.write_bytes(content)
    manifest = folder / "step1.json"
    write_manifest(manifest, kind="scores", spec=SPEC, parents=PARENTS, files={file.name: file}, started=time.time())
    return manifest


@pytest.fixture(scope="module")
def trainer():
    return Trainer(make_model(0), TrainerSettings(1e-3, (0.9, 0.999), 0.0, 1.0))


def made_again(trainer, path, teacher):
    return make_or_reuse(StepArtifact(SCORES, path, SPEC, PARENTS), trainer, lambda: teacher.score(ROLLOUTS))[0]


def test_valid_scores_are_kept_and_read_as_they_are(tmp_path, trainer):
    path = keep(tmp_path, scores())
    found = made_again(trainer, path, None)  # who asks nobody
    for name, column in scores().items():
        if name != "lengths":
            np.testing.assert_array_equal(np.concatenate(getattr(found, name)), column)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_scores_are_scored_again(tmp_path, trainer, server, damage):
    columns = scores()
    DAMAGES[damage](columns)
    path = keep(tmp_path, columns)
    assert_right(made_again(trainer, path, teacher_at(server)), 2)
    assert_right(made_again(trainer, path, None), 2)


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 100, (8).to_bytes(8, "little") + b"{}      "])
def test_files_that_are_no_scores_are_made_again(tmp_path, trainer, server, content):
    path = keep(tmp_path, scores(), content)
    assert_right(made_again(trainer, path, teacher_at(server)), 2)


def test_a_server_that_answers_badly_keeps_nothing_and_heals(tmp_path, trainer, server):
    path = tmp_path / "step1.json"

    def spoil(answer):
        if "9" in answer["choices"][0]["prompt_logprobs"][4]:
            put("choices", 0, "prompt_logprobs", 4, "9", "logprob")(answer)

    server.answer = at("/completions", changed(spoil, "null"))
    for _ in range(2):
        with pytest.raises(UserError, match=r'prompt_logprobs\[4\]\["9"\].logprob is null'):
            made_again(trainer, path, teacher_at(server, concurrency=1))
        assert list(tmp_path.iterdir()) == []
    server.answer = at("/completions", saying(http(503)), times=1)
    assert_right(made_again(trainer, path, teacher_at(server)), 2)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_and_made_again_by_the_next_run(tmp_path, trainer, damage):
    paths = []
    for number in range(2):
        columns, file = scores(), tmp_path / f"step1.shard{number}.safetensors"
        if number == 1:
            DAMAGES[damage](columns)
        save_file(columns, file)
        paths.append(file.with_suffix(".json"))
        spec = {**SPEC, "shard": [number, 2]}
        write_manifest(
            paths[-1], kind="scores", spec=spec, parents=PARENTS, files={file.name: file}, started=time.time()
        )
    with pytest.raises(ArtifactError, match=r"step1.shard1.safetensors cannot be used .*Run the workflow again"):
        put_together(StepArtifact(SCORES, tmp_path / "step1.json", SPEC, PARENTS), trainer, paths)
    assert [path.exists() for path in paths] == [True, False]
    assert not (tmp_path / "step1.json").exists()


@pytest.mark.parametrize(
    "damage",
    [
        name
        for name in DAMAGES
        if " in " in name
        and "lengths" not in name
        and "float64" not in name
        and "int64" not in name
        and "a row" not in name
    ],
)
def test_what_cannot_be_trained_on_is_never_written(tmp_path, damage):
    columns = scores()
    DAMAGES[damage](columns)
    made = Scores(*(np.split(columns[name], [2]) for name in columns if name != "lengths"))
    with pytest.raises(NumberError, match=r"token \d of rollout [01] is"):
        made.write(tmp_path / "step1.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_scores_of_rollouts_that_are_generated_again_are_not_used(tmp_path, trainer):
    path = keep(tmp_path, scores())
    rollouts = tmp_path / "rollouts.json"
    artifact = StepArtifact(ROLLOUTS_KIND, rollouts, SPEC, {})
    for _ in range(2):
        make_or_reuse(artifact, trainer, lambda: ROLLOUTS, made_from_it=path)
        assert not path.exists()
        keep(tmp_path, scores())
        make_or_reuse(artifact, trainer, lambda: None, made_from_it=path)
        assert path.exists(), "the rollouts were those that had been scored"
        rollouts.unlink()
