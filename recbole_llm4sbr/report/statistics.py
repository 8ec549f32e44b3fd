"""Statistics of a comparison over the same test sessions: paired test, interval, correction, verdict."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

Numbers = npt.NDArray[np.float64]
RESAMPLES = 2000
LEVEL = 0.05
_EXACT = 13  # pairs whose 2 ** n signs are all looked at
_DIGITS = 12  # of a difference of metrics; what is smaller is rounding
UNFINISHED_RUN = "unfinished: not judged"
ONE_SEED = "one seed: not judged"


def paired_p(a: Numbers, b: Numbers) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test on paired values [R]; pairs without a difference are left out.

    Exact where few pairs differ (all `2 ** n` signs up to `_EXACT`, and Wilcoxon's own table up to 50 without ties), else by the normal
    approximation.
    """
    difference = np.round(b - a, _DIGITS)  # sums in another order differ in the last digit
    difference = difference[difference != 0]
    if len(difference) < 2:  # either sign of a single one is as extreme
        return 1.0
    method = stats.PermutationMethod(n_resamples=2**_EXACT) if len(difference) <= _EXACT else "auto"
    return float(stats.wilcoxon(difference, method=method).pvalue)


def improvement(a: Numbers, b: Numbers, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float, float]:
    """By how many percent the mean of `b` is above that of `a`, with a 95 % interval by a hierarchical bootstrap over seeds and sessions.

    In each resample the sessions are drawn anew, the same for both, and then for each of the two its training runs. Few runs show too
    little of their spread: their deviations are widened by sqrt(n / (n - 1)) (the bootstrap's variance of n values is too small by
    that factor) and by the ratio of Student's quantile with 2 (n - 1) degrees of freedom to the normal one. A single run has no spread:
    its interval is over sessions alone.

    Args:
        a, b: a metric of each session for each training run, [seeds, R].
        resamples: of the bootstrap.
        seed: of its draws.

    Returns:
        Improvement, lower and upper end, inf where resamples of `a` have no hit at all. nan where the mean of `a` is 0; the interval is
        nan with a single session.
    """
    before, after = float(a.mean()), float(b.mean())
    if before == 0:
        return float("nan"), float("nan"), float("nan")
    percent = float(np.round(100 * (after / before - 1), _DIGITS))
    rows = a.shape[1]
    if rows < 2:
        return percent, float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    both = np.concatenate([a, b]).T  # [R, seeds of a + seeds of b]
    drawn = (np.bincount(rng.integers(rows, size=rows), minlength=rows) for _ in range(resamples))
    means = np.stack([weights @ both / rows for weights in drawn])  # of each run in each resample
    x, y = (_resampled_seeds(each, rng) for each in (means[:, : len(a)], means[:, len(a) :]))
    y = np.maximum(y, 0)  # no metric is negative, which a widened mean may be
    with np.errstate(divide="ignore", invalid="ignore"):
        # where `a` has no hit at all the improvement on it has no bound, or is none where `b` has none either
        ratios = np.where(x > 0, 100 * (y / x - 1), np.where(y > 0, np.inf, 0.0))
    ends = np.percentile(ratios, [2.5, 97.5], method="linear" if np.isfinite(ratios).all() else "nearest")
    low, high = np.round(ends, _DIGITS).tolist()
    return percent, low, high


def _resampled_seeds(means: Numbers, rng: np.random.Generator) -> Numbers:
    """Means over runs drawn anew in each resample, their deviations widened as `improvement` says.

    Args:
        means: of each run in each resample, [resamples, seeds].
        rng: draws the runs.
    """
    count = means.shape[1]
    centre: Numbers = means.mean(1)
    if count == 1:
        return centre
    drawn = np.take_along_axis(means, rng.integers(count, size=means.shape), 1).mean(1)
    student = float(stats.t.ppf(0.975, 2 * (count - 1)) / stats.norm.ppf(0.975))
    widened: Numbers = centre + np.sqrt(count / (count - 1)) * student * (drawn - centre)
    return widened


def verdict(low: float, high: float, p: float, seeds: int, level: float = LEVEL, *, unfinished: bool = False) -> str:
    """`better` or `worse` where the interval and the test agree that there is a difference, else `no`.

    Args:
        low, high: interval of the improvement in percent, over seeds and sessions.
        p: of the test over sessions, corrected.
        seeds: training runs of each of the two; a single one is not judged.
        level: of the test.
        unfinished: whether a run of either is unfinished; they are not judged then, whatever the numbers say.

    >>> verdict(1.0, 4.0, 0.01, 5), verdict(-4.0, -1.0, 0.01, 5), verdict(-1.0, 4.0, 1e-8, 5)
    ('better', 'worse', 'no')
    >>> verdict(1.0, 4.0, 0.01, 1), verdict(1.0, 4.0, 0.01, 5, unfinished=True)
    ('one seed: not judged', 'unfinished: not judged')
    """
    if unfinished:
        return UNFINISHED_RUN
    if seeds < 2:
        return ONE_SEED
    if not p < level:
        return "no"
    return "better" if low > 0 else "worse" if high < 0 else "no"


def holm(values: Sequence[float]) -> list[float]:
    """P-values of a family of tests, adjusted by Holm's step-down method (Holm 1979)."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted
