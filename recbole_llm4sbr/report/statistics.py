"""Statistics of a comparison over the same test sessions: paired test, interval, correction, verdict."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

Numbers = npt.NDArray[np.float64]
LEVEL = 0.05
_EXACT = 13  # pairs whose 2 ** n signs are all looked at
_DIGITS = 12  # of a difference of metrics; what is smaller is rounding
_NO_BOUND = 10_000.0  # percent; an improvement of which no more is known than that it may be larger
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


def improvement(a: Numbers, b: Numbers) -> tuple[float, float, float]:
    """By how many percent the mean of `b` is above that of `a`, with a 95 % interval for other sessions and other training runs.

    The metric of model m in its run r on session s is taken as

        y[m, r, s] = mean[m] + session[m, s] + run[m, r] + noise[m, r, s]

    All runs of both models meet the same sessions, so the models are paired by session. Runs are taken as independent; where runs of the
    same seed are alike, the interval is too wide rather than too narrow. A model's mean over n runs and R sessions has the variance

        var(session) / R  +  var(noise) / (n R)  +  var(run) / n

    The variance of the sessions' means, divided by R, estimates the first two terms; that of the runs' means, divided by n, the last two.
    Noise is in both and counted once: of the runs only what exceeds it is added. The interval is that of the log of the ratio of the
    means, whose variance is that of the difference of the metrics relative to their means (delta method), by Student's quantile with
    Satterthwaite's degrees of freedom over sessions (R - 1) and the runs of each model (n - 1). A single run shows no spread of runs: its
    interval is over sessions alone.

    Args:
        a, b: a metric, never negative, of each session for each training run, [runs, R].

    Returns:
        Improvement, lower and upper end, which is inf where it is beyond `_NO_BOUND`. nan where the mean of `a` is 0; the interval is nan
        with a single session.
    """
    before, after, rows = float(a.mean()), float(b.mean()), a.shape[1]
    if before == 0:
        return float("nan"), float("nan"), float("nan")
    percent = float(np.round(100 * (after / before - 1), _DIGITS))
    if rows < 2:
        return percent, float("nan"), float("nan")
    if after == 0:
        return percent, percent, percent
    x, y = a / before, b / after
    sessions = float((y.mean(0) - x.mean(0)).var(ddof=1)) / rows
    runs, noise = np.array([_variance_of_runs(x), _variance_of_runs(y)]).T
    variance = sessions + float(np.maximum(0, runs - noise).sum())
    freedom = np.array([rows - 1, *(max(1, len(each) - 1) for each in (a, b))])
    uncertainty = float((np.array([sessions, *runs]) ** 2 / freedom).sum())
    least = freedom[[True, *(runs > 0)]].min()  # of the sources that there are; no sum of them has fewer
    total = max(least, variance**2 / uncertainty) if uncertainty > 0 else np.inf
    factor = np.exp(stats.t.ppf(1 - LEVEL / 2, total) * np.sqrt(variance))
    low, high = (float(np.round(100 * (after / before * each - 1), _DIGITS)) for each in (1 / factor, factor))
    return percent, low, high if high < _NO_BOUND else np.inf


def _variance_of_runs(values: Numbers) -> tuple[float, float]:
    """The variance of the mean over runs, [runs, R], as the runs' means show it, and how much of that their noise makes by itself."""
    runs, rows = values.shape
    if runs < 2:
        return 0.0, 0.0
    means = values.mean(1)
    noise = values - values.mean(0) - means[:, None] + values.mean()
    return float(means.var(ddof=1)) / runs, float((noise**2).sum()) / ((runs - 1) * (rows - 1) * rows * runs)


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
