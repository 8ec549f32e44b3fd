"""What came of testing the variants of a table against each other: the statistics of `statistics.py` over pairs of lines."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.base.metrics import is_per_session
from recbole_llm4sbr.report.block import Block, Line, main_metrics
from recbole_llm4sbr.report.statistics import holm, improvement, paired_p, verdict


@dataclass(frozen=True)
class Comparison:
    """A line against another by one metric.

    Attributes:
        line, reference: which against which.
        metric: as Hit@20.
        percent, low, high: improvement of the line on the reference, with its interval; nan where there is none.
        p, adjusted: of the test over sessions, and corrected over its table.
        seeds: training runs of each.
        verdict: as in `statistics.verdict`.
    """

    line: Line
    reference: Line
    metric: str
    percent: float
    low: float
    high: float
    p: float
    adjusted: float
    seeds: int
    verdict: str

    @property
    def known(self) -> bool:
        """Whether the improvement and both ends of its interval are numbers."""
        return bool(np.isfinite([self.percent, self.low, self.high]).all())

    @property
    def interval(self) -> str:
        """The improvement as it is read, with the seeds that both sides have where one has more."""
        both = sorted(set(self.line.ranks) & set(self.reference.ranks))
        fewer = len(both) < max(len(self.line.ranks), len(self.reference.ranks))
        over = f" over seed{'s' * (len(both) > 1)} {', '.join(map(str, both))}" if fewer else ""
        return "-" if np.isnan(self.percent) else f"{self.percent:+.1f} % [{self.low:+.1f}, {self.high:+.1f}]{over}"


def compared(block: Block, group: str) -> list[Comparison]:
    """The comparisons of a table, corrected as one family; none where a line has no ranks or no metric has a value per session."""
    lines = block.of(group)
    tested = [metric for metric in main_metrics(lines) if is_per_session(metric)]
    if not all(line.ranks for line in lines):
        return []
    found = []
    for line, reference in block.pairs(group):
        seeds = sorted(set(line.ranks) & set(reference.ranks))
        for metric in tested if seeds else ():
            a, b = (by_session(each, metric, seeds) for each in (reference, line))
            unfinished = bool(line.unfinished or reference.unfinished)
            found.append((line, reference, metric, improvement(a, b), paired_p(a.mean(0), b.mean(0)), len(seeds), unfinished))
    corrected = holm([p for *_, p, _, _ in found])
    return [
        Comparison(
            line, reference, metric, percent, low, high, p, adjusted, seeds,
            verdict(low, high, adjusted, seeds, unfinished=unfinished),
        )
        for (line, reference, metric, (percent, low, high), p, seeds, unfinished), adjusted in zip(found, corrected)
    ]  # fmt: skip


def by_session(line: Line, metric: str, seeds: Sequence[int]) -> npt.NDArray[np.float64]:
    """A metric of each test session by seed, [seeds, S]; where every prefix is a row, their sum, since they are not independent."""
    values = line.by_seed(metric, seeds)
    if (
        line.settings.get("eval_targets", line.settings.get("session_targets")) != "all"
    ):  # the latter in grids of an earlier version
        return values
    _, session = np.unique([name.rpartition(".")[0] for name in line.sessions.tolist()], return_inverse=True)
    return np.stack([np.bincount(session, each) for each in values]).astype(np.float64)
