"""All prefixes of a session trained on in one pass: a row is a session, with a target at each place.

A model that reads clicks from left to right has the embeddings of all prefixes once it has read the session. The loss is that of the rows
one by one, with the same candidates.
"""

from typing import Any

import torch
from torch import Tensor

from recbole_llm4sbr.base.recbole import Interaction

TARGETS = "prefix_targets"  # field [B, L]: the item that follows each click, 0 where none is trained on
IDS = "prefix_ids"  # field [B, L]: the row ids of these prefixes


def session_rows(feat: Interaction, clicks: str, length: str, target: str, session: str) -> Interaction:
    """Rows of prefixes as rows of sessions.

    A row holds the newest `L` clicks, so that a session's prefixes up to `L` clicks lie in one row, and each longer one stays a row with a
    single target.

    Args:
        feat: rows of prefixes [R], those of a session one after the other, from the prefix of one click on.
        clicks, length, target, session: names of its fields: [R, L], [R], [R], [R].

    Returns:
        The rows that are left, with the further fields `TARGETS` and `IDS`, [M] and [M, L].

    >>> prefixes = Interaction({"s": torch.arange(3), "n": torch.tensor([1, 2, 1]), "t": torch.tensor([5, 6, 9]),
    ...                         "c": torch.tensor([[4, 0], [4, 5], [8, 0]])})
    >>> rows = session_rows(prefixes, "c", "n", "t", "s")
    >>> rows["c"].tolist(), rows[TARGETS].tolist(), rows[IDS].tolist()
    ([[4, 5], [8, 0]], [[5, 6], [9, 0]], [[0, 1], [2, 0]])
    """
    count, width = feat[clicks].shape
    row = torch.arange(count)
    first = feat[length] == 1
    start = row[first][first.cumsum(0) - 1]  # of the row's session, [R]
    place = row - start
    ends = torch.cat([first[1:], torch.ones(1, dtype=torch.bool)]) if count else first
    kept = (place >= width) | (place == width - 1) | ends
    owner = kept.cumsum(0) - kept.long()  # of each row among those that are left
    targets, ids = feat[target].new_zeros(int(kept.sum()), width), feat[session].new_zeros(int(kept.sum()), width)
    at = feat[length] - 1
    targets[owner, at], ids[owner, at] = feat[target], feat[session]
    return Interaction({**{name: feat[name][kept] for name in feat.interaction}, TARGETS: targets, IDS: ids})


def take(sessions: Any, rows: Tensor) -> Interaction:
    """Some rows of a batch, by number [R] or by mask [B]; RecBole's own way goes through the host."""
    return Interaction({name: sessions[name][rows] for name in sessions.interaction})


def prefix_rows(sessions: Any, clicks: str, length: str, target: str, session: str) -> tuple[Interaction, Tensor, Tensor]:
    """Rows of sessions as rows of prefixes again, on the device of the batch.

    Args:
        sessions: a batch of `session_rows`.
        clicks, length, target, session: names of its fields.

    Returns:
        A row for each of the P targets, and where it is: the row [P] and the place [P] in the batch.
    """
    row, place = sessions[TARGETS].nonzero(as_tuple=True)
    item_seq = sessions[clicks][row]  # [P, L]
    behind = torch.arange(item_seq.size(1), device=item_seq.device) > place.unsqueeze(1)
    fields = {
        clicks: item_seq.masked_fill(behind, 0),
        length: place + 1,
        target: sessions[TARGETS][row, place],
        session: sessions[IDS][row, place],
    }
    return Interaction(fields), row, place
