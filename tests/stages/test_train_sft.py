"""Supervised fine-tuning: what is learned and what is not, and that neither ranks, kills nor batches change it."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from effopd.artifacts.manifests import read_manifest, write_manifest
from effopd.common.errors import ConfigError, UserError
from effopd.common.randomness import epoch_order
from effopd.data import batching
from effopd.data.responses import PARTS, SAMPLES, prompts_by_row
from effopd.data.rollouts import PaddedBatch, Rollouts
from effopd.engines.transformers_engine import TransformersEngine
from effopd.models.models import load_model, load_tokenizer
from effopd.stages import sample_responses as sampling_stage
from effopd.stages import train_sft as stage
from effopd.stages.train_sft import response_loss
from effopd.tasks.arithmetic import ArithmeticTask
from effopd.tasks.base import Problem
from effopd.training import model_folder
from effopd.training.trainer import Trainer
from preloaded import run_ranks
from sft_setup import CPU, PARTED, TUNED, Experiment, plan_of
from tiny_models import make_model

EOS = 1
HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return Experiment(tmp_path_factory.mktemp("sft")).make()


@pytest.fixture(scope="module")
def samples(experiment, tmp_path_factory):
    return experiment.sample(tmp_path_factory.mktemp("samples"), samples=3, batch_size=32)


def texts():
    """Prompts and responses of several lengths."""
    prompts = [[5, 6, 7], [8, 2], [3], [9, 9, 9, 9]]
    completions = [[4, 5, EOS], [6, EOS], [7, 8, 9, 10, EOS], [2, EOS]]
    logprobs = [np.zeros(len(tokens), np.float32) for tokens in completions]
    return Rollouts(prompts, completions, logprobs, [True] * len(prompts))


def test_the_loss_is_the_mean_over_response_tokens_alone():
    """Against a loop over the tokens of each sequence by itself, in any split into batches."""
    model, rollouts = make_model(3), texts()
    total = rollouts.completion_tokens
    by_hand = 0.0
    with torch.no_grad():
        for prompt, completion in zip(rollouts.prompts, rollouts.completions, strict=True):
            logprobs = torch.log_softmax(model(torch.tensor([prompt + completion])).logits[0], -1)
            for place, token in enumerate(completion, len(prompt)):
                by_hand -= logprobs[place - 1, token].item() / total
    for split in ([[0, 1, 2, 3]], [[0], [1, 2, 3]], [[3, 0], [2], [1]]):
        parts = [PaddedBatch.of(rollouts.select(rows), 0, CPU) for rows in split]
        loss = sum(response_loss(model, part, total)[0].item() for part in parts)
        assert loss == pytest.approx(by_hand, rel=1e-5), split


def test_what_a_step_learns_is_the_next_responses_of_the_shuffled_data(experiment, tmp_path):
    """The first loss, by hand from the data; each response is followed by the end of the sequence."""
    folder = experiment.train(tmp_path / "tuned", micro_batch=2)
    model, tokenizer = load_model(experiment.model.parent, CPU), load_tokenizer(experiment.model.parent)
    table = pd.read_parquet(experiment.data.parent / "train.parquet")
    prompts = prompts_by_row(read_manifest(experiment.prompts))
    losses, tokens = 0.0, 0
    for row in epoch_order(0, "fine-tuning order", len(table), 0, TUNED["batch_size"]):
        response = [*tokenizer(table["response"][row])["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([prompts[row] + response])).logits[0, len(prompts[row]) - 1 : -1]
        losses += torch.nn.functional.cross_entropy(logits, torch.tensor(response), reduction="sum").item()
        tokens += len(response)
    facts = pd.read_parquet(folder / "training.parquet")
    assert facts["loss"][0] == pytest.approx(losses / tokens, rel=1e-5)
    assert facts["tokens"][0] == tokens
    assert facts["step"].tolist() == [1, 2, 3, 4]
    result = read_manifest(folder / "manifest.json").result
    assert (result["examples"], result["problems"]) == (96, 96)
    assert set(result["left_out"].values()) == {0}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {f"step{n}.safetensors" for n in (1, 2, 4)}
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]


@pytest.mark.parametrize(("decay", "last"), [("cosine", 0.05), ("linear", 0.05), ("constant", 1.0)])
def test_the_rate_decays_to_a_twentieth(experiment, tmp_path, decay, last):
    rates = pd.read_parquet(experiment.train(tmp_path, decay=decay, lr=1e-3, warmup_steps=2) / "training.parquet")["lr"]
    middle = {"cosine": 0.525, "linear": 0.525, "constant": 1.0}[decay]
    assert rates[1] == pytest.approx(1e-3 * middle)
    assert rates[0] < 0.51e-3
    assert rates[3] == pytest.approx(1e-3 * last)


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def test_neither_passes_nor_padding_change_what_is_learnt(experiment, tmp_path, monkeypatch):
    whole = weights_of(experiment.train(tmp_path / "whole"))
    monkeypatch.setattr(batching, "FEWEST_POSITIONS", 1)
    for micro_batch in (1, 4):
        parted = weights_of(experiment.train(tmp_path / f"by{micro_batch}", micro_batch=micro_batch))
        for name, tensor in whole.items():
            torch.testing.assert_close(parted[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(experiment, tmp_path):
    """Under several ZeRO stages and with adapters, where one rank has more sequences and passes than the other."""
    shutil.copytree(experiment.data.parents[1], tmp_path, dirs_exist_ok=True)
    run_ranks(HELPERS / "sft_ranks.py", tmp_path)
    for name, tuned in PARTED.items():
        alone, two = experiment.train(tmp_path / f"one-{name}", **tuned), tmp_path / f"two-{name}"
        facts = [pd.read_parquet(folder / "training.parquet") for folder in (alone, two)]
        pd.testing.assert_frame_equal(*facts, rtol=1e-3, obj=name)
        for parameter, tensor in weights_of(alone).items():
            torch.testing.assert_close(
                weights_of(two)[parameter], tensor, rtol=1e-2, atol=1e-4, msg=f"{name}: {parameter}"
            )


@pytest.mark.parametrize("tuned", [{}, {"zero_stage": 3}, {"lora": {"rank": 2, "parameters": "all"}}], ids=str)
def test_a_killed_training_goes_on_to_the_same_bits(experiment, tmp_path, monkeypatch, tuned):
    through = experiment.train(tmp_path / "through", **tuned)
    monkeypatch.setattr(model_folder, "RESUME_EVERY_SECONDS", 0.0)
    step, calls = Trainer.step, []

    def killed(self, *arguments, **named):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            experiment.train(tmp_path / "killed", **tuned)
    resumed = experiment.train(tmp_path / "killed", **tuned)
    pd.testing.assert_frame_equal(*(pd.read_parquet(f / "training.parquet") for f in (through, resumed)))
    for name in ("model.safetensors", "checkpoints/step1.safetensors", "checkpoints/step4.safetensors"):
        one, other = load_file(through / name), load_file(resumed / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_adapters_move_their_layers_and_nothing_else(experiment, tmp_path):
    before = load_file(experiment.model.parent / "model.safetensors")
    after = weights_of(experiment.train(tmp_path, lora={"rank": 2, "parameters": "q_proj"}))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "q_proj" in name}


def test_the_model_learns_to_answer_and_to_stop(experiment, tmp_path):
    """Greedy answers to what it was trained on: right, and ended by the model itself."""
    folder = experiment.train(tmp_path, steps=150, batch_size=32, lr=1e-2, decay="linear")
    tokenizer, model = load_tokenizer(folder), load_model(folder, CPU)
    engine = TransformersEngine.of(model, tokenizer, batch_size=64, context=64, dtype="float32")
    prompts = list(prompts_by_row(read_manifest(experiment.prompts)).values())[:64]
    before = TransformersEngine.of(load_model(experiment.model.parent, CPU), tokenizer, batch_size=64, context=64, dtype="float32")  # fmt: skip
    scores = []
    for one in (before, engine):
        rollouts = one.generate(prompts, list(range(64)), stage_sampling())
        problems = [Problem(tokenizer.decode(prompt), "") for prompt in prompts]
        answers = tokenizer.batch_decode([c[:-1] for c in rollouts.completions])
        right = [ArithmeticTask({}).verify(p, a).reward for p, a in zip(problems, answers, strict=True)]
        scores.append((np.mean(rollouts.finished), np.mean(right)))
    assert scores[1][0] == 1.0, "it does not stop"
    assert scores[1][1] > scores[0][1] + 0.3, scores


def stage_sampling():
    return sampling_stage.Sampling(0.0, 24)


def test_a_sample_is_what_the_model_said_and_how_it_was_judged(experiment, samples):
    manifest = read_manifest(samples, "samples")
    table = pq.read_table(manifest.file(SAMPLES)).to_pandas()
    assert len(table) == 3 * 96
    assert table.groupby("row")["sample"].apply(list).map(tuple).unique().tolist() == [(0, 1, 2)]
    tokenizer, data = load_tokenizer(experiment.model.parent), pd.read_parquet(experiment.data.parent / "train.parquet")
    for _, found in table.iterrows():
        tokens = found["tokens"][:-1] if found["finished"] else found["tokens"]
        assert (found["tokens"][-1] == EOS) == found["finished"]
        assert tokenizer.decode(tokens) == found["completion"]
        assert found["problem"] == data["problem"][found["row"]] == tokenizer.decode(found["prompt"])
        assert found["reward"] == ArithmeticTask({}).verify(Problem(found["problem"], ""), found["completion"]).reward
    assert manifest.result["accepted"] == (table["reward"] == 1).sum()
    assert manifest.result["generated_tokens"] == table["tokens"].map(len).sum()
    assert 0 < manifest.result["solved_problems"] < 96, "all alike: the other tests prove nothing"
    assert not (samples.parent / PARTS).exists()


def test_killed_sampling_goes_on_and_neither_parts_nor_problems_change_a_sample(
    experiment, samples, tmp_path, monkeypatch
):
    """The same table to the bit; what was begun with other settings is cleared away."""
    monkeypatch.setattr(sampling_stage, "BATCHES_A_PART", 1)
    generate, calls = TransformersEngine.generate, []

    def killed(self, *arguments):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return generate(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TransformersEngine, "generate", killed)
        with pytest.raises(KeyboardInterrupt):
            experiment.sample(tmp_path, samples=3, batch_size=32)
    parts = sorted((tmp_path / PARTS).iterdir())
    assert len(parts) == 3
    parts[1].write_bytes(b"damaged")
    (tmp_path / PARTS / "of-other-settings.parquet").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(TransformersEngine, "generate", lambda *given: (calls.append(None), generate(*given))[1])
        again = experiment.sample(tmp_path, samples=3, batch_size=32)
    assert len(calls) == 4 + 7, "of nine parts two were done"
    assert pq.read_table(again.parent / SAMPLES).equals(pq.read_table(samples.parent / SAMPLES))
    assert read_manifest(again).files == read_manifest(samples).files
    few = pq.read_table(experiment.sample(tmp_path / "few", samples=3, problems=5, batch_size=32).parent / SAMPLES)
    rows = set(few["row"].to_pylist())
    assert len(rows) == 5
    whole = pq.read_table(samples.parent / SAMPLES).to_pandas()
    same = whole[whole["row"].isin(rows)].reset_index(drop=True)
    assert same["completion"].tolist() == few["completion"].to_pylist()
    with pytest.raises(ConfigError, match="is 97, and there are 96 training prompts"):
        sampling_stage._chosen(97, 96, 0)


class Seen:
    """Stands for the trainer's step, and keeps what it is given."""

    def __init__(self, patch):
        self.texts = []
        step = Trainer.step

        def seen(trainer, batches, *arguments, **named):
            for batch in batches:
                for tokens, mask in zip(batch.tokens, batch.mask, strict=True):
                    self.texts.append((tokens[: mask.nonzero()[0] + 1].tolist(), tokens[1:][mask].tolist()))
            return step(trainer, batches, *arguments, **named)

        patch.setattr(Trainer, "step", seen)


