"""Alignment and uniformity of session and intent embeddings (LLM4SBR eq. 8-9; Wang & Isola 2020; DirectAU, Wang et al. 2022).

Leading dimensions (`...`, here the views) are computed at once: on small catalogues every further tensor operation of a step counts.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize


def alignment(x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared distance of paired rows on the unit sphere (eq. 8, first part).

    Args:
        x, y: embeddings, [..., B, H]; normalised here.
        weight: 1 for rows that count and 0 for the others, [..., B]; all count by default.

    Returns:
        Numbers in 0..4, [...]; 0 when no row counts.

    >>> alignment(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])).item()  # at right angles
    2.0
    """
    return _alignment(normalize(x, dim=-1), normalize(y, dim=-1), weight)


def uniformity(x: Tensor, weight: Tensor | None = None, t: float = 2.0) -> Tensor:
    """Log of the mean Gaussian kernel over all pairs of rows; lower is more uniform (eq. 8, second part).

    Args:
        x: embeddings, [..., B, H]; normalised here.
        weight: 1 for rows that count and 0 for the others, [..., B]; all count by default.
        t: kernel width, 2 as in the paper.

    Returns:
        Numbers, [...]; 0 when fewer than two rows count, since one row has no pair.

    >>> opposite, equal = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.ones(2, 2)
    >>> round(uniformity(opposite).item(), 4), round(uniformity(equal).item(), 4) + 0.0
    (-8.0, 0.0)
    """
    return _uniformity(normalize(x, dim=-1), weight, t)


def alignment_uniformity(h: Tensor, t: Tensor, weight: Tensor | None = None) -> Tensor:
    """L_AU of each view: align(h, t) + (uniform(h) + uniform(t)) / 2 (eq. 9).

    Args:
        h, t: session embeddings and projected intents, [..., B, H]; normalised here.
        weight: 1 for sessions with an intent and 0 for the others, [..., B]; all count by default.

    Returns:
        Numbers, [...].
    """
    return paired_alignment_uniformity(torch.stack([h, t]), weight)


def paired_alignment_uniformity(both: Tensor, weight: Tensor | None = None) -> Tensor:
    """`alignment_uniformity` of h and t in one tensor, [2, ..., B, H]."""
    if both.dtype in (torch.float16, torch.bfloat16):  # sums of many terms
        both = both.float()
    with torch.autocast(both.device.type, enabled=False):
        loss: Tensor = _AlignmentUniformity.apply(both, weight)  # type: ignore[no-untyped-call]
    return loss


class _AlignmentUniformity(torch.autograd.Function):
    """L_AU, and on the way its gradient, which autograd would need twice the time for.

    With x and y the rows of h and t on the unit sphere, w their weights, W = sum w, K_ij = w_i w_j exp(2t (x_i x_j - 1)) without its
    diagonal and T = sum K, the loss is sum_i w_i |x_i - y_i|^2 / W + (log T_x + log T_y) / 2 + constant. So d loss / d x_i =
    2 w_i (x_i - y_i) / W + 2t sum_j K_ij x_j / T, and from x to h it is the part at right angles to x, divided by |h|.

    Args of `apply`:
        both: h and t, [2, ..., B, H].
        weight: [..., B], or None.
    """

    @staticmethod
    def forward(ctx: Any, both: Tensor, weight: Tensor | None) -> Tensor:
        length = torch.linalg.vector_norm(both, dim=-1, keepdim=True).clamp_min_(
            1e-12
        )  # [2, ..., B, 1], bounded as in `normalize`
        unit = both / length
        weight = both.new_ones(both.shape[1:-1]) if weight is None else weight.to(both.dtype)  # [..., B]
        kernels = _kernels(unit, weight, 2.0)  # [2, ..., B, B]
        total, pairs = kernels.sum((-2, -1)), _pairs(weight)  # [2, ...], [...]
        apart = unit[0] - unit[1]  # [..., B, H]
        share = weight / weight.sum(-1, keepdim=True).clamp(min=1)  # [..., B]
        aligned = (apart.square().sum(-1) * share).sum(-1)  # [...]
        if ctx.needs_input_grad[0]:
            by_unit = (kernels @ unit).mul_(torch.where(pairs > 0, 4.0 / total, 0.0)[..., None, None])
            pull = apart * (2 * share).unsqueeze(-1)
            by_unit[0] += pull
            by_unit[1] -= pull
            ctx.save_for_backward(by_unit.sub_(unit * (unit * by_unit).sum(-1, keepdim=True)).div_(length))
        loss: Tensor = aligned + _log_mean(total, pairs).sum(0) / 2
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        by_both: Tensor = ctx.saved_tensors[0]
        return by_both * grads[0][..., None, None], None


def _alignment(x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """`alignment` of rows of length 1."""
    distance = (x - y).square().sum(-1)  # [..., B]
    if weight is None:
        return distance.mean(-1)
    return (distance * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def _uniformity(x: Tensor, weight: Tensor | None, t: float) -> Tensor:
    """`uniformity` of rows of length 1."""
    weight = x.new_ones(x.shape[-2]) if weight is None else weight.to(x.dtype)
    return _log_mean(_kernels(x, weight, t).sum((-2, -1)), _pairs(weight))


def _kernels(x: Tensor, weight: Tensor, t: float) -> Tensor:
    """Gaussian kernel of every two rows of length 1 times both their weights, 0 for a row with itself, [..., B, B]."""
    # On the unit sphere |a - b|^2 = 2 - 2ab. Unlike torch.pdist, this has a finite gradient where two rows are equal.
    logits = 2 * t * (x @ x.mT - 1)
    logits.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)  # a row makes no pair with itself
    return logits.exp() * (weight.unsqueeze(-1) * weight.unsqueeze(-2))


def _pairs(weight: Tensor) -> Tensor:
    """How many pairs of rows count, each counted twice, [...]."""
    return weight.sum(-1).square() - weight.square().sum(-1)


def _log_mean(total: Tensor, pairs: Tensor) -> Tensor:
    """Log of `total` over `pairs`; 0 where there is no pair."""
    return torch.where(pairs > 0, total / pairs.clamp(min=1), 1.0).log()
