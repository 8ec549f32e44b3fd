"""Intents without an LLM: mean text vectors of a session's own items, the control `session_text`."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.data.features import Vectors
from recbole_llm4sbr.data.rows import SessionRows, ranges

RECENT = 3  # items of the view `short`
_ROWS = 10_000  # rows whose vectors are summed at once


def session_text(
    rows: SessionRows, tokens: Sequence[str], item_vectors: Vectors, views: Sequence[str]
) -> tuple[Vectors, dict[str, npt.NDArray[np.int32]]]:
    """Unit mean vector of all items of the prefix, for the view `short` of its last three.

    Args:
        rows: prepared sessions, S of them.
        tokens: item tokens, in the order of `item_vectors`.
        item_vectors: text vectors, zeros for an item without a text, [M, D].
        views: which.

    Returns:
        Vectors [S * views, D], and by view each session's row there, -1 where no item of it has a text, [S].
    """
    items = rows.clicks_in(tokens)
    vectors: list[Vectors] = []
    intents: dict[str, npt.NDArray[np.int32]] = {}
    ends, lengths = rows.starts[1:], np.diff(rows.starts)
    for view in views:
        size = np.minimum(lengths, RECENT) if view == "short" else lengths
        means = np.concatenate(
            [_sums(item_vectors, items, ends[a:b] - size[a:b], size[a:b]) for a, b in _blocks(len(size), _ROWS)]
        )
        norms = np.linalg.norm(means, axis=1)
        intents[view] = np.where(norms > 0, np.arange(len(means)) + sum(map(len, vectors)), -1).astype(np.int32)
        vectors.append((means / np.maximum(norms, 1e-12)[:, None]).astype(np.float32))
    return np.concatenate(vectors), intents


def _sums(item_vectors: Vectors, items: npt.NDArray[np.int64], starts: Any, sizes: Any) -> Vectors:
    """Sum of the vectors of `sizes` items from `starts` on, row by row."""
    sums: Vectors = np.add.reduceat(item_vectors[items[ranges(starts, sizes)]], np.cumsum(sizes) - sizes)
    return sums


def _blocks(length: int, size: int) -> Iterable[tuple[int, int]]:
    return ((start, min(start + size, length)) for start in range(0, length, size))