def test_no_rejected_sample_is_ever_trained_on(experiment, samples, tmp_path, monkeypatch):
    seen = Seen(monkeypatch)
    settings = {"from": "base", "samples": 3, "per_problem": 2}
    folder = experiment.train(tmp_path, samples, data="samples", sampling=settings, steps=40)
    table = pq.read_table(samples.parent / SAMPLES).to_pandas()
    good = table[(table["reward"] == 1) & table["finished"]]
    allowed = {(tuple(p), tuple(t)) for p, t in zip(good["prompt"], good["tokens"], strict=True)}
    trained = {(tuple(prompt), tuple(response)) for prompt, response in seen.texts}
    assert len(seen.texts) == 240
    assert trained <= allowed
    rejected = {(tuple(p), tuple(t)) for p, t in zip(table["prompt"], table["tokens"], strict=True)} - allowed
    assert rejected
    result = read_manifest(folder / "manifest.json").result
    assert result["problems"] == good["row"].nunique()
    assert result["left_out"]["without_accepted_sample"] == 96 - good["row"].nunique()
    expected = good.groupby("row")["completion"].apply(lambda found: min(2, found.nunique())).sum()
    assert result["examples"] == expected
    assert len(trained) > good["row"].nunique() / 2


def test_with_keep_all_rejected_samples_are_learnt_too_but_none_that_was_cut(experiment, samples, tmp_path):
    settings = {"from": "base", "samples": 3, "keep": "all"}
    result = read_manifest(
        experiment.train(tmp_path, samples, data="samples", sampling=settings) / "manifest.json"
    ).result
    table = pq.read_table(samples.parent / SAMPLES).to_pandas()
    assert result["examples"] == table[table["finished"]]["row"].nunique()
    assert result["left_out"]["rejected"] == 0


