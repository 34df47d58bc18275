"""What a run does with a student, on a tiny random model of each family, and on files as they are published."""

import numpy as np
import pytest
import torch

from effopd.data.rollouts import PaddedBatch
from effopd.engines.base import Sampling
from effopd.engines.transformers_engine import TransformersEngine
from effopd.extrapolation.candidates import candidate, moving_parameters
from effopd.losses.divergences import negative_log_likelihood, token_logprobs
from effopd.models.models import load_model, model_with, save_model, weights_of
from effopd.models.weight_files import ATTENTION, MLP, parameter_place
from effopd.teachers.scoring import LocalTeacher, measure_reverse_kl
from effopd.training.trainer import Trainer
from tiny_models import FAMILIES, byte_tokenizer, make_family
from trainer_data import SETTINGS

CPU = torch.device("cpu")
PROMPTS = [[5, 8, 3], [9, 4, 7, 12, 6, 3, 11, 2, 20, 21], [2, 2], [13, 5, 8, 3, 9], [6], [7, 7, 7, 7]]
MOVING = ATTENTION | MLP | {"router", "norm"}


def rollouts_of(model, tokens=20):
    engine = TransformersEngine(model, eos_id=1, pad_id=0, batch_size=6)
    return engine.generate(PROMPTS, list(range(6)), Sampling(1.0, tokens))


def loss_of(model, batch):
    logits = model(input_ids=batch.tokens[:, :-1], use_cache=False).logits[batch.mask]
    return negative_log_likelihood(token_logprobs(logits, batch.targets[batch.mask]), int(batch.mask.sum())), {}


@pytest.fixture(params=FAMILIES)
def published(request, tmp_path):
    """A folder as models are published: bf16, in shards with an index."""
    model = make_family(request.param, 0).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "published", max_shard_size="20KB")
    byte_tokenizer().save_pretrained(tmp_path / "published")
    assert (tmp_path / "published/model.safetensors.index.json").is_file()
    return tmp_path / "published"


def test_a_published_model_generates_trains_extrapolates_and_comes_back_bitwise(published, tmp_path):
    model = load_model(published, CPU)
    start = weights_of(model)
    assert {tensor.dtype for tensor in start.values()} == {torch.float32}

    rollouts = rollouts_of(model)
    scores = LocalTeacher(model, pad_id=0, batch_size=4).score(rollouts)
    for mine, theirs in zip(rollouts.logprobs, scores.logprobs, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)

    trainer = Trainer(model, SETTINGS)
    trainer.step([PaddedBatch.of(rollouts, 0, CPU)], loss_of, 1e-3)
    trained = trainer.weights()
    assert trained.keys() == start.keys()
    assert all(not torch.equal(trained[name], start[name]) for name in start), "some parameter did not train"

    moving = moving_parameters(trained, "attention_mlp")
    matrices = {name for name in trained if parameter_place(name)[1] in ATTENTION | MLP | {"router"}}
    assert matrices <= set(moving), "a projection, an expert or a router stays behind"
    assert all(parameter_place(name)[1] in MOVING for name in moving if not name.endswith(".bias"))
    jumped = candidate(trained, start, 2.0, moving)
    still = [name for name in jumped if name not in moving]
    assert any("embed_tokens" in name for name in still)
    assert all(torch.equal(jumped[name], trained[name]) for name in still)

    save_model(model.config, jumped, byte_tokenizer(), tmp_path / "exported")
    back = weights_of(load_model(tmp_path / "exported", CPU))
    assert back.keys() == jumped.keys()
    assert all(torch.equal(back[name], jumped[name]) for name in jumped)
    own = model_with(published, jumped, CPU)
    assert rollouts_of(own).completions == rollouts_of(load_model(tmp_path / "exported", CPU)).completions

    save_model(model.config, jumped, byte_tokenizer(), tmp_path / "rounded", torch.bfloat16)
    rounded = weights_of(load_model(tmp_path / "rounded", CPU))
    assert all(torch.equal(rounded[name], jumped[name].bfloat16().float()) for name in jumped)


def test_tied_embeddings_are_one_parameter_and_stay_tied(tmp_path):
    model = make_family("qwen2", 0)
    weights = weights_of(model)
    assert "lm_head.weight" not in weights
    weights["model.embed_tokens.weight"] += 1
    save_model(model.config, weights, byte_tokenizer(), tmp_path)
    for loaded in (load_model(tmp_path, CPU), model_with(tmp_path, weights, CPU)):
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
        assert torch.equal(loaded.lm_head.weight, weights["model.embed_tokens.weight"])


def test_a_teacher_may_have_more_rows_than_the_student():
    """Padded vocabularies: same tokenizer, an embedding rounded up. Its rows beyond the student's are no tokens."""
    student, teacher = make_family("qwen3", 0, vocabulary=24), make_family("qwen3", 0, vocabulary=32)
    with torch.no_grad():
        for own, other in zip(student.parameters(), teacher.parameters(), strict=True):
            other[: len(own)] = own
        teacher.lm_head.weight[24:] = 0  # logit 0: a little of the teacher's probability
    rollouts = rollouts_of(student)
    scores = LocalTeacher(teacher, pad_id=0, batch_size=6).score(rollouts)
    for mine, theirs in zip(rollouts.logprobs, scores.logprobs, strict=True):
        assert (theirs < mine + 2e-5).all()
    per_token = measure_reverse_kl(student, teacher, rollouts, pad_id=0, batch_size=6)
    assert all((row >= 0).all() and (row < 1).all() for row in per_token)
