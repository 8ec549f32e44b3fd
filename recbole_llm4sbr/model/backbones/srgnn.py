"""SR-GNN (Wu et al., AAAI 2019) on packed session graphs: RecBole's numbers without its Python loop over sessions.

Parameters carry the names of RecBole's SRGNN, so a state dict of one loads into the other.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from recbole_llm4sbr.model.contract import SessionEmbeddings, SessionRecommender
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
        """Node states after `step` rounds, [V, H]."""
        for _ in range(self.step):
            incoming = graph.mean_from_sources(self.linear_edge_in(hidden)) + self.b_iah
            outgoing = graph.mean_from_targets(self.linear_edge_out(hidden)) + self.b_ioh
            i_r, i_i, i_n = linear(torch.cat([incoming, outgoing], -1), self.w_ih, self.b_ih).chunk(3, -1)
            h_r, h_i, h_n = linear(hidden, self.w_hh, self.b_hh).chunk(3, -1)
            update = torch.sigmoid(i_i + h_i)
            new = torch.tanh(i_n + torch.sigmoid(i_r + h_r) * h_n)
            hidden = hidden + update * (new - hidden)
        return hidden


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
        seen = self.linear_one(local_emb)[graph.click_row] + self.linear_two(hidden)[graph.click_node]  # [N, H]
        attention = self.linear_three(torch.sigmoid(seen))  # [N, 1]
        global_emb = graph.session_sum(attention * hidden[graph.click_node])
        return SessionEmbeddings(local_emb, global_emb, (graph, hidden))

    def fuse(self, embeddings: SessionEmbeddings, interaction: Any) -> Tensor:
        """Linear mix of global and local embedding, [B, H]."""
        session: Tensor = self.linear_transform(torch.cat([embeddings.global_emb, embeddings.local_emb], -1))
        return session
