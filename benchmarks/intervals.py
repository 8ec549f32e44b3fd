"""What the interval of an improvement and the verdict are worth, by simulation: chance called a difference, coverage, power.

    python benchmarks/intervals.py

It takes about two minutes. Reciprocal ranks at 20 of simulated sessions, most of them zeros: the log of the target's rank is the
session's ease + what the model makes of this session + a run's own quality + noise. With the spreads below 20 % of the targets are
among the first twenty, and runs differ by 5 % of their MRR@20, as those of the larger grids in results/ do (3 to 7 %). The older rule
is the hierarchical bootstrap over sessions and runs that reports had before; its draws have the noise more than once.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from recbole_llm4sbr.base.metrics import session_metric
from recbole_llm4sbr.report.statistics import LEVEL, improvement, paired_p, verdict

Numbers = npt.NDArray[np.float64]
EASE, SPREAD_OF_SESSIONS, NOISE, OF_THE_MODEL, OF_RUNS = 4.7, 2.0, 0.8, 0.3, 0.06
CASES, RESAMPLES = 1000, 400  # the older rule, which is slow, has a quarter of the cases


def simulated(
    rng: np.random.Generator, runs: int, sessions: int, *, of_runs: float, of_the_model: float, shift: float
) -> tuple[Numbers, Numbers]:
    """Reciprocal ranks at 20 of two models, [runs, sessions] each; the ranks of the second are smaller by the factor exp(shift)."""
    ease = rng.normal(EASE, SPREAD_OF_SESSIONS, sessions)
    models = []
    for better in (0.0, shift):
        own = ease - better + rng.normal(0, of_the_model, sessions)
        log = own + rng.normal(0, of_runs, (runs, 1)) + rng.normal(0, NOISE, (runs, sessions))
        models.append(session_metric(np.exp(np.clip(log, 0, 10)).astype(np.int32), "MRR@20"))
    return models[0], models[1]


def shift_of(percent: float, of_runs: float, of_the_model: float) -> float:
    """The shift that makes the expected metric larger by so many percent."""
    spread = math.sqrt(SPREAD_OF_SESSIONS**2 + of_the_model**2 + of_runs**2 + NOISE**2)

    def expected(shift: float) -> float:
        up_to = stats.norm.cdf(np.log(np.arange(2, 22)), EASE - shift, spread)
        return float((np.diff(up_to, prepend=0) / np.arange(1, 21)).sum())

    return float(optimize.brentq(lambda shift: expected(shift) - (1 + percent / 100) * expected(0), 0, 2)) if percent else 0.0


def older(a: Numbers, b: Numbers, seed: int) -> tuple[float, float]:
    """The ends of the older interval in percent."""
    rng = np.random.default_rng(seed)
    runs, sessions = a.shape
    weights = rng.multinomial(sessions, np.full(sessions, 1 / sessions), RESAMPLES) / sessions
    widened = math.sqrt(runs / (runs - 1)) * stats.t.ppf(0.975, 2 * (runs - 1)) / stats.norm.ppf(0.975)
    means = []
    for values in (a, b):
        each = weights @ values.T  # [resamples, runs]
        centre = each.mean(1)
        drawn = np.take_along_axis(each, rng.integers(runs, size=each.shape), 1).mean(1)
        means.append(centre + widened * (drawn - centre))
    x, y = means[0], np.maximum(0, means[1])
    ratios = np.divide(y, x, out=np.full(RESAMPLES, np.inf), where=x > 0)
    low, high = np.percentile(ratios, [2.5, 97.5], method="nearest")
    return 100 * (low - 1), 100 * (high - 1)


def shares(
    cases: int, runs: int, sessions: int, percent: float = 0, of_runs: float = OF_RUNS, of_the_model: float = OF_THE_MODEL,
    with_older: bool = False,
) -> Numbers:  # fmt: skip
    """In percent of the cases: a verdict, and an interval that holds the truth, by the rule of the reports and by the older one, [2, 2]."""
    rng = np.random.default_rng([runs, sessions])
    shift = shift_of(percent, of_runs, of_the_model)
    found = np.zeros((2, 2))
    for case in range(cases):
        a, b = simulated(rng, runs, sessions, of_runs=of_runs, of_the_model=of_the_model, shift=shift)
        p = paired_p(a.mean(0), b.mean(0))
        intervals = [improvement(a, b)[1:]] + ([older(a, b, case)] if with_older else [])
        for rule, (low, high) in enumerate(intervals):
            found[rule] += verdict(low, high, p, runs) in ("better", "worse"), low <= percent <= high
    return 100 * found / cases


def main() -> None:
    print(f"Models that differ in nothing, {CASES:,} cases each: verdicts in percent, {100 * LEVEL:.0f} at most\n")
    print("| sessions | spread of runs in the log of the rank | 2 seeds | 3 seeds | 5 seeds |\n|---:|---:|---:|---:|---:|")
    for sessions in (643, 2678):
        for of_runs in (0, 0.03, 0.06, 0.12, 0.3):
            said = [shares(CASES, runs, sessions, of_runs=of_runs, of_the_model=0)[0, 0] for runs in (2, 3, 5)]
            print(f"| {sessions:,} | {of_runs} | " + " | ".join(f"{each:.1f}" for each in said) + " |", flush=True)

    print(f"\nA true effect, {CASES // 4} cases each: verdicts, intervals that hold it, percent; older rule -> this one\n")
    print("| sessions | seeds | verdict at +10 % | at +20 % | coverage at +10 % | at +20 % |\n|---:|---:|---:|---:|---:|---:|")
    for sessions in (643, 2678):
        for runs in (3, 5):
            both = [shares(CASES // 4, runs, sessions, percent, with_older=True) for percent in (10, 20)]
            said = [f"{each[1, kind]:.0f} -> {each[0, kind]:.0f}" for kind in (0, 1) for each in both]
            print(f"| {sessions:,} | {runs} | {' | '.join(said)} |", flush=True)


if __name__ == "__main__":
    main()
