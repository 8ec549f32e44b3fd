"""STAMP: short-term attention/memory priority model (Liu et al., KDD 2018) over the clicks that there are, with RecBole's numbers.

RecBole's STAMP lets the empty places behind a session take part: their embedding, the padding row of the table, is not zero there. All of a
session's are alike, so they are computed once and counted `MAX_ITEM_LIST_LENGTH` - n times. Parameters carry RecBole's names.
"""

from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm4sbr.model.contract import SessionEmbeddings, SessionRecommender


class STAMP(SessionRecommender):
    """STAMP. Local: the last click's item; global: the session embedding h_s * h_t (STAMP eq. 2-8).

    Args:
        config: reads `embedding_size` and `MAX_ITEM_LIST_LENGTH`.
        dataset: RecBole's dataset.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        size, self.places = config["embedding_size"], config["MAX_ITEM_LIST_LENGTH"]
        self.item_embedding = nn.Embedding(self.n_items, size, padding_idx=0)
        self.w1, self.w2, self.w3 = (nn.Linear(size, size, bias=False) for _ in range(3))
        self.w0 = nn.Linear(size, 1, bias=False)
        self.b_a = nn.Parameter(torch.zeros(size))
        self.mlp_a, self.mlp_b = nn.Linear(size, size), nn.Linear(size, size)
        nn.init.normal_(self.item_embedding.weight, 0, 0.002)
        for layer in (self.w1, self.w2, self.w3, self.w0, self.mlp_a, self.mlp_b):
            nn.init.normal_(layer.weight, 0, 0.05)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def encode(self, interaction: Any) -> SessionEmbeddings:
        """Local and global embedding."""
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        there = torch.arange(item_seq.size(1), device=item_seq.device) < length.unsqueeze(1)  # [B, L]
        row = there.nonzero(as_tuple=True)[0]  # [N]
        clicks = self.embed(item_seq[there])  # [N, H]
        empty = self.embed(
            torch.zeros_like(length)
        )  # [B, H]; no gradient reaches the padding row this way, in RecBole's neither
        last = clicks.index_select(0, length.cumsum(0) - 1)  # [B, H]
        count, rest = length.unsqueeze(1), (self.places - length).unsqueeze(1)
        mean = (torch.zeros_like(last).index_add(0, row, clicks) + rest * empty) / count  # m_s
        known = self.w2(last) + self.w3(mean) + self.b_a  # [B, H]
        by_click = self.w0(torch.sigmoid(self.w1(clicks) + known.index_select(0, row)))  # [N, 1]
        by_empty = self.w0(torch.sigmoid(self.w1(empty) + known))  # [B, 1]
        memory = (
            torch.zeros_like(last).index_add(0, row, (by_click * clicks).to(last.dtype)) + rest * by_empty * empty + mean
        )  # m_a + m_s
        return SessionEmbeddings(last, torch.tanh(self.mlp_a(memory)) * torch.tanh(self.mlp_b(last)))

    def fuse(self, embeddings: SessionEmbeddings, interaction: Any) -> Tensor:
        """The session embedding itself, [B, H]."""
        return embeddings.global_emb
