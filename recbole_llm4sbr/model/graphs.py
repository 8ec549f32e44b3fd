"""Session graphs by pure tensor code: packed, without a loop over sessions, on whatever device the clicks are."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass(frozen=True)
class PackedGraph:
    """The session graphs of a batch as one graph of real nodes only. N clicks, V nodes, E edges.

    Attributes:
        click_row: session row of each click, rows and positions in order, [N].
        click_node: node of each click, [N].
        click_back: how far each click is from its session's last one, [N].
        node_item: item of each node, [V].
        node_row: session row of each node, [V].
        source, target: nodes of each edge, one edge per distinct pair of consecutive items in a session, [E].
        last_node: node of each session's last click, [B].
    """

    click_row: Tensor
    click_node: Tensor
    click_back: Tensor
    node_item: Tensor
    node_row: Tensor
    source: Tensor
    target: Tensor
    last_node: Tensor

    def session_sum(self, values: Tensor) -> Tensor:
        """Sum over each session's clicks of `values` [N, ...], [B, ...]."""
        zeros = values.new_zeros(len(self.last_node), *values.shape[1:])
        return zeros.index_add(0, self.click_row, values)

    def session_mean(self, values: Tensor) -> Tensor:
        """Mean over each session's clicks of `values` [N, H], [B, H]."""
        return self.session_sum(values) / self.session_sum(torch.ones_like(values[:, :1]))

    def mean_from_sources(self, values: Tensor) -> Tensor:
        """Per node the mean of `values` [V, H] over the nodes with an edge to it; zeros where there are none."""
        return _edge_mean(values, self.source, self.target)

    def mean_from_targets(self, values: Tensor) -> Tensor:
        """Per node the mean of `values` [V, H] over the nodes to which it has an edge, each weighted by 1 / its own out-degree."""
        return _edge_mean(values, self.target, self.source)


def packed_graph(item_seq: Tensor, item_seq_len: Tensor) -> PackedGraph:
    """Build the graphs of a batch.

    Args:
        item_seq: item ids, zeros behind the last click, [B, L].
        item_seq_len: clicks per session, at least 1, [B].

    The session 5, 7, 5 has two nodes and the edges 5 -> 7 and 7 -> 5:

    >>> graph = packed_graph(torch.tensor([[5, 7, 5, 0]]), torch.tensor([3]))
    >>> graph.node_item.tolist(), graph.click_node.tolist(), graph.source.tolist(), graph.target.tolist()
    ([5, 7], [0, 1, 0], [0, 1], [1, 0])
    """
    valid = torch.arange(item_seq.size(1), device=item_seq.device) < item_seq_len.unsqueeze(1)  # [B, L]
    click_row, place = valid.nonzero(as_tuple=True)  # [N]
    items = item_seq[valid]  # [N]
    stride = items.max() + 1
    keys, click_node = torch.unique(click_row * stride + items, return_inverse=True)  # a node is an item of a row
    same = click_row[1:] == click_row[:-1]
    count = len(keys)
    edges = torch.unique((click_node[:-1] * count + click_node[1:])[same])
    ends = item_seq_len.cumsum(0) - 1
    return PackedGraph(
        click_row, click_node, item_seq_len[click_row] - 1 - place, keys % stride, keys // stride, edges // count, edges % count,
        click_node[ends],
    )  # fmt: skip


def _edge_mean(values: Tensor, source: Tensor, target: Tensor) -> Tensor:
    degree = torch.zeros(len(values), dtype=values.dtype, device=values.device)
    degree = degree.index_add(0, target, torch.ones_like(target, dtype=values.dtype))
    messages = values[source] / degree[target].unsqueeze(1)  # [E, H]
    return torch.zeros_like(values).index_add(0, target, messages)


OUT, IN, BOTH, SELF = range(4)  # kinds of edges in `typed_edges`


