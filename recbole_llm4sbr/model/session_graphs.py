"""The session graphs of a batch by pure tensor code: packed, without a loop over sessions, on the device of the clicks."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedGraph:
    """The session graphs of a batch as one graph of real nodes only. N clicks, V nodes, E edges.

    Where no session clicks an item twice, which is all there is in most data, clicks and nodes are one and the same, and nothing is
    gathered from the ones to the others.

    Attributes:
        click_row: session row of each click, rows and positions in order, [N].
        click_node: node of each click, [N]; None where clicks are the nodes.
        click_back: how far each click is from its session's last one, [N].
        node_item: item of each node, [V].
        node_row: session row of each node, [V].
        source, target: nodes of each edge, one edge per distinct pair of consecutive items in a session, [E].
        last_node: node of each session's last click, [B].
    """

    click_row: Tensor
    click_node: Tensor | None
    click_back: Tensor
    node_item: Tensor
    node_row: Tensor
    source: Tensor
    target: Tensor
    last_node: Tensor

    def at_clicks(self, values: Tensor) -> Tensor:
        """What each click's node has of `values` [V, ...], [N, ...]."""
        return values if self.click_node is None else values.index_select(0, self.click_node)

    def session_sum(self, values: Tensor) -> Tensor:
        """Sum over each session's clicks of `values` [N, ...], [B, ...]."""
        zeros = values.new_zeros(len(self.last_node), *values.shape[1:])
        return zeros.index_add(0, self.click_row, values)

    def session_mean(self, values: Tensor) -> Tensor:
        """Mean over each session's clicks of `values` [N, H], [B, H]."""
        return self.session_sum(values) / self.session_sum(torch.ones_like(values[:, :1]))

    def mean_from_sources(self, values: Tensor) -> Tensor:
        """Per node the mean of `values` [V, H] over the nodes with an edge to it; zeros where there are none."""
        return self._edge_mean(values, self.source, self.target)

    def mean_from_targets(self, values: Tensor) -> Tensor:
        """Per node the mean of `values` [V, H] over the nodes to which it has an edge; zeros where there are none."""
        return self._edge_mean(values, self.target, self.source)

    def has_edge(self, ends: Tensor) -> Tensor:
        """Which nodes are among `ends`, which is `source` or `target`, [V]."""
        return torch.zeros_like(self.node_item, dtype=torch.bool).index_fill(0, ends, True)

    def _edge_mean(self, values: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Per node in `target` the mean of `values` [V, H] over the nodes in `source` of its edges [E], [V, H]."""
        messages = values.index_select(0, source)  # [E, H]
        if self.click_node is not None:  # else a node has one edge from the click before it, and one to the next
            degree = values.new_zeros(len(values)).index_add(0, target, values.new_ones(len(target)))
            messages = messages / degree[target].unsqueeze(1)
        return torch.zeros_like(values).index_add(0, target, messages)


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
    click_back = item_seq_len[click_row] - 1 - place
    ends = item_seq_len.cumsum(0) - 1  # the last click of each session, [B]
    stride = items.max() + 1
    keys, click_node = torch.unique(click_row * stride + items, return_inverse=True)  # a node is an item of a row, [V] and [N]
    same = click_row[1:] == click_row[:-1]  # a click and the next one belong to the same session, [N - 1]
    if (count := len(keys)) == len(items):
        source = same.nonzero().squeeze(1)
        return PackedGraph(click_row, None, click_back, items, click_row, source, source + 1, ends)
    edges = torch.unique((click_node[:-1] * count + click_node[1:])[same])  # [E]
    node_item, node_row = keys % stride, keys // stride
    return PackedGraph(click_row, click_node, click_back, node_item, node_row, edges // count, edges % count, click_node[ends])


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
    back = ~both  # `source, target` already hold an edge that goes both ways twice, once from each end
    return (
        torch.cat([source, target[back], nodes]),
        torch.cat([target, source[back], nodes]),
        torch.cat([kinds, torch.full_like(source[back], IN), torch.full_like(nodes, SELF)]),
    )


def softmax_by(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Softmax of `values` [E] within each of `count` groups; `index` [E] holds the group of each value.

    >>> softmax_by(torch.tensor([1.0, 7.0, 1.0]), torch.tensor([0, 1, 0]), 2).tolist()
    [0.5, 1.0, 0.5]
    """
    peak = values.new_full((count,), -torch.inf).scatter_reduce(0, index, values.detach(), "amax")
    shifted = (values - peak[index]).exp()
    return shifted / shifted.new_zeros(count).index_add(0, index, shifted)[index]


def session_overlap(graph: PackedGraph, dtype: torch.dtype | None = None) -> Tensor:
    """The line graph of a batch: |a and b| / |a or b| of the item sets of any two sessions, 1 with itself, [B, B] (DHCN, eq. 9)."""
    rows = len(graph.last_node)
    items, column = torch.unique(graph.node_item, return_inverse=True)
    has = torch.zeros(rows, len(items), dtype=dtype, device=column.device)  # [B, distinct items]
    has[graph.node_row, column] = 1
    common = has @ has.T  # [B, B]
    size = has.sum(1)
    return common / (size.unsqueeze(0) + size.unsqueeze(1) - common)
