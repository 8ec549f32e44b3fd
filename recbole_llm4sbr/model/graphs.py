"""Session graphs by pure tensor code: packed, without a loop over sessions, on whatever device the clicks are."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedGraph:
    """The session graphs of a batch as one graph of real nodes only. N clicks, V nodes, E edges.

    Attributes:
        click_row: session row of each click, rows and positions in order, [N].
        click_node: node of each click, [N].
        node_item: item of each node, [V].
        source, target: nodes of each edge, one edge per distinct pair of consecutive items in a session, [E].
        last_node: node of each session's last click, [B].
    """

    click_row: Tensor
    click_node: Tensor
    node_item: Tensor
    source: Tensor
    target: Tensor
    last_node: Tensor

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
    """
    valid = torch.arange(item_seq.size(1), device=item_seq.device) < item_seq_len.unsqueeze(1)  # [B, L]
    click_row, _ = valid.nonzero(as_tuple=True)  # [N]
    items = item_seq[valid]  # [N]
    stride = items.max() + 1
    keys, click_node = torch.unique(click_row * stride + items, return_inverse=True)  # a node is an item of a row
    same = click_row[1:] == click_row[:-1]
    count = len(keys)
    edges = torch.unique((click_node[:-1] * count + click_node[1:])[same])
    ends = item_seq_len.cumsum(0) - 1
    return PackedGraph(click_row, click_node, keys % stride, edges // count, edges % count, click_node[ends])


def _edge_mean(values: Tensor, source: Tensor, target: Tensor) -> Tensor:
    degree = torch.zeros(len(values), dtype=values.dtype, device=values.device)
    degree = degree.index_add(0, target, torch.ones_like(target, dtype=values.dtype))
    messages = values[source] / degree[target].unsqueeze(1)  # [E, H]
    return torch.zeros_like(values).index_add(0, target, messages)