def typed_edges(graph: PackedGraph) -> tuple[Tensor, Tensor, Tensor]:
    """The neighbours of every node with the kind of edge to them (GCE-GNN, section 3.1).

    Returns:
        Node, neighbour and kind of each pair, all [E]: `OUT` where the session goes only from the node to the neighbour, `IN` only from
        the neighbour to the node, `BOTH` both ways, `SELF` for every node with itself.
    """
    apart = graph.source != graph.target
    source, target, count = graph.source[apart], graph.target[apart], len(graph.node_item)
    both = torch.isin(target * count + source, source * count + target)
    nodes = torch.arange(count, device=source.device)
    kinds = torch.where(both, BOTH, OUT)
    back = ~both  # an edge both ways stands in `source, target` twice, once from each end
    return (
        torch.cat([source, target[back], nodes]),
        torch.cat([target, source[back], nodes]),
        torch.cat([kinds, torch.full_like(source[back], IN), torch.full_like(nodes, SELF)]),
    )


def softmax_by(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Softmax of `values` [E] within each of `count` groups, `index` [E] naming each one's group."""
    peak = values.new_full((count,), -torch.inf).scatter_reduce(0, index, values.detach(), "amax")
    shifted = (values - peak[index]).exp()
    return shifted / shifted.new_zeros(count).index_add(0, index, shifted)[index]


def session_overlap(graph: PackedGraph) -> Tensor:
    """The line graph of a batch: |a and b| / |a or b| of the item sets of any two sessions, 1 with itself, [B, B] (DHCN, eq. 9)."""
    rows = len(graph.last_node)
    items, column = torch.unique(graph.node_item, return_inverse=True)
    has = torch.zeros(rows, len(items), device=column.device)
    has[graph.node_row, column] = 1
    common = has @ has.T
    size = has.sum(1)
    return common / (size.unsqueeze(0) + size.unsqueeze(1) - common)


def training_sessions(config: Any, dataset: Any) -> list[npt.NDArray[np.int64]]:
    """The training part's sessions with their targets, each once: of the prefixes of a session (`session_targets: all`) the longest.

    Args:
        config: reads `session_targets`.
        dataset: RecBole's dataset of the training part.
    """
    feat = dataset.inter_feat
    clicks, lengths = feat[dataset.iid_field + "_list"].numpy(), feat[dataset.item_list_length_field].numpy()
    targets, ids = feat[dataset.iid_field].numpy(), feat[dataset.uid_field].numpy()
    longest: dict[str, int] = {}
    names = dataset.field2id_token[dataset.uid_field][ids]
    for row, name in enumerate(names):
        session = name.rpartition(".")[0] if config["session_targets"] == "all" else name
        if session not in longest or lengths[row] > lengths[longest[session]]:
            longest[session] = row
    return [np.append(clicks[row, : lengths[row]], targets[row]) for row in longest.values()]


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
    """Sessions as hyperedges over items (DHCN, section 3.2), kept as two lists of members; nothing here is trained.

    Args:
        sessions: item ids of the training sessions.
        items: number of items with the padding item 0.
    """

    def __init__(self, sessions: list[npt.NDArray[np.int64]], items: int) -> None:
        super().__init__()
        members = [np.unique(each) for each in sessions]  # an item is in a hyperedge once
        item = np.concatenate(members)
        session = np.repeat(np.arange(len(members)), [len(each) for each in members])
        order = np.argsort(item, kind="stable")
        for name, values in (
            ("items", item),
            ("session_starts", np.searchsorted(session, np.arange(len(members)))),
            ("sessions", session[order]),
            ("item_starts", np.searchsorted(item[order], np.arange(items))),
        ):
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """One convolution (eq. 4, D^-1 H B^-1 H^T X): per item the mean over its sessions of the mean over their items, [n_items, H]."""
        edges = embedding_bag(self.items, values, self.session_starts, mode="mean")  # type: ignore[arg-type]
        return embedding_bag(self.sessions, edges, self.item_starts, mode="mean")  # type: ignore[arg-type]
