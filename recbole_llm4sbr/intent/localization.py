"""Intent localization: the items nearest to an answer, by cosine similarity (paper eq. 4-5, where k is `intent_k`)."""

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.data.features import Vectors

_TIES = 32  # neighbours fetched beyond k, so that equal similarities at the edge can be put into catalogue order


def localize(answers: Vectors, items: Vectors, k: int, factory: str = "Flat") -> tuple[npt.NDArray[np.int64], Vectors]:
    """The `k` nearest items of every answer.

    Args:
        answers: unit vectors, [N, D].
        items: unit vectors in catalogue order, [M, D]; an all-zero row is an item without a text and is never found.
        k: neighbours per answer; at most the number of items with a text.
        factory: faiss index factory string; `Flat` is exact inner product.

    Returns:
        Item rows and similarities, both [N, k], in falling order of similarity; equal similarities in catalogue order.

    Raises:
        UserError: faiss does not know the index, or it found too few items.
    """
    import faiss

    known = np.flatnonzero(np.abs(items).sum(1) > 0)
    k = min(k, len(known))
    fetched = min(k + _TIES, len(known))
    try:
        index = faiss.index_factory(items.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        vectors = np.ascontiguousarray(items[known])
        if not index.is_trained:
            index.train(vectors)
        index.add(vectors)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise UserError(
            f"faiss_index={factory!r} cannot be built over {len(known)} items ({reason}); Flat always can"
        ) from None
    sims, found = index.search(np.ascontiguousarray(answers), fetched)
    if (found[:, :k] < 0).any():
        raise UserError(f"faiss_index={factory!r} found fewer than {k} items for some answers; Flat never does")
    rows = np.where(found >= 0, known[found], np.iinfo(np.int64).max)
    # faiss rounds differently from row to row of a block; at six decimals the same vector has the same similarity
    order = np.lexsort((rows, -np.round(sims, 6)), axis=1)[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(sims, order, 1)
