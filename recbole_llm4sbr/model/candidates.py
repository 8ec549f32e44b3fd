"""Which items are candidates: under `repeatable: false` none that the session holds, in the loss and in the scores; ranks among them."""

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


def target_ranks(scores: Tensor, target: Tensor) -> Tensor:
    """Each target's rank among the candidates, behind all others of its score; 0 for a target that is no candidate, [B].

    Args:
        scores: -inf for what is no candidate, [B, n_items].
        target: [B].

    >>> target_ranks(torch.tensor([[-torch.inf, 3.0, 1.0, 1.0], [-torch.inf, 2.0, 2.0, -torch.inf]]), torch.tensor([2, 3]))
    tensor([3, 0])
    """
    own = scores.gather(1, target.unsqueeze(1))  # [B, 1]
    not_below = scores.size(1) - (scores < own).sum(1)  # with those that are nan
    return not_below * (own > -torch.inf).squeeze(1)


def best_candidates(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best candidates of each row, best first, and their scores; -inf and item 0 where there are no more.

    Equal scores come in one order on all machines: one drawn at random, since item numbers follow the items' ids.

    Args:
        scores: -inf for what is no candidate, padding included, [B, n_items].
        k: at most n_items - 1.

    Returns:
        Scores and items, [B, k] each.
    """
    best, items = scores.topk(k + 1)
    tied = (best[:, 1:] == best[:, :-1]).any(1)
    if tied.any():
        order = torch.randperm(scores.size(1), generator=torch.Generator().manual_seed(0)).to(scores.device)
        found, place = scores[tied][:, order].sort(dim=1, descending=True, stable=True)
        best[tied], items[tied] = found[:, : k + 1], order[place[:, : k + 1]]
    return best[:, :k], items.masked_fill(best == -torch.inf, 0)[:, :k]
