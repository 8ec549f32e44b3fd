"""The tables of the report: metrics, tests, buckets, cost, variants."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.base.metrics import is_per_session
from recbole_llm4sbr.base.records import RunResult
from recbole_llm4sbr.base.schema import schema
from recbole_llm4sbr.base.wording import show, show_settings
from recbole_llm4sbr.report.intents import quality_table
from recbole_llm4sbr.report.reading import Block, Line, buckets_of, common_settings, main_metrics, metrics_of
from recbole_llm4sbr.report.searches import search_tables
from recbole_llm4sbr.report.statistics import holm, improvement, paired_p, verdict
from recbole_llm4sbr.report.table import Table
from recbole_llm4sbr.report.unfinished import marked, note

_SMALLER = ("averagepopularity", "giniindex")  # RecBole's metrics of which less is better


def tables_of(block: Block) -> list[Table]:
    """All tables of a block."""
    tables = []
    for group in block.groups:
        lines = block.of(group)
        tables.append(_metrics_table(block, group, lines, metrics_of(lines)))
        tested = [metric for metric in main_metrics(lines) if is_per_session(metric)]
        if tested and block.pairs(group) and all(line.ranks for line in lines):
            tables.append(_tests_table(block, group, tested))
    for search in block.searches:
        tables += search_tables(search)
    if block.groups:
        main = block.of(block.groups[0])
        tested = [metric for metric in main_metrics(main) if is_per_session(metric)]
        if tested and all(line.ranks for line in main):
            tables.append(_buckets_table(main, tested))
        if (quality := quality_table(block.lines)) is not None:
            tables.append(quality)
        tables += [_cost_table(_distinct(block)), _variants_table(block)]
    failed = [[line.model, line.variant, str(seed), reason] for line in block.lines for seed, reason in line.reasons.items()]
    if failed:
        head = ["model", "variant", "seed", "reason"]
        tables.append(
            Table("Cells without a result", "Each with its reason; running the grid again tries them again.", head, failed, 4)
        )
    return tables


def _mean(values: Sequence[float], form: str = "{:.2f}") -> str:
    text = form.format(np.mean(values))
    return text if len(values) < 2 else text + " ± " + form.format(np.std(values, ddof=1))


def _metrics_table(block: Block, group: str, lines: Sequence[Line], metrics: Sequence[str]) -> Table:
    finished = np.array([not line.unfinished for line in lines])
    means = np.array([[np.mean(line.scores(metric)) for metric in metrics] for line in lines])
    means[~finished] = np.nan  # none of these is the best
    best = set()
    for column, metric in enumerate(metrics):
        if np.isfinite(means[:, column]).any():
            choose = np.nanargmin if metric.lower().partition("@")[0] in _SMALLER else np.nanargmax
            best.add((int(choose(means[:, column])), column + 2))
    seeds = sorted({seed for line in lines for seed in line.results})
    rows = []
    for line in lines:
        fewer = f" ({len(line.results)} of {len(seeds)} seeds)" if len(line.results) < len(seeds) else ""
        rows.append([line.model, line.variant + fewer, *(_mean(line.scores(metric)) for metric in metrics)])
    bold = "the best of each column in bold" if finished.all() else "the best finished one of each column in bold"
    bold = bold if finished.any() else "none in bold, since none is finished"
    how = f"Test, in percent, the whole catalogue ranked; {_seeds(seeds)}; {bold}."
    usual, here = common_settings(block), common_settings(block, group)
    own = ", ".join(f"{key} {show(here[key])}" for key in shown_settings() if key in here and key not in usual)
    how += f" Of this table: {own}." if own else ""
    return marked(Table(group, how, ["model", "variant", *metrics], rows, 2, best), lines)


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"one seed ({seeds[0]}), so nothing here tells chance in training from effect"
    return f"mean ± standard deviation over the seeds {', '.join(map(str, seeds))}"


def _tests_table(block: Block, group: str, tested: Sequence[str]) -> Table:
    rows: list[list[str]] = []
    found: list[tuple[float, float, float, int, bool]] = []
    for line, reference in block.pairs(group):
        seeds = sorted(set(line.ranks) & set(reference.ranks))
        if not seeds:
            continue
        for metric in tested:
            a, b = (by_session(each, metric, seeds) for each in (reference, line))
            percent, low, high = improvement(a, b)
            p = paired_p(a.mean(0), b.mean(0))
            found.append((low, high, p, len(seeds), bool(line.unfinished or reference.unfinished)))
            text = "-" if np.isnan(percent) else f"{percent:+.1f} % [{low:+.1f}, {high:+.1f}]"
            rows.append([line.model, f"{line.variant} against {reference.variant}", metric, text, f"{p:.3g}"])
    for row, (low, high, _, seeds_each, unfinished), adjusted in zip(rows, found, holm([p for _, _, p, _, _ in found])):
        row += [f"{adjusted:.3g}", verdict(low, high, adjusted, seeds_each, unfinished=unfinished)]
    how = (
        "Over the same test sessions (all prefixes of a session together). Improvement with a 95 % interval by a bootstrap over seeds and "
        "sessions (2,000 resamples, widened for few seeds); Wilcoxon's signed-rank test over sessions, two-sided, each metric averaged "
        "over the seeds, and its p-value after Holm's correction over this table. Different is what both say: better or worse. "
        "One seed is not judged: the interval knows the sessions only, and training again may turn it round. Nor is a comparison in which "
        "a run of either side is unfinished (its best epoch is the last that it was allowed). Rows that are not judged stay in the family "
        "of the correction, so that they make no other verdict easier."
    )
    how += note(block.of(group))
    head = ["model", "variants", "metric", "improvement", "p", "p (Holm)", "different?"]
    return Table(f"Is it more than chance? {group}", how, head, rows, 3)


def by_session(line: Line, metric: str, seeds: Sequence[int]) -> npt.NDArray[np.float64]:
    """A metric of each test session by seed, [seeds, S]; where every prefix is a row, their sum, since they are not independent."""
    values = line.by_seed(metric, seeds)
    if next(iter(line.results.values())).settings["session_targets"] != "all":
        return values
    _, session = np.unique([name.rpartition(".")[0] for name in line.sessions.tolist()], return_inverse=True)
    return np.stack([np.bincount(session, each) for each in values]).astype(np.float64)


def _buckets_table(lines: Sequence[Line], tested: Sequence[str]) -> Table:
    buckets = {name: where for name, where in buckets_of(lines).items() if where.any()}
    rows = []
    for line in lines:
        seeds = sorted(line.ranks)
        values = (
            " / ".join(f"{100 * line.by_seed(metric, seeds)[:, where].mean():.2f}" for metric in tested)
            for where in buckets.values()
        )
        rows.append([line.model, line.variant, *values])
    how = (
        f"{' / '.join(tested)} of the test, in percent, mean over the seeds; number of sessions in the headline. Head: the target is among "
        "the 20 % of items that the training part clicks most. Lengths: thirds of the test sessions by clicks before the target. Without "
        "an intent: at least one view's answer named nothing, or its call failed."
    )
    head = ["model", "variant", *(f"{name} ({where.sum():,})" for name, where in buckets.items())]
    return marked(Table("By popularity, session length and intent", how, head, rows), lines)


def _distinct(block: Block) -> list[Line]:
    """Lines with different results: a variant that stands in several groups once."""
    seen: dict[int, Line] = {}
    for line in block.lines:
        if line.results:
            seen.setdefault(id(next(iter(line.results.values()))), line)
    return list(seen.values())


def _cost_table(lines: Sequence[Line]) -> Table:
    rows = []
    for line in lines:
        results = list(line.results.values())
        columns: list[tuple[Callable[[RunResult], float], str]] = [
            (lambda r: float(np.median(r.seconds_per_epoch)), "{:.2f}"),
            (lambda r: (r.best_epoch or 0) + 1, "{:.1f}"),
            (lambda r: sum(r.seconds_per_epoch[: (r.best_epoch or 0) + 1]), "{:.1f}"),
            (lambda r: r.seconds_training, "{:.1f}"),
            (lambda r: r.peak_memory_mb, "{:,.0f}"),
            (lambda r: r.parameters, "{:,.0f}"),
        ]
        own = columns[3:] if any(result.members for result in results) else columns  # an ensemble has no epochs of its own
        cells = [form.format(np.mean([get(r) for r in results])) for get, form in own]
        rows.append([line.model, line.variant, *["-"] * (len(columns) - len(own)), *cells])
    how = (
        "Mean over the seeds: the median training epoch, epochs and training seconds until the best one, all seconds with validation, "
        "peak memory of the process (of the GPU where one trains), trained numbers. Cells that ran beside others share the machine. The "
        "seconds of an ensemble are those of its members and of its own validation and test."
    )
    head = ["model", "variant", "s per epoch", "epochs to best", "s to best", "s in all", "peak MB", "parameters"]
    return marked(Table("Time and memory (the paper's Table 5)", how, head, rows), lines)


def _variants_table(block: Block) -> Table:
    rows: dict[str, list[str]] = {}
    for line in block.lines:
        if line.results:
            usual = common_settings(block, line.group)
            settings = next(iter(line.results.values())).settings
            changed = {key: value for key, value in settings.items() if key not in usual and _of_a_variant(key)}
            said = show_settings(changed, digits=6)
            rows.setdefault(line.variant, [line.variant, line.about, said])
    how = "What each variant is, and its settings where those of its table differ from each other."
    return Table("Variants", how, ["variant", "what it is", "settings"], list(rows.values()), 3)


def _of_a_variant(key: str) -> bool:
    """Whether a setting can make the difference between variants; seed and model are columns of their own."""
    return key not in ("seed", "model") and (key not in schema() or schema()[key].decides != "run")


def shown_settings() -> list[str]:
    """Names of the settings that a report shows, in the order of the schema."""
    return [key for key, setting in schema().items() if setting.shown]
