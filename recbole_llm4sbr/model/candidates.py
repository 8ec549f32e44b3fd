"""Which items are candidates: under `repeatable: false` none that the session holds, in the loss and in the scores."""

from typing import Any

import torch
from torch import Tensor, nn


def settled_repeatable(config: Any) -> bool:
    """`repeatable` of a run whose data are prepared.

    Raises:
        ValueError: it is still `auto`, which `data.checks.settled` replaces.
    """
    if not isinstance(config["repeatable"], bool):
        raise ValueError(
            f"repeatable={config['repeatable']!r} is not settled; data.checks.settled reads it off the prepared data"
        )
    return config["repeatable"]


def exclude_clicked(scores: Tensor, item_seq: Tensor, target: Tensor | None = None) -> Tensor:
    """Write -inf into the scores of padding and of the sessions' own items.

    The gradient knows nothing of it and needs not: that of cross-entropy is 0 where a score is -inf.

    Args:
        scores: [B, n_items]; changed in place.
        item_seq: the clicks that the model reads, zeros behind the last, [B, L].
        target: items that stay candidates even where their session holds them, so that the loss is finite, [B].

    Returns:
        `scores`.

    >>> exclude_clicked(torch.zeros(2, 4), torch.tensor([[2, 3], [1, 0]]), torch.tensor([3, 2]))
    tensor([[-inf, 0., -inf, 0.],
            [-inf, -inf, 0., 0.]])
    """
    if target is not None:
        item_seq = item_seq.masked_fill(item_seq == target.unsqueeze(1), 0)
    values = scores.detach()
    values[:, 0] = -torch.inf
    values.scatter_(1, item_seq, -torch.inf)
    return scores


def cross_entropy(scores: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over the candidates (eq. 14), a scalar.

    Args:
        scores: -inf for what is no candidate, [B, n_items].
        target: [B].
        smoothing: share of the probability that is spread evenly over the candidates (Szegedy et al. 2016).
    """
    if not smoothing:
        return nn.functional.cross_entropy(scores, target)
    logs = scores.log_softmax(-1)
    candidates = scores > -torch.inf
    spread = torch.where(candidates, logs, 0).sum(1) / candidates.sum(1)  # [B]
    return -((1 - smoothing) * logs.gather(1, target.unsqueeze(1)).squeeze(1) + smoothing * spread).mean()
