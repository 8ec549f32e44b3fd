"""GCE-GNN: global context enhanced graph neural network (Wang et al., SIGIR 2020), on packed session graphs.

Two kinds of item embedding are added up: one from the session's graph with four kinds of edges (eq. 7-9), one from the items that were
clicked near the item in any training session (eq. 2-6). Positions are counted from the end of the session (eq. 10-13).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear
from torch.utils.checkpoint import checkpoint

from recbole_llm4sbr.model.contract import SessionEmbeddings, SessionRecommender
from recbole_llm4sbr.model.dropout import Dropout
from recbole_llm4sbr.model.session_graphs import PackedGraph, packed_graph, softmax_by, typed_edges
from recbole_llm4sbr.model.training_graphs import cooccurrence, training_sessions

_PIECE = 32_000_000  # numbers in one tensor of neighbours


class GlobalLayer(nn.Module):
    """Session-aware attention over an item's global neighbours (eq. 2-6).

    Args:
        size: numbers per item.
        slope: of the leaky ReLU.
    """

    def __init__(self, size: int, slope: float) -> None:
        super().__init__()
        self.linear_pair = nn.Linear(size + 1, size, bias=False)  # W_1
        self.attend = nn.Linear(size, 1, bias=False)  # q_1
        self.aggregate = nn.Linear(2 * size, size, bias=False)  # W_2
        self._slope = slope

    def forward(self, own: Tensor, near: Tensor, weights: Tensor, session: Tensor) -> Tensor:
        """New embeddings [..., H].

        Args:
            own: embeddings, [..., H].
            near: those of their neighbours, [..., S, H].
            weights: share of co-occurrences of each neighbour, 0 where there is none, [..., S].
            session: what the session is about, broadcastable to [..., 1, H].
        """
        w1 = self.linear_pair.weight  # W_1 [x ; w] = W_1' x + w w_1'', without the copy that joins x and w
        pair = torch.addcmul(linear(session * near, w1[:, :-1]), weights.unsqueeze(-1), w1[:, -1])
        logits = linear(leaky_relu(pair, self._slope), self.attend.weight).squeeze(-1)  # [..., S]
        there = weights > 0
        # The lowest finite number and not -inf: a row without neighbours would be nan before it is masked, and nan in its gradient.
        lowest = torch.finfo(logits.dtype).min
        attention = logits.masked_fill(~there, lowest).softmax(-1).masked_fill(~there, 0.0)  # all zero without neighbours
        context = (attention.unsqueeze(-2) @ near).squeeze(-2)
        return torch.relu(self.aggregate(torch.cat([own, context], -1)))


class GCEGNN(SessionRecommender):
    """GCE-GNN. Local: the last click's item in its two contexts (eq. 10); global: the session embedding (eq. 13).

    Args:
        config: reads `embedding_size`, `hop` (1 or 2), `neighbors`, `epsilon`, `leaky_slope`, `dropout_local`, `dropout_global`,
            `MAX_ITEM_LIST_LENGTH` and, for the global graph, `session_targets`.
        dataset: RecBole's dataset of the training part; the global graph is made of its sessions.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        size, self._slope = config["embedding_size"], config["leaky_slope"]
        if config["hop"] not in (1, 2):
            raise ValueError(f"hop={config['hop']} must be 1 or 2")
        self.item_embedding = nn.Embedding(self.n_items, size, padding_idx=0)
        self.position_embedding = nn.Embedding(config["MAX_ITEM_LIST_LENGTH"], size)
        self.edge_kinds = nn.Parameter(torch.empty(4, size))  # a_r of eq. 7
        self.global_layers = nn.ModuleList(GlobalLayer(size, self._slope) for _ in range(config["hop"]))
        self.linear_place = nn.Linear(2 * size, size)  # W_3, b_3
        self.linear_click = nn.Linear(size, size)  # W_4, b_4
        self.linear_mean = nn.Linear(size, size, bias=False)  # W_5
        self.attend = nn.Linear(size, 1, bias=False)  # q_2
        self.dropout_local, self.dropout_global = Dropout(config["dropout_local"]), Dropout(config["dropout_global"])
        sessions = training_sessions(config, dataset)
        neighbours, weights = cooccurrence(sessions, self.n_items, config["epsilon"], config["neighbors"])
        self.register_buffer("near", torch.from_numpy(neighbours), persistent=False)
        self.register_buffer("near_weights", torch.from_numpy(weights), persistent=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(size), 1 / math.sqrt(size))

    def encode(self, interaction: Any) -> SessionEmbeddings:
        """Local and global embedding."""
        graph = packed_graph(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        own = self.embed(graph.node_item)  # [V, H]
        mean = graph.session_mean(graph.at_clicks(own))  # [B, H]
        in_session = self.dropout_local(self._session_level(graph, own))
        context = self.dropout_global(self._global_level(graph.node_item, mean[graph.node_row]))
        hidden = in_session + context  # eq. 10
        clicks = graph.at_clicks(hidden)  # [N, H]
        placed = torch.tanh(self.linear_place(torch.cat([clicks, self.position_embedding(graph.click_back)], -1)))  # eq. 11
        about = graph.session_mean(clicks)  # [B, H]
        attention = self.attend(torch.sigmoid(self.linear_click(placed) + self.linear_mean(about)[graph.click_row]))  # eq. 12
        return SessionEmbeddings(hidden[graph.last_node], graph.session_sum(attention * clicks), graph)  # eq. 13

    def fuse(self, embeddings: SessionEmbeddings, interaction: Any) -> Tensor:
        """The session embedding itself, [B, H]."""
        return embeddings.global_emb

    def _session_level(self, graph: PackedGraph, own: Tensor) -> Tensor:
        """Attention over the neighbours in the session by kind of edge (eq. 7-9), [V, H]."""
        node, neighbour, kind = typed_edges(graph)
        logits = leaky_relu((own[node] * own[neighbour] * self.edge_kinds[kind]).sum(-1), self._slope)
        attention = softmax_by(logits, node, len(own))
        return torch.zeros_like(own).index_add(0, node, attention.unsqueeze(1) * own[neighbour])

    def _global_level(self, items: Tensor, session: Tensor) -> Tensor:
        """Embeddings of items [V] in the global graph, as seen from their sessions [V, H] (eq. 2-6), [V, H]."""
        hops, most = len(self.global_layers), self.near.size(1)  # type: ignore[operator,union-attr]
        piece = max(1, _PIECE // (most**hops * session.size(1)))
        if len(items) <= piece:
            return self._hops(items, session)
        parts = zip(torch.split(items, piece), torch.split(session, piece))
        return torch.cat([checkpoint(self._hops, *part, use_reentrant=False) for part in parts])

    def _hops(self, items: Tensor, session: Tensor) -> Tensor:
        levels, weights = [items], []
        for _ in self.global_layers:
            weights.append(self.near_weights[levels[-1]])  # type: ignore[index]
            levels.append(self.near[levels[-1]])  # type: ignore[index]
        values = [self.item_embedding(level) for level in levels]
        for layer in self.global_layers:
            values = [
                layer(own, near, weight, session.view(len(session), *[1] * (own.dim() - 1), -1))
                for own, near, weight in zip(values, values[1:], weights)
            ]
        hidden: Tensor = values[0]
        return hidden
