"""Statistics of a comparison over the same test sessions: metrics per session, paired test, interval, Holm's correction."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

Numbers = npt.NDArray[np.float64]
RESAMPLES = 2000
PER_SESSION = ("hit", "mrr", "ndcg")  # RecBole's metrics that have a value for each session


def session_metric(rank: npt.NDArray[np.int32], name: str) -> Numbers:
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
        reciprocal: Numbers = found / safe
        return reciprocal
    if metric == "ndcg":
        gain: Numbers = found / np.log2(safe + 1)
        return gain
    raise ValueError(f"metric {name!r} has no value per session; choose Hit, MRR or NDCG")


def paired_p(a: Numbers, b: Numbers) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test on paired values [R]; sessions without a difference are left out."""
    difference = b - a
    if not difference.any():
        return 1.0
    return float(stats.wilcoxon(difference, zero_method="wilcox", method="approx").pvalue)


def improvement(a: Numbers, b: Numbers, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float, float]:
    """By how many percent the mean of `b` [R] is above that of `a` [R], with a 95 % bootstrap interval over the pairs.

    nan where the mean of `a` is 0; the interval is nan with a single row.
    """
    if not a.any():
        return float("nan"), float("nan"), float("nan")

    def percent(x: Numbers, y: Numbers, axis: int = -1) -> Numbers:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio: Numbers = 100 * (y.mean(axis=axis) / x.mean(axis=axis) - 1)
        return ratio

    if len(a) < 2:
        return float(percent(a, b)), float("nan"), float("nan")
    found = stats.bootstrap(
        (a, b), percent, paired=True, vectorized=True, method="percentile", n_resamples=resamples, batch=max(1, 10**6 // len(a)),
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    ratios = found.bootstrap_distribution  # resamples in which `a` has no hit at all have none
    low, high = np.percentile(ratios[np.isfinite(ratios)], [2.5, 97.5])
    return float(percent(a, b)), float(low), float(high)


def holm(values: Sequence[float]) -> list[float]:
    """P-values of a family of tests, adjusted by Holm's step-down method (Holm 1979)."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted
