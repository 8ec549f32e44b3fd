"""TAGNN: target attentive graph neural network (Yu et al., SIGIR 2020), on packed session graphs.

The session embedding depends on the candidate item t (eq. 5-8): s_t = W_3 [sum_i beta_it h_i ; s_local ; s_global], and its score is
s_t . v_t. Written out as a [B, n_items, H] tensor that is 31 GB at B = 4096 and 30,000 items. But the score splits exactly into

    s_t . v_t = (W_3' [s_global ; s_local]) . v_t + sum_i beta_it (W_3'' h_i) . v_t

so two numbers per (click, item) are enough, [N, n_items]. Where even they are too many they are taken over pieces of the catalogue and
computed again on the way back.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recbole_llm4sbr.model.backbones.srgnn import SRGNN
from recbole_llm4sbr.model.contract import SessionEmbeddings

_PIECE = 8_000_000  # numbers in one [N, items] matrix


class TAGNN(SRGNN):
    """TAGNN. Local and global as in SR-GNN (eq. 3-4); target attention in `score`.

    Args:
        config: reads `embedding_size` and `step`.
        dataset: RecBole's dataset.
    """

    dot_only = True

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        size = config["embedding_size"]
        self.linear_target = nn.Linear(size, size, bias=False)  # W of eq. 5
        self.linear_mix = nn.Linear(size, size, bias=False)  # the part of W_3 (eq. 8) that takes s_target
        for layer in (self.linear_target, self.linear_mix):
            nn.init.uniform_(layer.weight, -1 / math.sqrt(size), 1 / math.sqrt(size))

    def encode(self, interaction: Any) -> SessionEmbeddings:
        """As SR-GNN; `memo` holds the graph and the node states."""
        embeddings = super().encode(interaction)
        graph, hidden = embeddings.memo
        keys, values = graph.at_clicks(self.linear_target(hidden)), graph.at_clicks(self.linear_mix(hidden))  # [N, H] each
        return SessionEmbeddings(embeddings.local_emb, embeddings.global_emb, (graph.click_row, keys, values))

    def score(self, session: Tensor, embeddings: SessionEmbeddings) -> Tensor:
        """Scores of all items (eq. 9), [B, n_items]."""
        row, keys, values = embeddings.memo
        table = self.item_table
        keys, values = keys.to(table.dtype), values.to(table.dtype)
        width = max(1, _PIECE // len(row))
        with torch.autocast(table.device.type, enabled=False):  # a softmax over sums of many terms
            pieces = [
                _TargetScores.apply(items, keys, values, row, len(session))  # type: ignore[no-untyped-call]
                if width >= self.n_items
                else checkpoint(_TargetScores.apply, items, keys, values, row, len(session), use_reentrant=False)
                for items in torch.split(table, width)
            ]
        scores: Tensor = session @ table.T + (torch.cat(pieces, 1) if len(pieces) > 1 else pieces[0])
        return scores


class _TargetScores(torch.autograd.Function):
    """sum_i beta_it (values_i . v_t) with beta the softmax over a session's clicks of keys_i . v_t (eq. 5-6), [rows, n].

    The gradient is written by hand, since on matrices of this size every needless copy counts: with m = values V^T, out = sum beta m,
    d m = g beta and d logits = g beta (m - out).

    Args of `apply`:
        items: a piece of the item table, [n, H].
        keys, values: per click, [N, H].
        row: session row of each click, [N].
        rows: number of sessions.
    """

    @staticmethod
    def forward(ctx: Any, items: Tensor, keys: Tensor, values: Tensor, row: Tensor, rows: int) -> Tensor:
        beta = keys @ items.T  # [N, n]
        index = row.unsqueeze(1).expand(-1, len(items))
        peak = beta.new_full((rows, len(items)), -torch.inf).scatter_reduce(0, index, beta, "amax")
        beta.sub_(peak[row]).exp_()
        beta.div_(torch.zeros_like(peak).index_add_(0, row, beta)[row])
        products = values @ items.T  # [N, n]
        out = torch.zeros_like(peak).index_add_(0, row, beta * products)
        ctx.save_for_backward(items, keys, values, row, beta, products, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        items, keys, values, row, beta, products, out = ctx.saved_tensors
        by_product = grads[0][row].mul_(beta)  # [N, n]
        by_logit = (products - out[row]).mul_(by_product)
        by_items = by_logit.T @ keys + by_product.T @ values
        return by_items, by_logit @ items, by_product @ items, None, None
