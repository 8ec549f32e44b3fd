"""Alignment and uniformity of session and intent embeddings (LLM4SBR eq. 8-9; Wang & Isola 2020; DirectAU, Wang et al. 2022)."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def alignment(x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared distance of paired rows on the unit sphere (eq. 8, first part).

    Args:
        x, y: embeddings, [B, H]; normalised here.
        weight: 1 for rows that count and 0 for the others, [B]; all count by default.

    Returns:
        A scalar in 0..4; 0 when no row counts.
    """
    distance = (normalize(x, dim=-1) - normalize(y, dim=-1)).square().sum(-1)  # [B]
    if weight is None:
        return distance.mean()
    return (distance * weight).sum() / weight.sum().clamp(min=1)


def uniformity(x: Tensor, weight: Tensor | None = None, t: float = 2.0) -> Tensor:
    """Log of the mean Gaussian kernel over all pairs of rows; lower is more uniform (eq. 8, second part).

    Args:
        x: embeddings, [B, H]; normalised here.
        weight: 1 for rows that count and 0 for the others, [B]; all count by default.
        t: kernel width, 2 as in the paper.

    Returns:
        A scalar; 0 when fewer than two rows count, since one row has no pair.
    """
    x = normalize(x, dim=-1)
    # |a - b|^2 = 2 - 2ab on the unit sphere; unlike torch.pdist this has a gradient for equal rows and none is nan
    kernel = (2 * t * (x @ x.T - 1)).exp()  # [B, B]
    weight = x.new_ones(len(x)) if weight is None else weight.to(x.dtype)
    pairs = (weight.unsqueeze(1) * weight).triu(1)  # [B, B]
    count = pairs.sum()
    mean = (kernel * pairs).sum() / count.clamp(min=1)
    return torch.where(count > 0, mean, torch.ones_like(mean)).log()


def alignment_uniformity(h: Tensor, t: Tensor, weight: Tensor | None = None) -> Tensor:
    """L_AU of one view: align(h, t) + (uniform(h) + uniform(t)) / 2 (eq. 9)."""
    return alignment(h, t, weight) + (uniformity(h, weight) + uniformity(t, weight)) / 2
