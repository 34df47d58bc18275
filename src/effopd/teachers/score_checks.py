"""What a teacher's scores must be to be kept and trained on, however they came: from a model, a server or a file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from effopd.data.checked_numbers import NumberError, likeliest, logprobs

# The dimensions and the type of each column; the first dimension counts tokens.
COLUMNS = {
    "logprobs": (1, np.float32),
    "top_ids": (2, np.int32),
    "top_logprobs": (2, np.float32),
    "hidden_states": (2, np.float32),
    "reference_logprobs": (1, np.float32),
}


def check_scores(lengths: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
    """Raise NumberError if these are not the scores of rollouts of these lengths (int64 [N], in tokens).

    `columns` are those of `effopd.teachers.scoring.Scores`, [tokens, ...].
    """
    if lengths.dtype != np.int64 or lengths.ndim != 1 or not lengths.size or lengths.min() < 1:
        raise NumberError("`lengths` of the scores does not hold the numbers of tokens of rollouts")
    if "logprobs" not in columns or ("top_ids" in columns) != ("top_logprobs" in columns):
        raise NumberError(f"the scores have only {', '.join(columns) or 'no column'}")
    ends = np.cumsum(lengths)
    for name, column in columns.items():
        dimensions, kind = COLUMNS[name]
        if column.dtype != kind or column.ndim != dimensions or len(column) != ends[-1]:
            raise NumberError(f"`{name}` of the scores of {ends[-1]} tokens is {column.dtype} {list(column.shape)}")

        def place(flat: int, name: str = name, width: int = column[0].size) -> str:
            token = flat // width
            rollout = int(np.searchsorted(ends, token, side="right"))
            return (
                f"the teacher's `{name}` of token {token - int(ends[rollout] - lengths[rollout])} of rollout {rollout}"
            )

        if name.endswith("logprobs"):
            logprobs(column, place)
        elif not (usable := np.isfinite(column) & ((column >= 0) | (name != "top_ids"))).all():
            flat = int(np.flatnonzero(~usable)[0])
            raise NumberError(f"{place(flat)} is {column.flat[flat]}")
    if "top_ids" in columns:
        if columns["top_ids"].shape != columns["top_logprobs"].shape:
            raise NumberError("`top_ids` and `top_logprobs` of the scores differ in shape")
        likeliest(columns["top_logprobs"], lambda token: f"the teacher's `top_logprobs` of token {token} of the batch")
