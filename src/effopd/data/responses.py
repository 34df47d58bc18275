"""Responses to learn: worked ones of the data, or samples of a model, as text by problem and then as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from effopd.artifacts.manifests import Manifest
from effopd.common.errors import UserError
from effopd.data.rollouts import Rollouts
from effopd.tasks.splits import content_hash

PARTS = "parts"  # folder, beside that of samples, of what is done of them before all are
SAMPLES = "samples.parquet"  # a row a sample; its columns: effopd.stages.sample_responses

Texts = dict[int, list[str]]  # by row of the training split, the responses to its problem


@dataclass(frozen=True)
class Responses:
    """What a model is to say, and how many problems or samples were left out, by reason."""

    texts: Texts
    left_out: dict[str, int]


def worked_responses(data: Manifest) -> Responses:
    """The data's own responses to training problems. Raises UserError if there are none."""
    path = data.file("train.parquet")
    if "response" not in pq.read_schema(path).names:
        raise UserError(
            "the training data have no responses to learn. Name their column in `columns.response` of a source of "
            "`task.splits.train`, or write `data: samples` for the model."
        )
    responses = pq.read_table(path, columns=["response"])["response"].to_pylist()
    texts = {row: [text] for row, text in enumerate(responses) if text}
    return Responses(texts, {"without_response": len(responses) - len(texts)})


def chosen_samples(samples: Manifest, keep: str, per_problem: int) -> Responses:
    """Of each problem the first `per_problem` samples that differ, of those that came to an end.

    With `keep` "accepted" only those with the verifier's full reward. Raises UserError if no problem has one.
    """
    columns = ["row", "completion", "finished", "reward"]
    table = pq.read_table(samples.file(SAMPLES), columns=columns).to_pydict()
    texts: Texts = {}
    left_out = {"unfinished": 0, "rejected": 0}
    for row, text, finished, reward in zip(*(table[name] for name in columns), strict=True):
        found = texts.setdefault(row, [])
        if not finished:  # it would be learned to end where the limit cut it
            left_out["unfinished"] += 1
        elif keep == "accepted" and reward < 1:
            left_out["rejected"] += 1
        elif text not in found and len(found) < per_problem:
            found.append(text)
    kept = {row: found for row, found in texts.items() if found}
    if not kept:
        raise UserError(
            f"none of the {len(table['row'])} samples of {len(texts)} problems can be learnt: {left_out['unfinished']} "
            f"did not come to an end, {left_out['rejected']} were rejected by the verifier. Sample a better model "
            "(`sampling.from`), more often (`sampling.samples`), or longer (`sampling.max_new_tokens`)."
        )
    return Responses(kept, {"without_accepted_sample": len(texts) - len(kept), **left_out})


def examples_of(
    tokenizer: PreTrainedTokenizerFast,
    prompts: Mapping[int, Sequence[int]],
    responses: Responses,
    eos_id: int,
    max_tokens: int,
) -> tuple[Rollouts, dict[str, int]]:
    """Prompts with their responses, each of which ends with `eos_id`; and how much was left out, by reason.

    `prompts` are token ids by row of the training split. Left out are responses to problems that have no prompt (it is
    too long), responses that the tokenizer cannot write, and pairs of more than `max_tokens` tokens. Raises UserError
    if nothing is left.
    """
    asked = [(row, text) for row, texts in sorted(responses.texts.items()) for text in texts if row in prompts]
    left_out = dict(responses.left_out)
    left_out["without_prompt"] = sum(len(texts) for row, texts in responses.texts.items() if row not in prompts)
    left_out |= {"unwritable": 0, "too_long": 0}
    rows: list[int] = []
    completions: list[list[int]] = []
    for (row, _), tokens in zip(asked, encode_responses(tokenizer, [text for _, text in asked], eos_id), strict=True):
        if tokens is None:
            left_out["unwritable"] += 1
        elif len(prompts[row]) + len(tokens) > max_tokens:
            left_out["too_long"] += 1
        else:
            rows.append(row)
            completions.append(tokens)
    if not rows:
        counts = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in left_out.items() if count)
        raise UserError(
            f"no response is left to learn ({counts or 'the data have none'}). Raise `max_tokens` of the model or "
            "`task.prompt.max_tokens`, or give it other data."
        )
    examples = Rollouts(
        prompts=[list(prompts[row]) for row in rows],
        completions=completions,
        logprobs=[np.zeros(len(tokens), np.float32) for tokens in completions],
        finished=[True] * len(rows),
        indices=rows,
    )
    return examples, left_out


def encode_responses(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], eos_id: int) -> list[list[int] | None]:
    """Token ids of the texts, the end-of-sequence token behind each; None for what the tokenizer cannot write.

    That is a text whose ids are decoded to another one (of characters that the vocabulary lacks; case, white space and
    Unicode variants do not count), or that holds the end-of-sequence token itself.
    """
    if not texts:
        return []
    encoded: list[list[int]] = list(tokenizer(list(texts), add_special_tokens=False)["input_ids"])
    decoded = tokenizer.batch_decode(encoded)
    return [
        [*tokens, eos_id] if eos_id not in tokens and content_hash(again) == content_hash(text) else None
        for text, tokens, again in zip(texts, encoded, decoded, strict=True)
    ]


def prompt_rows(prompts: Manifest) -> list[int]:
    """The row in the training split of each of a model's prompts."""
    rows: list[int] = pq.read_table(prompts.file("train.parquet"), columns=["row"])["row"].to_pylist()
    return rows


def prompts_by_row(prompts: Manifest) -> dict[int, list[int]]:
    """The token ids of a model's training prompts, by row of the training split."""
    table = pq.read_table(prompts.file("train.parquet"), columns=["row", "tokens"])
    return dict(zip(table["row"].to_pylist(), table["tokens"].to_pylist(), strict=True))
