"""Alignment and uniformity of session and intent embeddings (LLM4SBR eq. 8-9; Wang & Isola 2020; DirectAU, Wang et al. 2022).

Leading dimensions (`...`, here the views) are computed at once: on small catalogues every further tensor operation of a step counts.
"""

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
    both = normalize(torch.stack([h, t]), dim=-1)  # [2, ..., B, H]
    uniform = _uniformity(both, weight, 2.0).sum(0) / 2
    return _alignment(both[0], both[1], weight) + uniform


def _alignment(x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """`alignment` of rows of length 1."""
    distance = (x - y).square().sum(-1)  # [..., B]
    if weight is None:
        return distance.mean(-1)
    return (distance * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def _uniformity(x: Tensor, weight: Tensor | None, t: float) -> Tensor:
    """`uniformity` of rows of length 1."""
    # On the unit sphere |a - b|^2 = 2 - 2ab. Unlike torch.pdist, this has a finite gradient where two rows are equal.
    logits = 2 * t * (x @ x.mT - 1)  # [..., B, B]
    logits.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)  # a row makes no pair with itself
    weight = x.new_ones(x.shape[-2]) if weight is None else weight.to(x.dtype)
    total = (logits.exp() * (weight.unsqueeze(-1) * weight.unsqueeze(-2))).sum((-2, -1))  # counts every pair twice
    count = weight.sum(-1).square() - weight.square().sum(-1)
    return torch.where(count > 0, total / count.clamp(min=1), 1.0).log()
