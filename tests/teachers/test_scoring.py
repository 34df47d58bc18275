"""What teachers say: the columns of the scores, and the head that turns hidden states into the teacher's logits."""

import numpy as np
import pytest
import torch

from effopd.common.errors import ArtifactError, ConfigError
from effopd.data.rollouts import PaddedBatch, Rollouts
from effopd.engines.base import Sampling
from effopd.models import lm_head as logits_module
from effopd.models.lm_head import Head, KnownTokens, completion_states
from effopd.teachers.scoring import (
    LocalTeacher,
    ReverseKL,
    Scores,
    WithReference,
    measure_logprobs,
    measure_reverse_kl,
)  # fmt: skip
from small_engine import PROMPTS, SEEDS, engine_of
from tiny_models import FAMILIES, make_family, make_model


@pytest.fixture(scope="module")
def rollouts() -> Rollouts:
    return engine_of(make_model(0)).generate(PROMPTS[:10], SEEDS[:10], Sampling(1.0, 12))


def logprobs_by_hand(model, rollouts) -> list[torch.Tensor]:
    """Of every completion token's position, over the vocabulary: one rollout at a time, nothing padded."""
    rows = []
    for prompt, completion in zip(rollouts.prompts, rollouts.completions, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        rows.append(logits.log_softmax(-1))
    return rows


def test_top_tokens_are_the_teachers_likeliest_in_order(rollouts, other_model):
    scores = LocalTeacher(other_model, pad_id=0, batch_size=4, top_k=5).score(rollouts)
    for row, logprobs in enumerate(logprobs_by_hand(other_model, rollouts)):
        top = logprobs.topk(5, -1)
        assert scores.top_ids[row].tolist() == top.indices.tolist()
        np.testing.assert_allclose(scores.top_logprobs[row], top.values.numpy(), atol=2e-5)
        sampled = logprobs[range(len(logprobs)), rollouts.completions[row]]
        np.testing.assert_allclose(scores.logprobs[row], sampled.numpy(), atol=2e-5)


def test_hidden_states_and_the_head_give_the_teachers_logits(rollouts, other_model):
    scores = LocalTeacher(other_model, pad_id=0, batch_size=4, hidden_states=True).score(rollouts)
    head = Head.of(other_model)
    for states, logprobs in zip(scores.hidden_states, logprobs_by_hand(other_model, rollouts), strict=True):
        with torch.no_grad():
            found = head(torch.from_numpy(states)).log_softmax(-1)
        torch.testing.assert_close(found, logprobs, atol=2e-5, rtol=0)


def test_scores_with_all_columns_survive_files_shards_and_selection(rollouts, other_model, tmp_path):
    teacher = WithReference(
        LocalTeacher(other_model, pad_id=0, batch_size=4, top_k=3, hidden_states=True),
        LocalTeacher(make_model(0), pad_id=0, batch_size=4),
    )
    whole = teacher.score(rollouts)
    parts = [teacher.score(rollouts.select(range(0, 8))), teacher.score(rollouts.select(range(8, 10)))]
    whole.write(tmp_path / "s.safetensors")
    for other in (Scores.concatenate(parts), Scores.read(tmp_path / "s.safetensors"), whole.select(range(10))):
        for name in ("logprobs", "top_ids", "top_logprobs", "hidden_states", "reference_logprobs"):
            for mine, theirs in zip(getattr(other, name), getattr(whole, name), strict=True):
                np.testing.assert_array_equal(mine, theirs)
                assert mine.dtype == theirs.dtype
    assert [len(row) for row in whole.top_ids] == [len(c) for c in rollouts.completions]
    assert whole.scored_tokens == 2 * whole.tokens == 2 * rollouts.completion_tokens
    for mine, theirs in zip(whole.reference_logprobs, rollouts.logprobs, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "granite"])
