"""Metrics of single test rows from the rank of their target, as RecBole defines them."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

PER_SESSION = ("hit", "mrr", "ndcg")  # RecBole's metrics that have a value for each session


NO_SHARES = ("averagepopularity", "shannonentropy")  # RecBole's metrics that are no share of anything


def shown_by(metric: str) -> float:
    """What a metric's value is multiplied by to be read: 100 for a share in percent, 1 for what is none.

    >>> shown_by("Hit@20"), shown_by("AveragePopularity@10")
    (100.0, 1.0)
    """
    return 1.0 if metric.lower().partition("@")[0] in NO_SHARES else 100.0


def units(metrics: Iterable[str]) -> str:
    """In what metrics are read, in words.

    >>> units(["Hit@5", "MRR@5"]), units(["hit@5", "averagepopularity@5", "averagepopularity@10"])
    ('in percent', 'in percent (averagepopularity: as it is)')
    """
    counted = dict.fromkeys(metric.partition("@")[0] for metric in metrics if shown_by(metric) == 1)
    return f"in percent ({' and '.join(counted)}: as it is)" if counted else "in percent"


def session_metric(rank: npt.NDArray[np.int32], name: str) -> npt.NDArray[np.float64]:
    """A metric of each row, as RecBole defines it for one relevant item.

    Args:
        rank: of the target, from 1 on; 0 where it was not found, [..., R].
        name: `Hit@20`, `MRR@5`, `NDCG@10`, in any case.

    Raises:
        ValueError: another metric.
    """
    metric, _, cutoff = name.lower().partition("@")
    found = (rank > 0) & (rank <= int(cutoff))
    safe = np.where(found, rank, 1)
    if metric == "hit":
        return found.astype(np.float64)
    if metric == "mrr":
        reciprocal: npt.NDArray[np.float64] = found / safe
        return reciprocal
    if metric == "ndcg":
        gain: npt.NDArray[np.float64] = found / np.log2(safe + 1)
        return gain
    raise ValueError(f"metric {name!r} has no value per session; choose Hit, MRR or NDCG")


def is_per_session(metric: str) -> bool:
    """Whether a metric has a value for every session."""
    return metric.lower().partition("@")[0] in PER_SESSION
