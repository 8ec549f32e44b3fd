"""TAGNN: target attentive graph neural network (Yu et al., SIGIR 2020), on packed session graphs.

The session embedding depends on the candidate item t (eq. 5-8): s_t = W_3 [sum_i beta_it h_i ; s_local ; s_global], and its score is
s_t . v_t. Written out as a [B, n_items, H] tensor that is 31 GB at B = 4096 and 30,000 items. But the score splits exactly into

    s_t . v_t = (W_3' [s_global ; s_local]) . v_t + sum_i beta_it (W_3'' h_i) . v_t

so two numbers per (click, item) are enough, [N, n_items], taken over pieces of the catalogue and computed again on the way back.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recbole_llm4sbr.model.backbones.srgnn import SRGNN
from recbole_llm4sbr.model.session import SessionViews

_PIECE = 8_000_000  # numbers in one [N, items] matrix


class TAGNN(SRGNN):
    """TAGNN. Local and global as in SR-GNN (eq. 3-4); target attention in `score`.

    Args:
        config: reads `embedding_size` and `step`.
        dataset: RecBole's dataset.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        size = config["embedding_size"]
        self.linear_target = nn.Linear(size, size, bias=False)  # W of eq. 5
        self.linear_mix = nn.Linear(size, size, bias=False)  # the part of W_3 (eq. 8) that takes s_target
        for layer in (self.linear_target, self.linear_mix):
            nn.init.uniform_(layer.weight, -1 / math.sqrt(size), 1 / math.sqrt(size))

    def encode(self, interaction: Any) -> SessionViews:
        """As SR-GNN; `memo` holds the graph and the node states."""
        views = super().encode(interaction)
        graph, hidden = views.memo
        keys, values = self.linear_target(hidden)[graph.click_node], self.linear_mix(hidden)[graph.click_node]  # [N, H] each
        return SessionViews(views.local_emb, views.global_emb, (graph.click_row, keys, values))

    def score(self, session: Tensor, views: SessionViews) -> Tensor:
        """Scores of all items (eq. 9), [B, n_items]."""
        row, keys, values = views.memo
        width = max(1, _PIECE // len(row))
        pieces = [
            checkpoint(_target_scores, items, keys, values, row, len(session), use_reentrant=False)
            for items in torch.split(self.item_table, width)
        ]
        return session @ self.item_table.T + torch.cat(pieces, 1)


def _target_scores(items: Tensor, keys: Tensor, values: Tensor, row: Tensor, rows: int) -> Tensor:
    """sum_i beta_it (values_i . v_t) with beta the softmax over a session's clicks of keys_i . v_t (eq. 5-6).

    Args:
        items: a piece of the item table, [n, H].
        keys, values: per click, sessions one after the other, [N, H].
        row: session row of each click, in order, [N].
        rows: number of sessions.

    Returns:
        [rows, n].
    """
    logits = keys @ items.T  # [N, n]
    lengths = torch.bincount(row, minlength=rows)
    peak = torch.segment_reduce(logits.detach(), "max", lengths=lengths, axis=0)  # [rows, n]
    weights = (logits - peak[row]).exp()
    zeros = logits.new_zeros(rows, len(items))
    total = zeros.index_add(0, row, weights)
    return zeros.index_add(0, row, weights * (values @ items.T)) / total
