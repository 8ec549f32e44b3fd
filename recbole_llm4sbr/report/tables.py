"""The tables of the report: metrics, tests, buckets, cost, variants."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from recbole_llm4sbr.base.metrics import is_per_session, units
from recbole_llm4sbr.base.names import ENSEMBLE
from recbole_llm4sbr.base.results import RunResult
from recbole_llm4sbr.base.schema import schema
from recbole_llm4sbr.base.wording import show, show_settings
from recbole_llm4sbr.report.block import (
    Block,
    Line,
    buckets_of,
    common_settings,
    deciding_settings,
    main_lines,
    main_metrics,
    metrics_of,
)
from recbole_llm4sbr.report.comparisons import Comparison, compared
from recbole_llm4sbr.report.intents import quality_table
from recbole_llm4sbr.report.searches import search_tables, search_titles
from recbole_llm4sbr.report.table import COST, FAILED, POPULARITY, Table
from recbole_llm4sbr.report.unfinished import marked, note

_SMALLER = ("averagepopularity", "giniindex")  # RecBole's metrics of which less is better


def tables_of(block: Block, tests: Mapping[str, Sequence[Comparison]] | None = None) -> list[Table]:
    """All tables of a block.

    Args:
        block: which.
        tests: of each group, where they are known; they take a while.
    """
    tables = []
    tests = {group: compared(block, group) for group in block.groups} if tests is None else tests
    for group in block.groups:
        lines = block.of(group)
        tables.append(_metrics_table(block, group, lines, metrics_of(lines)))
        if tests[group]:
            tables.append(_tests_table(group, lines, tests[group]))
    for search, title in zip(block.searches, search_titles(block.searches)):
        tables += [replace(table, section=title) for table in search_tables(search)]
    if block.groups:
        main = main_lines(block)
        tested = [metric for metric in main_metrics(main) if is_per_session(metric)]
        if tested and all(line.ranks for line in main):
            tables.append(_buckets_table(main, tested))
        if (quality := quality_table(block.lines)) is not None:
            tables.append(quality)
        tables += [_cost_table(_distinct(block)), _variants_table(block)]
    failed = [[line.model, line.name, str(seed), reason] for line in block.lines for seed, reason in line.reasons.items()]
    if failed:
        head = ["model", "variant", "seed", "reason"]
        tables.append(Table(FAILED, "Each with its reason; running the grid again tries them again.", head, failed, 4))
    return tables


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
        rows.append([line.model, line.name + fewer, *(line.mean(metric) for metric in metrics)])
    bold = "the best of each column in bold" if finished.all() else "the best finished one of each column in bold"
    bold = bold if finished.any() else "none in bold, since none is finished"
    how = f"Test, {units(metrics)}, the whole catalogue ranked; {_seeds(seeds)}; {bold}."
    usual, here = common_settings(block), common_settings(block, group)
    counting = deciding_settings(block, group)
    shown = (key for key in shown_settings() if key in here and key not in usual and key in counting)
    own = ", ".join(f"{key} {show(here[key])}" for key in shown)
    how += f" Of this table: {own}." if own else ""
    return marked(Table(group, how, ["model", "variant", *metrics], rows, 2, best), lines)


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"one seed ({seeds[0]}), so nothing here tells chance in training from effect"
    return f"mean ± standard deviation over the seeds {', '.join(map(str, seeds))}"


def _tests_table(group: str, lines: Sequence[Line], tests: Sequence[Comparison]) -> Table:
    rows = [
        [each.line.model, f"{each.line.name} against {each.reference.name}", each.metric, each.interval, f"{each.p:.3g}",
         f"{each.adjusted:.3g}", each.verdict]
        for each in tests
    ]  # fmt: skip
    how = (
        "Over the same test sessions (all prefixes of a session together). Improvement with a 95 % interval for other sessions and other "
        "training runs (Student's, by the variance between sessions and what runs differ by beyond it); Wilcoxon's signed-rank test over "
        "sessions, two-sided, each metric averaged over the seeds, and its p-value after Holm's correction over this table. Different is "
        "what both say: better or worse. One seed is not judged: the interval knows the sessions only, and training again may turn it "
        "round. Nor is a comparison in which a run of either side is unfinished (its best epoch is the last that it was allowed). Rows "
        "that are not judged stay in the family of the correction, so that they make no other verdict easier."
    )
    head = ["model", "variants", "metric", "improvement", "p", "p (Holm)", "different?"]
    return Table(f"Is it more than chance? {group}", how + note(lines), head, rows, 3, section=group)


def _buckets_table(lines: Sequence[Line], tested: Sequence[str]) -> Table:
    buckets = {name: where for name, where in buckets_of(lines).items() if where.any()}
    rows = []
    for line in lines:
        seeds = sorted(line.ranks)
        values = (
            " / ".join(f"{100 * line.by_seed(metric, seeds)[:, where].mean():.2f}" for metric in tested)
            for where in buckets.values()
        )
        rows.append([line.model, line.name, *values])
    how = (
        f"{' / '.join(tested)} of the test, in percent, mean over the seeds; number of sessions in the headline. Head: the target is among "
        "the 20 % of items that the training part clicks most. Lengths: thirds of the test sessions by clicks before the target. Without "
        "an intent: at least one view's answer named nothing, or its call failed."
    )
    head = ["model", "variant", *(f"{name} ({where.sum():,})" for name, where in buckets.items())]
    return marked(Table("By popularity, session length and intent", how, head, rows, section=POPULARITY), lines)


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
        rows.append([line.model, line.name, *["-"] * (len(columns) - len(own)), *cells])
    how = (
        "Mean over the seeds: the median training epoch, epochs and training seconds until the best one, all seconds with validation, "
        "peak memory of the process (of the GPU where one trains), trained numbers. Cells that ran beside others share the machine. The "
        "seconds of an ensemble are those of its members and of its own validation and test."
    )
    head = ["model", "variant", "s per epoch", "epochs to best", "s to best", "s in all", "peak MB", "parameters"]
    return marked(Table("Time and memory (the paper's Table 5)", how, head, rows, section=COST), lines)


def _variants_table(block: Block) -> Table:
    rows: dict[str, list[str]] = {}
    for line in block.lines:
        if line.results:
            usual = common_settings(block, line.group)
            settings = next(iter(line.results.values())).settings
            changed = {key: value for key, value in settings.items() if key not in usual and _of_a_variant(key)}
            is_ensemble = line.variant.startswith(ENSEMBLE)  # its members have settings
            said = "" if is_ensemble else show_settings(changed, digits=6)
            whole = f": {line.variant}" if is_ensemble and line.name != line.variant else ""
            rows.setdefault(line.variant, [line.name, line.about + whole, said])
    how = "What each variant is, and its settings where those of its table differ from each other."
    return Table("Variants", how, ["variant", "what it is", "settings"], list(rows.values()), 3)


def _of_a_variant(key: str) -> bool:
    """Whether a setting can make the difference between variants; seed and model are columns of their own."""
    return key not in ("seed", "model") and (key not in schema() or schema()[key].decides != "run")


def shown_settings() -> list[str]:
    """Names of the settings that a report shows, in the order of the schema."""
    return [key for key, setting in schema().items() if setting.shown]
