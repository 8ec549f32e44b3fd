"""Graphs over all sessions of the training part, made once with the model: GCE-GNN's global graph and DHCN's hypergraph."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from recbole_llm4sbr.data.folders import part_file
from recbole_llm4sbr.data.rows import read_sessions


def training_sessions(config: Any, dataset: Any) -> list[npt.NDArray[np.int64]]:
    """The training part's sessions, each once and whole, with its last target, as arrays of item ids.

    They are read from the session file of the last targets: the rows that a model trains on may be prefixes, and hold newest clicks only.

    Args:
        config: reads `data_path`, the folder of the session files.
        dataset: RecBole's dataset over them.
    """
    rows = read_sessions(Path(config["data_path"]), dataset.dataset_name, part_file("train", "last"))
    number = np.array([dataset.field2token_id[dataset.iid_field][token] for token in rows.tokens])
    clicks, targets = number[rows.clicks], number[rows.targets]
    return [np.append(each, target) for each, target in zip(np.split(clicks, rows.starts[1:-1]), targets)]


def cooccurrence(
    sessions: list[npt.NDArray[np.int64]], items: int, distance: int, most: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The global graph (GCE-GNN, section 3.1): each item's most frequent neighbours within `distance` clicks in any session.

    Args:
        sessions: item ids of the training sessions.
        items: number of items with the padding item 0.
        distance: epsilon of the paper.
        most: neighbours kept per item; equal counts in the order of the item ids.

    Returns:
        Neighbours [items, most], 0 where there are fewer, and how often they occur, as a share of the most frequent one [items, most].

    In the sessions 1, 2, 3 and 1, 2 item 2 stands beside 1 twice and beside 3 once:

    >>> neighbours, weights = cooccurrence([np.array([1, 2, 3]), np.array([1, 2])], items=4, distance=1, most=2)
    >>> neighbours[2].tolist(), weights[2].tolist()
    ([1, 3], [1.0, 0.5])
    """
    from scipy.sparse import coo_array

    flat = np.concatenate(sessions)
    owner = np.repeat(np.arange(len(sessions)), [len(each) for each in sessions])
    pairs = [
        (flat[:-step][same], flat[step:][same])
        for step in range(1, min(distance, len(flat) - 1) + 1)
        for same in [(owner[:-step] == owner[step:]) & (flat[:-step] != flat[step:])]
    ]
    left, right = (np.concatenate(each) for each in zip(*pairs))
    both = np.concatenate([left, right]), np.concatenate([right, left])
    counts = coo_array((np.ones(len(both[0]), np.int64), both), shape=(items, items)).tocsr().tocoo()
    order = np.lexsort((counts.col, -counts.data, counts.row))
    row, column, data = counts.row[order], counts.col[order], counts.data[order]
    starts = np.searchsorted(row, np.arange(items))
    rank = np.arange(len(row)) - starts[row]
    kept = rank < most
    neighbours, weights = np.zeros((items, most), np.int64), np.zeros((items, most), np.float32)
    neighbours[row[kept], rank[kept]] = column[kept]
    weights[row[kept], rank[kept]] = data[kept] / data[starts[row[kept]]]
    return neighbours, weights


class Hypergraph(torch.nn.Module):
    """Sessions as hyperedges over items (DHCN, section 3.2), kept as the items of each session and the sessions of each item.

    Nothing here is trained, and no matrix of items by items is ever made. Sessions come in pieces whose means stay in a processor's cache.

    Args:
        sessions: item ids of the training sessions.
        items: number of items with the padding item 0.
        piece: sessions that are convolved at once.
    """

    degree: Tensor

    def __init__(self, sessions: list[npt.NDArray[np.int64]], items: int, piece: int = 5_000) -> None:
        super().__init__()
        members = [np.unique(each) for each in sessions]  # an item is in a hyperedge once
        for number, start in enumerate(range(0, len(members), piece)):
            part = members[start : start + piece]
            item, sizes = np.concatenate(part), np.array([len(each) for each in part])
            session = np.repeat(np.arange(len(part)), sizes)
            order = np.argsort(item, kind="stable")
            for name, values in (
                ("items", item),
                ("session_starts", np.searchsorted(session, np.arange(len(part)))),
                ("sessions", session[order]),
                ("item_starts", np.searchsorted(item[order], np.arange(items))),
                ("shares", (1 / sizes)[session[order]].astype(np.float32)),
            ):
                self.register_buffer(f"{name}_{number}", torch.from_numpy(values), persistent=False)
        self._pieces = number + 1
        degree = np.bincount(np.concatenate(members), minlength=items).clip(1).astype(np.float32)
        self.register_buffer("degree", torch.from_numpy(degree).unsqueeze(1), persistent=False)  # [n_items, 1]

    def forward(self, values: Tensor, layers: int) -> Tensor:
        """Mean of the items' embeddings after 0, 1, ..., `layers` convolutions (eq. 4-5), [n_items, H].

        A convolution (D^-1 H B^-1 H^T X) is per item the mean over its sessions of the mean over their items. Items behind those of the
        graph are in no session, so that their convolutions are zero.
        """
        known = len(self.degree)
        mean: Tensor = _Convolutions.apply(values[:known], self, layers)  # type: ignore[no-untyped-call]
        return torch.cat([mean, values[known:] / (layers + 1)]) if len(values) > known else mean

    def spread(self, values: Tensor) -> Tensor:
        """H B^-1 H^T X: per item the sum over its sessions of the mean over their items, [n_items, H]."""
        total = None
        for number in range(self._pieces):
            items, starts, sessions, item_starts, shares = (
                getattr(self, f"{name}_{number}") for name in ("items", "session_starts", "sessions", "item_starts", "shares")
            )
            sums = embedding_bag(items, values, starts, mode="sum")  # [sessions, H]
            part = embedding_bag(sessions, sums, item_starts, mode="sum", per_sample_weights=shares.to(values.dtype))
            total = part if total is None else total.add_(part)
        return total  # type: ignore[return-value]


class _Convolutions(torch.autograd.Function):
    """The mean of I, A, ..., A^layers times X, where A = D^-1 M and M = H B^-1 H^T is symmetric, so that its gradient needs no more than M.

    Args of `apply`:
        values: X, [n_items, H].
        graph: the hypergraph.
        layers: the highest power of A.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, graph: Hypergraph, layers: int) -> Tensor:
        ctx.graph, ctx.layers = graph, layers
        total, layer = values.clone(), values
        for _ in range(layers):
            layer = graph.spread(layer).div_(graph.degree)
            total += layer
        return total.div_(layers + 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad = grads[0] / (ctx.layers + 1)
        total = grad
        for _ in range(ctx.layers):  # Horner's rule with A^T = M D^-1
            total = ctx.graph.spread(total / ctx.graph.degree).add_(grad)
        return total, None, None
