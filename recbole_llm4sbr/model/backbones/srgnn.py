"""SR-GNN (Wu et al., AAAI 2019) on packed session graphs: RecBole's numbers without its Python loop over sessions.

Parameters carry the names of RecBole's SRGNN, so a state dict of one loads into the other.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from recbole_llm4sbr.base.recbole import cat_interactions
from recbole_llm4sbr.model.contract import SessionEmbeddings, SessionRecommender
from recbole_llm4sbr.model.prefixes import take
from recbole_llm4sbr.model.session_graphs import PackedGraph, packed_graph


class GatedGraph(nn.Module):
    """Gated graph network over incoming and outgoing edges (SR-GNN eq. 1-5).

    Args:
        size: numbers per node.
        step: rounds of messages.
    """

    def __init__(self, size: int, step: int) -> None:
        super().__init__()
        self.step = step
        self.w_ih = nn.Parameter(torch.empty(3 * size, 2 * size))
        self.w_hh = nn.Parameter(torch.empty(3 * size, size))
        self.b_ih = nn.Parameter(torch.empty(3 * size))
        self.b_hh = nn.Parameter(torch.empty(3 * size))
        self.b_iah = nn.Parameter(torch.empty(size))
        self.b_ioh = nn.Parameter(torch.empty(size))
        self.linear_edge_in = nn.Linear(size, size)
        self.linear_edge_out = nn.Linear(size, size)

    def forward(self, graph: PackedGraph, hidden: Tensor) -> Tensor:
        """Node states after `step` rounds, [V, H].

        The mean of transformed states is the transformed mean of states. So the two layers between a neighbour and a gate are multiplied
        with each other once per batch, and 9 instead of 11 products of H x H are left for each node.
        """
        weight, bias = self._message_layer()
        has = torch.stack([graph.has_edge(graph.target), graph.has_edge(graph.source)], 1).to(
            hidden.dtype
        )  # a bias per mean, [V, 2]
        for _ in range(self.step):
            means = torch.cat([graph.mean_from_sources(hidden), graph.mean_from_targets(hidden), has], 1)  # [V, 2H + 2]
            hidden = _GatedUpdate.apply(linear(means, weight, bias), linear(hidden, self.w_hh, self.b_hh), hidden)  # type: ignore[no-untyped-call]
        return hidden

    def _message_layer(self) -> tuple[Tensor, Tensor]:
        """Weight [3H, 2H + 2] and bias [3H] of the layer from [mean of sources ; of targets ; has a source ; has a target] to the gates."""
        size = self.w_hh.size(1)
        into, out = self.w_ih[:, :size], self.w_ih[:, size:]
        edge_in, edge_out = self.linear_edge_in, self.linear_edge_out
        weight = torch.cat(
            [into @ edge_in.weight, out @ edge_out.weight, into @ edge_in.bias[:, None], out @ edge_out.bias[:, None]], 1
        )
        return weight, torch.addmv(self.b_ih, self.w_ih, torch.cat([self.b_iah, self.b_ioh]))

    def on_paths(self, hidden: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """States after one round in sessions that click no item twice, whose graphs are paths: of a click that another follows, and of one
        that ends the prefix, [N, H] each.

        Args:
            hidden: states of the clicks before, [N, H].
            row: session of each click, sessions and clicks in order, [N].
        """
        size = hidden.size(1)
        weight, bias = self._message_layer()
        same = (row[1:] == row[:-1]).to(hidden.dtype).unsqueeze(1)  # a click and the next one belong together, [N - 1, 1]
        edge, zero = linear(hidden, torch.cat([weight[:, :size], weight[:, size : 2 * size]])), hidden.new_zeros(1, 3 * size)
        into = torch.cat([zero, same * (edge[:-1, : 3 * size] + weight[:, 2 * size])])  # [N, 3H]
        out = torch.cat([same * (edge[1:, 3 * size :] + weight[:, 2 * size + 1]), zero])
        ends, state = into + bias, linear(hidden, self.w_hh, self.b_hh)
        inner: Tensor = _GatedUpdate.apply(ends + out, state, hidden)  # type: ignore[no-untyped-call]
        return inner, _GatedUpdate.apply(ends, state, hidden)  # type: ignore[no-untyped-call]


class _GatedUpdate(torch.autograd.Function):
    """New node states from what messages and states say to the gates (SR-GNN eq. 3-5), [V, H].

    With reset r = sigmoid(m_r + s_r), update u = sigmoid(m_u + s_u) and n = tanh(m_n + r s_n), the new state is h + u (n - h). The
    gradient is written by hand: autograd would go over memory twice as often.

    Args of `apply`:
        message: m_r, m_u, m_n of each node, [V, 3H].
        state: s_r, s_u, s_n, [V, 3H].
        hidden: h, [V, H].
    """

    @staticmethod
    def forward(ctx: Any, message: Tensor, state: Tensor, hidden: Tensor) -> Tensor:
        size = hidden.size(1)
        gates = (message[:, : 2 * size] + state[:, : 2 * size]).sigmoid_()
        reset, update = gates[:, :size], gates[:, size:]
        new = torch.addcmul(message[:, 2 * size :], reset, state[:, 2 * size :]).tanh_()
        ctx.save_for_backward(gates, new, state, hidden)
        return torch.lerp(hidden, new.to(hidden.dtype), update.to(hidden.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gates, new, state, hidden = ctx.saved_tensors
        (grad,), size = grads, hidden.size(1)
        reset, update = gates[:, :size], gates[:, size:]
        by_new = torch.ops.aten.tanh_backward(grad * update, new)
        by_update = torch.ops.aten.sigmoid_backward((new - hidden).mul_(grad), update)
        by_reset = torch.ops.aten.sigmoid_backward(by_new * state[:, 2 * size :], reset)
        message = torch.cat([by_reset, by_update, by_new], 1)
        return message, torch.cat([by_reset, by_update, by_new.mul_(reset)], 1), torch.addcmul(grad, grad, update, value=-1)


class SRGNN(SessionRecommender):
    """SR-GNN. Local: hidden state of the last click; global: soft attention over all clicks (SR-GNN eq. 6).

    Args:
        config: reads `embedding_size` and `step`.
        dataset: RecBole's dataset.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        size = config["embedding_size"]
        self.item_embedding = nn.Embedding(self.n_items, size, padding_idx=0)
        self.gnn = GatedGraph(size, config["step"])
        self.linear_one = nn.Linear(size, size)
        self.linear_two = nn.Linear(size, size)
        self.linear_three = nn.Linear(size, 1, bias=False)
        self.linear_transform = nn.Linear(2 * size, size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(size), 1 / math.sqrt(size))

    def mixing_layer(self) -> nn.Linear:
        """The layer of SR-GNN eq. 7, over [global, local]."""
        return self.linear_transform

    def encode(self, interaction: Any) -> SessionEmbeddings:
        """Local and global embedding; `memo` holds the packed graph and the node states."""
        graph = packed_graph(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        hidden = self.gnn(graph, self.embed(graph.node_item))  # [V, H]
        local_emb = hidden[graph.last_node]  # [B, H]
        # linear_two is taken per node and not per click: a repeated item has one state
        last = self.linear_one(local_emb).index_select(0, graph.click_row)  # [N, H]
        attention = self.linear_three(torch.sigmoid(last + graph.at_clicks(self.linear_two(hidden))))  # [N, 1]
        global_emb = graph.session_sum(attention * graph.at_clicks(hidden))
        return SessionEmbeddings(local_emb, global_emb, (graph, hidden))

    def encode_prefixes(self, sessions: Any) -> tuple[SessionEmbeddings, Any]:
        """As `encode`, of all prefixes. Where a session clicks no item twice, a click has two states only, whatever the prefix: as its last
        click and before it; products with weights are then taken per click of a session and not of each prefix. With `step` of 2 or more,
        and where an item comes again, prefixes are encoded one by one.
        """
        ordered = sessions[self.ITEM_SEQ].sort(1).values
        again = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)).any(1) | (self.gnn.step > 1)
        if again.any():
            parts = [super().encode_prefixes(take(sessions, again))]
            parts += [] if again.all() else [self._encode_paths(take(sessions, ~again))]
            embeddings, rows = zip(*parts)
            local, whole = (torch.cat([getattr(each, name) for each in embeddings]) for name in ("local_emb", "global_emb"))
            return SessionEmbeddings(local, whole), cat_interactions(rows)
        return self._encode_paths(sessions)

    def _encode_paths(self, sessions: Any) -> tuple[SessionEmbeddings, Any]:
        """The prefixes of sessions that click no item twice."""
        rows, row, place = self.prefix_rows(sessions)
        length = sessions[self.ITEM_SEQ_LEN]
        click_row, click_place = (sessions[self.ITEM_SEQ] > 0).nonzero(as_tuple=True)  # [N]
        inner, ends = self.gnn.on_paths(self.embed(sessions[self.ITEM_SEQ][click_row, click_place]), click_row)  # [N, H]
        first = length.cumsum(0) - length  # click with which each session begins
        last = first[row] + place  # and each prefix ends, [P]
        local_emb = ends[last]  # [P, H]
        owner = torch.repeat_interleave(torch.arange(len(row), device=row.device), place)  # prefix of each earlier click, [V]
        begins = place.cumsum(0) - place
        click = first[row][owner] + torch.arange(len(owner), device=row.device) - begins[owner]  # [V]
        asked = self.linear_one(local_emb)
        own = self.linear_three(torch.sigmoid(asked + self.linear_two(local_emb)))  # [P, 1]
        keys = asked.index_select(0, owner) + self.linear_two(inner).index_select(0, click)  # [V, H]
        weights = self.linear_three(torch.sigmoid(keys))  # [V, 1]
        global_emb = (own * local_emb).index_add(0, owner, weights * inner.index_select(0, click))
        return SessionEmbeddings(local_emb, global_emb), rows

    def fuse(self, embeddings: SessionEmbeddings, interaction: Any) -> Tensor:
        """Linear mix of global and local embedding, [B, H]."""
        session: Tensor = self.linear_transform(torch.cat([embeddings.global_emb, embeddings.local_emb], -1))
        return session