@pytest.mark.parametrize("fits", [True, False])
def test_a_teacher_is_asked_once_however_large_its_logits_are(rollouts, family, fits, model, monkeypatch):
    """Where they do not fit it is remembered by its hidden states; what was asked is what is counted."""
    teacher = make_family("qwen3" if family == "granite" else family, 1, 16)
    if family == "granite":  # whose head alone does not make its logits
        teacher.config.logits_scaling = 2.0
    forgets = family == "granite" and not fits
    calls = []
    teacher.model.register_forward_hook(lambda *_: calls.append(1))
    judge = ReverseKL(teacher, rollouts, pad_id=0, batch_size=4, remembered_bytes=2**30 if fits else 0)
    first = judge.of(model)
    asked = len(calls)
    assert judge.scored_tokens == rollouts.completion_tokens
    again, other = judge.of(model), judge.of(make_model(3))
    assert len(calls) == (3 if forgets else 1) * asked > 0
    assert judge.scored_tokens == (3 if forgets else 1) * rollouts.completion_tokens
    for student, rows in ((model, first), (model, again), (make_model(3), other)):
        wanted = measure_reverse_kl(student, teacher, rollouts, pad_id=0, batch_size=4)
        np.testing.assert_allclose(np.concatenate(rows), np.concatenate(wanted), atol=1e-5)
    assert np.array_equal(np.concatenate(first), np.concatenate(again)), "one student, one value"


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-1, False)])
def test_logits_are_remembered_only_where_they_fit(rollouts, other_model, model, spare, fits):
    """To the byte: float32, of the vocabulary or a hidden state, whichever is wider."""
    needed = 4 * max(16, 32) * rollouts.completion_tokens
    judge = ReverseKL(other_model, rollouts, pad_id=0, batch_size=10, remembered_bytes=needed + spare)
    assert (judge.head is None) == fits
    for student in (model, make_model(3)):
        pairs = zip(logprobs_by_hand(student, rollouts), logprobs_by_hand(other_model, rollouts), strict=True)
        for row, (mine, theirs) in zip(judge.of(student), pairs, strict=True):
            np.testing.assert_allclose(row, (mine.exp() * (mine - theirs)).sum(-1).numpy(), atol=2e-5)


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (1, False)])
def test_a_gibibyte_of_logits_is_remembered_unless_told_otherwise(rollouts, other_model, spare, fits):
    tokens = 2**30 // (4 * max(16, 32)) + spare
    judge = ReverseKL(other_model, rollouts, pad_id=0, batch_size=10, shared_tokens=tokens)
    assert (judge.head is None) == fits


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_divergence_is_from_the_policy_at_its_temperature_to_the_teacher_as_it_is(
    rollouts, other_model, model, temperature
):
    found = measure_reverse_kl(model, other_model, rollouts, pad_id=0, batch_size=4, temperature=temperature)
    pairs = zip(logprobs_by_hand(model, rollouts), logprobs_by_hand(other_model, rollouts), strict=True)
    for row, (student, teacher) in zip(found, pairs, strict=True):
        policy = (student / temperature).log_softmax(-1)
        np.testing.assert_allclose(row, (policy.exp() * (policy - teacher)).sum(-1).numpy(), atol=2e-5)


def test_one_measurement_remembers_nothing(rollouts, other_model, model, monkeypatch):
    made = []
    create = ReverseKL.__init__
    monkeypatch.setattr(ReverseKL, "__init__", lambda self, *a, **k: (made.append(self), create(self, *a, **k))[1])
    measure_reverse_kl(model, other_model, rollouts, pad_id=0, batch_size=4)
    assert [judge.remembered for judge in made] == [[]]


