"""S2-DHCN: self-supervised hypergraph convolution (Xia et al., AAAI 2021).

Items are convolved over the hypergraph of all training sessions (eq. 1-5); a session is a soft attention over them with positions
counted from its end (eq. 6-8). A second channel convolves sessions over the line graph of the batch, whose edges are the shares of common
items (eq. 9-11); a contrastive loss between the two (eq. 13) is the model's own extra loss.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from recbole_llm4sbr.model.contract import SessionEmbeddings, SessionRecommender
from recbole_llm4sbr.model.session_graphs import PackedGraph, packed_graph, session_overlap
from recbole_llm4sbr.model.training_graphs import Hypergraph, training_sessions


class DHCN(SessionRecommender):
    """S2-DHCN. Local: the last click's convolved item; global: the session embedding (eq. 8).

    Args:
        config: reads `embedding_size`, `layers`, `beta` (weight of the contrastive loss), `detach_line` (no gradient through the line
            graph, as in the authors' code), `MAX_ITEM_LIST_LENGTH` and `data_path`.
        dataset: RecBole's dataset of the training part; the hypergraph is made of its sessions.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        size = config["embedding_size"]
        self.layers, self.beta, self.detach_line = config["layers"], config["beta"], config["detach_line"]
        self.item_embedding = nn.Embedding(self.n_items, size, padding_idx=0)
        self.position_embedding = nn.Embedding(config["MAX_ITEM_LIST_LENGTH"], size)
        self.linear_place = nn.Linear(2 * size, size)  # W_1, b
        self.linear_mean = nn.Linear(size, size, bias=False)  # W_2
        self.linear_click = nn.Linear(size, size)  # W_3, c
        self.attend = nn.Linear(size, 1, bias=False)  # f
        self.hypergraph = Hypergraph(training_sessions(config, dataset), self.n_items)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(size), 1 / math.sqrt(size))

    def encode(self, interaction: Any) -> SessionEmbeddings:
        """Local and global embedding; `memo` holds the convolved item table and the graph."""
        graph = packed_graph(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        items = self.hypergraph(self.item_embedding.weight, self.layers)  # eq. 4-5
        clicks = graph.at_clicks(self.dropped(items[graph.node_item], self.embedding_dropout))  # [N, H]
        placed = torch.tanh(self.linear_place(torch.cat([clicks, self.position_embedding(graph.click_back)], -1)))  # eq. 6
        mean = self.linear_mean(graph.session_mean(clicks))[graph.click_row]
        attention = self.attend(torch.sigmoid(mean + self.linear_click(placed)))  # eq. 7
        last = items[graph.node_item[graph.last_node]]
        return SessionEmbeddings(last, graph.session_sum(attention * clicks), (items, graph))  # eq. 8

    def fuse(self, embeddings: SessionEmbeddings, interaction: Any) -> Tensor:
        """The session embedding itself, [B, H]."""
        return embeddings.global_emb

    def score(self, session: Tensor, embeddings: SessionEmbeddings) -> Tensor:
        """Session embedding times convolved item table (eq. 12), [B, n_items]."""
        return self.compare(session, embeddings.memo[0])

    def extra_loss(self, embeddings: SessionEmbeddings, interaction: Any) -> Tensor:
        """beta times the contrastive loss (eq. 13): agree with the session's line-graph embedding, not with a shuffled session's."""
        line = self._line_graph(embeddings.memo[1])
        rows = torch.randperm(len(line), device=line.device)
        columns = torch.randperm(line.size(1), device=line.device)
        corrupted = embeddings.global_emb[rows][:, columns]
        agree, differ = (embeddings.global_emb * line).sum(1), (corrupted * line).sum(1)
        loss: Tensor = -self.beta * (logsigmoid(agree) + logsigmoid(-differ)).sum()
        return loss

    def _line_graph(self, graph: PackedGraph) -> Tensor:
        """Sessions convolved over the line graph, from the mean of their clicks' items on (eq. 10-11), [B, H]."""
        embedding = graph.at_clicks(self.item_embedding(graph.node_item))
        values = [graph.session_mean(embedding.detach() if self.detach_line else embedding)]
        weights = session_overlap(graph, embedding.dtype)  # 1 on the diagonal: the A + I of eq. 10
        weights = weights / weights.sum(1, keepdim=True)
        for _ in range(self.layers):
            values.append(weights @ values[-1])
        return torch.stack(values).mean(0)
