"""Cold items (`cold_items: true`): items of the catalogue without a training click. Models are built and trained without them.

Their numbers stand behind those of all others, so that they are added to a trained model: one with a text tower reads and ranks them by
their texts; to any other they stay unknown, that is, their clicks are left out of a session and they are no candidates.
"""

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from recbole_llm4sbr.data.features import Vectors


@dataclass(frozen=True)
class ColdItems:
    """Items that training did not have.

    Attributes:
        tokens: their ids, C of them.
        titles: what each is called.
        vectors: their text vectors, [C, D].
    """

    tokens: list[str]
    titles: list[str]
    vectors: Vectors


def trained_part(dataset: Any) -> Any:
    """A dataset of which the cold items are unknown: itself where it has none.

    Args:
        dataset: RecBole's dataset; `trained_items` of it, where it is there, says how many items training has, padding included.
    """
    count = getattr(dataset, "trained_items", dataset.item_num)
    if count == dataset.item_num:
        return dataset
    part, tokens = copy.copy(dataset), dataset.field2id_token
    part.field2id_token = {**tokens, dataset.iid_field: tokens[dataset.iid_field][:count]}
    return part


def known_clicks(item_seq: Tensor, known: int) -> tuple[Tensor, Tensor]:
    """Sessions without the clicks on items from the number `known` on.

    Args:
        item_seq: clicks, zeros behind the last, [B, L].
        known: how many items there are, padding included.

    Returns:
        The other clicks in their order [B, L], and how many they are, [B]; a session without any is one click on padding.

    >>> import torch
    >>> known_clicks(torch.tensor([[9, 2, 3], [4, 9, 0], [9, 0, 0]]), known=9)
    (tensor([[2, 3, 0],
            [4, 0, 0],
            [0, 0, 0]]), tensor([2, 1, 1]))
    """
    unknown = (item_seq == 0) | (item_seq >= known)
    order = unknown.int().argsort(dim=1, stable=True)
    left = item_seq.masked_fill(unknown, 0).gather(1, order)
    return left, (~unknown).sum(1).clamp(min=1)