def test_other_choices_among_samples_are_other_models_of_the_same_samples():
    plans = [
        plan_of(data="samples", sampling={"from": "base", "per_problem": n}, lr=lr) for n, lr in ((1, 1e-3), (2, 1e-4))
    ]
    assert plans[0].samples == plans[1].samples
    (name,) = plans[0].samples
    assert plans[0].spec("sample_responses", sample=name) == plans[1].spec("sample_responses", sample=name)
    assert plans[0].spec("train_sft", model="student") != plans[1].spec("train_sft", model="student")
    hotter = plan_of(data="samples", sampling={"from": "base", "temperature": 0.5})
    assert hotter.samples != plans[0].samples


def altered(samples, folder, change):
    """The samples with another table, and a manifest of it."""
    manifest = read_manifest(samples)
    table = change(pq.read_table(samples.parent / SAMPLES).to_pandas())
    folder.mkdir()
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), folder / SAMPLES)
    write_manifest(folder / "manifest.json", kind="samples", spec=manifest.spec, parents=manifest.parents,
                   files={SAMPLES: folder / SAMPLES}, started=0.0)  # fmt: skip
    return folder / "manifest.json"


def test_samples_of_which_none_is_right_are_one_clear_error(experiment, samples, tmp_path):
    none = altered(samples, tmp_path / "none", lambda table: table.assign(reward=0.0, finished=True))
    with pytest.raises(
        UserError,
        match="none of the 288 samples of 96 problems can be learnt: 0 did not come to an end, 288 were rejected",
    ):
        experiment.train(tmp_path / "tuned", none, data="samples", sampling={"from": "base"})


