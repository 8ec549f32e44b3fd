"""TAGNN: target attentive graph neural network (Yu et al., SIGIR 2020), on packed session graphs.

The session embedding depends on the candidate item t (eq. 5-8): s_t = W_3 [sum_i beta_it h_i ; s_local ; s_global], and its score is
s_t . v_t. Written out as a [B, n_items, H] tensor that is 31 GB at B = 4096 and 30,000 items. But the score splits exactly into

    s_t . v_t = (W_3' [s_global ; s_local]) . v_t + sum_i beta_it (W_3'' h_i) . v_t

so two numbers per (click, item) are enough, [N, n_items]. They are taken over pieces of the catalogue that stay in a processor's cache;
where they are too many to be kept, they are computed again on the way back.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm4sbr.model.backbones.srgnn import SRGNN
from recbole_llm4sbr.model.contract import SessionEmbeddings

_PIECE = 500_000  # numbers of one [N, items] matrix that are worked on at once
_KEPT = 32_000_000  # numbers of such a matrix up to which it is kept for the way back


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
        low = (
            torch.bfloat16 if torch.is_autocast_enabled(table.device.type) else table.dtype
        )  # of products; sums are the table's
        with torch.autocast(table.device.type, enabled=False):
            attended = _TargetScores.apply(  # type: ignore[no-untyped-call]
                table, keys.to(table.dtype), values.to(table.dtype), row, len(session), low
            )
        scores: Tensor = session @ table.T + attended
        return scores


class _TargetScores(torch.autograd.Function):
    """sum_i beta_it (values_i . v_t) with beta the softmax over a session's clicks of keys_i . v_t (eq. 5-6), [rows, n].

    The gradient is written by hand, since on matrices of this size every needless copy counts: with m = values V^T, out = sum beta m,
    d m = g beta and d logits = g beta (m - out).

    Args of `apply`:
        items: the item table, [n, H].
        keys, values: per click, [N, H].
        row: session row of each click, in order, [N].
        rows: number of sessions.
        low: type in which numbers are multiplied, for the products of matrices alone.
    """

    @staticmethod
    def forward(ctx: Any, items: Tensor, keys: Tensor, values: Tensor, row: Tensor, rows: int, low: torch.dtype) -> Tensor:
        out = keys.new_empty(rows, len(items))
        kept: list[Tensor] = []
        keep = any(ctx.needs_input_grad) and len(keys) * len(items) <= _KEPT
        few, scratch = (keys.to(low), values.to(low)), _Scratch(keys)
        for at in _pieces(items, keys):
            beta, products = _attention(items[at], *few, row, rows, scratch)
            out[:, at] = torch.zeros_like(out[:, at]).index_add_(0, row, torch.mul(beta, products, out=scratch(0, at)))
            kept += (beta, products) if keep else ()
        ctx.save_for_backward(items, keys, values, row, out, *kept)
        ctx.low = low
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        items, keys, values, row, out, *kept = ctx.saved_tensors
        few, scratch = (keys.to(ctx.low), values.to(ctx.low)), _Scratch(keys)
        by_items, by_keys, by_values = torch.empty_like(items), torch.zeros_like(keys), torch.zeros_like(values)
        for number, at in enumerate(_pieces(items, keys)):
            beta, products = kept[2 * number : 2 * number + 2] if kept else _attention(items[at], *few, row, len(out), scratch)
            by_product, by_logit = scratch(0, at), scratch(1, at)
            torch.index_select(grads[0][:, at], 0, row, out=by_product).mul_(beta)
            torch.index_select(out[:, at], 0, row, out=by_logit).neg_().add_(products).mul_(by_product)
            by_product, by_logit, piece = by_product.to(ctx.low), by_logit.to(ctx.low), items[at].to(ctx.low)
            by_items[at] = torch.addmm(by_logit.T @ few[0], by_product.T, few[1])
            by_keys += by_logit @ piece
            by_values += by_product @ piece
        return by_items, by_keys, by_values, None, None, None


class _Scratch:
    """Memory for two matrices [N, w] that every piece uses again, so that it stays in the cache."""

    def __init__(self, keys: Tensor) -> None:
        self._memory = [keys.new_empty(len(keys) * max(1, _PIECE // len(keys))) for _ in range(2)]
        self._rows = len(keys)

    def __call__(self, which: int, at: slice) -> Tensor:
        width = at.stop - at.start
        return self._memory[which][: self._rows * width].view(self._rows, width)


def _pieces(items: Tensor, keys: Tensor) -> list[slice]:
    """Slices of the item table with about `_PIECE` numbers for the clicks of a batch."""
    width = max(1, _PIECE // len(keys))
    return [slice(start, min(start + width, len(items))) for start in range(0, len(items), width)]


def _attention(items: Tensor, keys: Tensor, values: Tensor, row: Tensor, rows: int, scratch: _Scratch) -> tuple[Tensor, Tensor]:
    """beta, the softmax over a session's clicks of keys times items [w, H], and values times items, both [N, w] in the items' type."""
    few, at = items.to(keys.dtype).T, slice(0, len(items))
    beta = (keys @ few).to(items.dtype)
    peak = beta.new_full((rows, len(items)), -torch.inf).scatter_reduce(0, row.unsqueeze(1).expand_as(beta), beta, "amax")
    beta.sub_(torch.index_select(peak, 0, row, out=scratch(0, at))).exp_()
    total = torch.zeros_like(peak).index_add_(0, row, beta)
    beta.div_(torch.index_select(total, 0, row, out=scratch(0, at)))
    return beta, (values @ few).to(items.dtype)
