"""Intent localization: the items nearest to an answer, by cosine similarity (paper eq. 4-5, where k is `intent_k`).

Under `repeatable: false` they are the nearest items *outside* the session: an item of the session cannot be what comes next.

Where an LLM gives several titles for an intent (`intent_answers`), we depart from eq. 4-5, which know one: of the k items nearest to each
title, an item keeps its largest similarity, and the k most similar of all of them are the intent's.

Equally similar items stand in the order of the catalogue, the `.item` file. Items with one and the same vector, as items of the same text
have, are one vector in the index, so that rounding cannot part them; others are equally similar when six decimals say so.
"""

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.data.features import Vectors
from recbole_llm4sbr.data.rows import ranges

Rows = npt.NDArray[np.int64]
Places = npt.NDArray[np.int32]

_SAME = 1 - 1e-5  # similarity from which on an answer names an item exactly, however batches round
_TIES = 32  # neighbours fetched beyond k, so that equal similarities of different vectors at the edge can be put into catalogue order
_CELLS = 40_000_000  # of the table of sessions and items, true where an item is in a session
_SESSIONS = 4096  # at once


class ItemIndex:
    """The catalogue's text vectors, searched by inner product.

    Args:
        items: unit vectors in catalogue order, [M, D]; an all-zero row is an item without a text and is never found.
        factory: faiss index factory string; `Flat` is exact.

    Raises:
        UserError: faiss does not know the index, or cannot build it over these items.
    """

    def __init__(self, items: Vectors, factory: str = "Flat") -> None:
        import faiss

        known = np.flatnonzero(np.abs(items).sum(1) > 0)
        self._factory = factory
        self.catalogue = len(items)
        vectors = np.ascontiguousarray(items[known])
        first, which = _distinct_rows(vectors)
        self._sizes = np.bincount(which, minlength=len(first))
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._items = known[np.argsort(which, kind="stable")]  # of one distinct vector after the other, each in catalogue order
        vectors = vectors[first]
        try:
            self._index = faiss.index_factory(items.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            if not self._index.is_trained:
                self._index.train(vectors)
            self._index.add(vectors)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1][:200]
            raise UserError(
                f"faiss_index={factory!r} cannot be built over {len(vectors)} vectors of items ({reason}); Flat always can"
            ) from None

    def nearest(self, answers: Vectors, k: int) -> tuple[Rows, Vectors]:
        """The `k` nearest items of every answer; at most as many as there are items with a text.

        Args:
            answers: unit vectors, [N, D].
            k: neighbours per answer.

        Returns:
            Item rows and similarities, both [N, k], in falling order of similarity; equal similarities in catalogue order.

        Raises:
            UserError: the index found too few items.
        """
        k = min(k, len(self._items))
        width = min(k + _TIES, len(self._items))
        sims, found = self._index.search(np.ascontiguousarray(answers), min(width, len(self._sizes)))
        sizes = np.where(found >= 0, self._sizes[found], width)
        # of each vector the items that have room in the row, [N, vectors]; those of a row are `width` in all
        taken = np.clip(width - (np.cumsum(sizes, 1) - sizes), 0, sizes)
        places = ranges(self._starts[found].ravel(), taken.ravel()).reshape(len(answers), width)
        there = np.repeat(found.ravel() >= 0, taken.ravel()).reshape(places.shape)
        if not there[:, :k].all():
            raise UserError(f"faiss_index={self._factory!r} found fewer than {k} items for some answers; Flat never does")
        rows = np.where(there, self._items[np.where(there, places, 0)], np.iinfo(np.int64).max)
        sims = np.repeat(sims.ravel(), taken.ravel()).reshape(places.shape)
        # faiss rounds differently from row to row of a block
        order = np.lexsort((rows, -np.round(sims, 6)), axis=1)[:, :k]
        return np.take_along_axis(rows, order, 1), np.take_along_axis(sims, order, 1)

    def nearest_to_sets(self, answers: Vectors, sets: Places, k: int) -> tuple[Places, Vectors]:
        """The `k` items nearest to any answer of each set: the union of the answers' nearest, an item with its largest similarity.

        Args:
            answers: unit vectors, [N, D].
            sets: rows of `answers` in the LLM's order, at least one per set, -1 behind the last, [C, n].
            k: neighbours per set.

        Returns:
            Item rows and similarities, both [C, k], in falling order of similarity; of equal ones those of an earlier answer first, as all
            titles of the catalogue are that an LLM names exactly; those of one answer in catalogue order.
        """
        k = min(k, len(self._items))
        used, which = np.unique(sets, return_inverse=True)
        absent = int(len(used) > 0 and used[0] < 0)
        near, near_sims = self.nearest(answers[used[absent:]], k)
        near_sims = np.where(near_sims > _SAME, np.float32(1), near_sims)
        which = which.reshape(sets.shape) - absent
        found, sims = np.empty((len(sets), k), np.int32), np.empty((len(sets), k), np.float32)
        place = np.repeat(np.arange(sets.shape[1]), k)  # of the answer, [n * k]
        for first in range(0, len(sets), _SESSIONS):
            piece = slice(first, first + _SESSIONS)
            lacking = np.repeat(which[piece] < 0, k, axis=1)  # [B, n * k]
            items, similar = near[which[piece]].reshape(lacking.shape), near_sims[which[piece]].reshape(lacking.shape)
            found[piece], sims[piece] = _best_distinct(items, similar, place, lacking, k)
        return found, sims

    def nearest_outside(
        self, answers: Vectors, answer: Rows, clicks: Rows, starts: Rows, k: int, sets: Places | None = None
    ) -> tuple[Places, Vectors]:
        """The `k` nearest items outside each session.

        An item of the session takes at most one place among the nearest, so the `k + n` nearest of an answer hold the `k` nearest
        outside a session of n clicks. Sessions of like length are looked at together.

        Args:
            answers: unit vectors of distinct answers, [N, D].
            answer: row of `sets`, without them of `answers`, of each session, [S].
            clicks: catalogue rows of the sessions' clicks, one session's after the other's, [C].
            starts: where each session begins in `clicks`, and the end of the last, [S + 1].
            k: neighbours per session.
            sets: as in `nearest_to_sets`.

        Returns:
            Item rows and similarities, both [S, k], ordered as in `nearest` or `nearest_to_sets`. Where fewer than `k` items lie outside a
            session, the last of them is repeated with similarity 0, which adds nothing to eq. 5; where none does, the row is -1.
        """
        k = min(k, len(self._items))
        lengths = np.diff(starts)
        found, sims = np.full((len(answer), k), -1, np.int32), np.zeros((len(answer), k), np.float32)
        size = int(np.clip(_CELLS // max(self.catalogue, 1), 64, _SESSIONS))
        by_length = np.argsort(lengths, kind="stable")
        pieces = [
            group[first : first + size]
            for group in np.split(by_length, np.searchsorted(lengths[by_length], 2 ** np.arange(1, 32)))
            for first in range(0, len(group), size)
        ]
        for sessions in tqdm(pieces, desc="localizing", unit=f" x {size} sessions", leave=False, delay=3):
            distinct, which = np.unique(answer[sessions], return_inverse=True)
            wanted = k + int(lengths[sessions].max())
            near: Rows | Places
            if sets is None:
                near, near_sims = self.nearest(answers[distinct], wanted)
            else:
                near, near_sims = self.nearest_to_sets(answers, sets[distinct], wanted)
            near, near_sims = near[which], near_sims[which]  # [B, k + n]
            clicked = np.zeros((len(sessions), self.catalogue), bool)
            clicked[
                np.repeat(np.arange(len(sessions)), lengths[sessions]), clicks[ranges(starts[sessions], lengths[sessions])]
            ] = True
            inside = np.take_along_axis(clicked, near, 1)
            order = np.argsort(inside, axis=1, kind="stable")[:, :k]  # those outside first, each group as it was
            outside = (~inside).sum(1, keepdims=True)
            lacking = np.arange(order.shape[1]) >= outside  # [B, k]
            order = np.where(lacking, np.take_along_axis(order, np.clip(outside - 1, 0, k - 1), 1), order)
            found[sessions] = np.where(outside > 0, np.take_along_axis(near, order, 1), -1)
            sims[sessions] = np.where(lacking, 0, np.take_along_axis(near_sims, order, 1))
        return found, sims


def _best_distinct(items: Rows, sims: Vectors, place: Rows, lacking: npt.NDArray[np.bool_], k: int) -> tuple[Rows, Vectors]:
    """The `k` most similar distinct items of each row, an item with its largest similarity; ordered as in `ItemIndex.nearest_to_sets`.

    Item, similarity and place are sorted as one number, which is ten times as quick as sorting by several keys: 31 bits of the item, 22 of
    the similarity, 10 of the place.

    Args:
        items: at least `k` distinct ones in a row, [B, w].
        sims: their similarities, [B, w]; six decimals of them come back.
        place: of the answer to which each column belongs, below 1,024, [w].
        lacking: where nothing stands, [B, w].
        k: items per row.

    >>> items, sims = np.array([[4, 2, 4, 3]]), np.array([[0.25, 0.75, 0.5, 0.75]], np.float32)
    >>> [each.tolist() for each in _best_distinct(items, sims, np.array([0, 1, 1, 0]), items < 0, 3)]
    [[[3, 2, 4]], [[0.75, 0.75, 0.5]]]
    """
    nothing = np.iinfo(np.int64).max
    distance = np.rint((2 - sims.astype(np.float64)) * 1e6).astype(np.int64)  # from 0 to 3 million
    by_item = np.sort(np.where(lacking, nothing, items << 32 | distance << 10 | place), axis=1)
    items, distance_and_place = by_item >> 32, by_item & (2**32 - 1)
    again = by_item == nothing
    again[:, 1:] |= items[:, 1:] == items[:, :-1]
    best = np.sort(np.where(again, nothing, distance_and_place << 31 | items), axis=1)[:, :k]
    return best & (2**31 - 1), (2 - (best >> 41) / 1e6).astype(np.float32)


def _distinct_rows(vectors: Vectors) -> tuple[Rows, Rows]:
    """The distinct rows of vectors in order of first appearance: where each first appears [M'], and by row its number among them [M]."""
    whole = vectors.view(np.dtype((np.void, vectors.dtype.itemsize * vectors.shape[1]))).ravel()
    _, first, which = np.unique(whole, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[which]


def localize(answers: Vectors, items: Vectors, k: int, factory: str = "Flat") -> tuple[Rows, Vectors]:
    """The `k` nearest items of every answer, as `ItemIndex.nearest`."""
    return ItemIndex(items, factory).nearest(answers, k)