def test_a_right_answer_that_the_limit_cut_is_not_learnt(experiment, samples, tmp_path):
    cut = altered(samples, tmp_path / "cut", lambda table: table.assign(reward=1.0, finished=table["row"] == 3))
    folder = experiment.train(tmp_path / "tuned", cut, data="samples", sampling={"from": "base", "per_problem": 3})
    result = read_manifest(folder / "manifest.json").result
    assert result["problems"] == 1
    assert result["left_out"]["unfinished"] == 95 * 3


def test_what_is_too_long_is_left_out_whole_and_counted(experiment, tmp_path, monkeypatch):
    seen = Seen(monkeypatch)
    data = pd.read_parquet(experiment.data.parent / "train.parquet")
    lengths = data["problem"].str.len() + data["response"].str.len() + 1
    limit = int(lengths.median())
    result = read_manifest(experiment.train(tmp_path, max_tokens=limit, steps=20) / "manifest.json").result
    assert result["left_out"]["too_long"] == (lengths > limit).sum() > 0
    assert result["examples"] == (lengths <= limit).sum() > 0
    assert all(response[-1] == EOS for _, response in seen.texts)
    with pytest.raises(UserError, match="no response is left to learn \\(96 too long\\)"):
        experiment.train(tmp_path / "none", max_tokens=2)


def test_more_tokens_than_the_model_sees_are_one_line(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(
        stage, "restricted", lambda model, tokenizer: setattr(model.config, "max_position_embeddings", 8) or model
    )
    with pytest.raises(ConfigError, match="do not fit the 8 that the model sees"):
        experiment.train(tmp_path)


def test_the_metrics_are_finite_and_the_manifest_says_what_it_was_made_from(experiment, samples, tmp_path):
    folder = experiment.train(tmp_path, samples, data="samples", sampling={"from": "base"})
    facts = pd.read_parquet(folder / "training.parquet")
    assert all(math.isfinite(value) for value in facts.to_numpy().flatten())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["parents"].keys() == {"prompts", "init", "samples"}
    assert manifest["spec"]["model"]["sampling"] == {"keep": "accepted", "per_problem": 1}