def test_scores_in_chunks_are_those_in_one_go(rollouts, other_model, model, monkeypatch):
    def everything():
        teacher = LocalTeacher(other_model, pad_id=0, batch_size=4, top_k=3)
        scores = teacher.score(rollouts)
        kl = measure_reverse_kl(model, other_model, rollouts, pad_id=0, batch_size=4)
        return np.concatenate(scores.logprobs), np.concatenate(scores.top_ids), np.concatenate(kl)

    at_once = everything()
    monkeypatch.setattr(logits_module, "LOGITS_AT_ONCE", 7 * 16)
    for mine, theirs in zip(everything(), at_once, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_ids_of_rows_that_pad_the_vocabulary_are_never_among_the_top(rollouts, other_model):
    teacher = LocalTeacher(other_model, pad_id=0, batch_size=4, top_k=6, tokens=KnownTokens(9, holes=(2, 5)))
    found = np.concatenate(teacher.score(rollouts).top_ids)
    assert set(found.flatten()) <= {0, 1, 3, 4, 6, 7, 8}
    assert found.max() == 8


@pytest.mark.parametrize(("tokens", "known"), [(None, 16), (KnownTokens(9, holes=(2, 5)), 7)])
def test_more_top_tokens_than_there_are_is_refused(other_model, tokens, known):
    with pytest.raises(ConfigError, match=rf"top_k` is {known}, and the teacher's vocabulary has {known} tokens"):
        LocalTeacher(other_model, pad_id=0, batch_size=4, top_k=known, tokens=tokens)
    LocalTeacher(other_model, pad_id=0, batch_size=4, top_k=known - 1, tokens=tokens)


def test_a_teacher_that_is_asked_for_nothing_more_gives_log_probabilities_alone(rollouts, other_model, tmp_path):
    scores = LocalTeacher(other_model, pad_id=0, batch_size=4).score(rollouts)
    scores.write(tmp_path / "s.safetensors")
    for given in (scores, Scores.read(tmp_path / "s.safetensors")):
        assert len(given.logprobs) == len(rollouts)
        assert not any([given.top_ids, given.top_logprobs, given.hidden_states, given.reference_logprobs])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_on_disk_is_the_models_own(family, rollouts, tmp_path):
    """Tied embeddings, soft caps and sharded folders included."""
    model = make_family(family, 3)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    head = Head.of_folder(tmp_path, KnownTokens(10**6), torch.device("cpu"))
    batch = PaddedBatch.of(rollouts, 0, torch.device("cpu"))
    with torch.no_grad():
        wanted = model(input_ids=batch.tokens[:, :-1], use_cache=False).logits[batch.mask]
        found = head(completion_states(model, batch))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(head(completion_states(model, batch)), Head.of(model)(completion_states(model, batch)))


def test_a_model_whose_logits_are_not_its_heads_is_refused(model):
    model.config.logits_scaling = 8.0
    with pytest.raises(ArtifactError, match=r"Qwen3ForCausalLM scales its logits \(`logits_scaling`\)"):
        Head.of(model)


def test_a_teacher_in_bfloat16_scores_in_float32(rollouts, other_model):
    teacher = other_model.to(torch.bfloat16)
    scores = LocalTeacher(teacher, pad_id=0, batch_size=len(rollouts)).score(rollouts)
    for prompt, completion, found in zip(rollouts.prompts, rollouts.completions, scores.logprobs, strict=True):
        with torch.no_grad():
            logits = teacher(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        wanted = torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(completion)[:, None]).squeeze(1)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted.numpy(), atol=0.1)  # padding moves bfloat16's last bits
        assert (found != torch.from_numpy(found).bfloat16().float().numpy()).any(), "rounded to bfloat16"


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("batch_size", [3, 64])
def test_log_probabilities_are_those_of_the_policy_at_a_temperature(rollouts, model, temperature, batch_size):
    found = measure_logprobs(model, rollouts, pad_id=0, batch_size=batch_size, temperature=temperature)
    for row, logprobs in enumerate(logprobs_by_hand(model, rollouts)):
        wanted = (logprobs / temperature).log_softmax(-1)[range(len(logprobs)), rollouts.completions[row]]
        assert found[row].dtype == np.float32
        np.testing.assert_allclose(found[row], wanted.numpy(), atol=2e-5)
