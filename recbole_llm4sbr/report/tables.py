"""The tables of the report: metrics, tests, buckets, cost, searches, variants."""

import html
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.report.grids import (
    Block,
    Line,
    buckets_of,
    by_two,
    common_settings,
    is_per_session,
    label,
    main_metrics,
    metrics_of,
)
from recbole_llm4sbr.report.statistics import holm, improvement, paired_p

LEVEL = 0.05
_NOT_A_VARIANTS = ("seed", "model", "state", "show_progress", "checkpoint_dir", "atomic_path", "data_path")
_BUDGET = (
    "intent_source", "max_sessions", "epochs", "stopping_step", "train_batch_size", "learning_rate", "learning_rate_step",
    "learning_rate_decay", "weight_decay", "embedding_size", "hidden_size",
)  # fmt: skip
_SMALLER = ("averagepopularity", "giniindex")  # RecBole's metrics of which less is better


def _one_line(text: str) -> str:
    """Text that fits a Markdown cell."""
    return " ".join(text.split()).replace("|", "\\|")


@dataclass
class Table:
    """A table of the report.

    Attributes:
        title, how: headline, and how its numbers were made.
        head: names of the columns.
        rows: cells.
        texts: how many of the first columns are text.
        best: (row, column) of cells in bold.
    """

    title: str
    how: str
    head: list[str]
    rows: list[list[str]]
    texts: int = 2
    best: set[tuple[int, int]] = field(default_factory=set)

    def markdown(self) -> list[str]:
        """The lines of the table."""

        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(cells) + " |"

        rule = ["---" if column < self.texts else "---:" for column in range(len(self.head))]
        body = [
            line(f"**{cell}**" if (row, column) in self.best else cell for column, cell in enumerate(map(_one_line, cells)))
            for row, cells in enumerate(self.rows)
        ]
        return [f"### {self.title}", "", self.how, "", line(self.head), line(rule), *body, ""]

    def html(self) -> str:
        """The table as HTML."""

        def cell(tag: str, text: str, column: int, bold: bool = False) -> str:
            text = html.escape(text)
            kind = "" if column < self.texts else " class=n"
            return f"<{tag}{kind}>{'<b>' + text + '</b>' if bold else text}</{tag}>"

        head = "".join(cell("th", text, column) for column, text in enumerate(self.head))
        rows = "".join(
            "<tr>"
            + "".join(cell("td", text, column, (row, column) in self.best) for column, text in enumerate(cells))
            + "</tr>\n"
            for row, cells in enumerate(self.rows)
        )
        return (
            f"<h3>{html.escape(self.title)}</h3>\n<p class=how>{html.escape(self.how)}</p>\n"
            f"<div class=scroll><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
        )


def tables_of(block: Block) -> list[Table]:
    """All tables of a block."""
    tables = []
    for group in block.groups:
        lines = block.of(group)
        tables.append(_metrics_table(block, group, lines, metrics_of(lines)))
        tested = [metric for metric in main_metrics(lines) if is_per_session(metric)]
        if tested and len(lines) > 1 and all(line.ranks for line in lines):
            tables.append(_tests_table(block, group, tested))
    for search in block.searches:
        tables += _search_tables(search)
    if block.groups:
        main = block.of(block.groups[0])
        tested = [metric for metric in main_metrics(main) if is_per_session(metric)]
        if tested and all(line.ranks for line in main):
            tables.append(_buckets_table(main, tested))
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
    means = np.array([[np.mean(line.scores(metric)) for metric in metrics] for line in lines])
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
    how = f"Test, in percent, the whole catalogue ranked; {_seeds(seeds)}; the best of each column in bold."
    usual, here = common_settings(block), common_settings(block, group)
    own = ", ".join(f"{key} {short(here[key])}" for key in _BUDGET if key in here and key not in usual)
    how += f" Of this table: {own}." if own else ""
    return Table(group, how, ["model", "variant", *metrics], rows, 2, best)


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"one seed ({seeds[0]}), so nothing here tells chance in training from effect"
    return f"mean ± standard deviation over the seeds {', '.join(map(str, seeds))}"


def _tests_table(block: Block, group: str, tested: Sequence[str]) -> Table:
    rows: list[list[str]] = []
    p_values = []
    for line, reference in block.pairs(group):
        seeds = sorted(set(line.ranks) & set(reference.ranks))
        if not seeds:
            continue
        for metric in tested:
            a, b = (by_session(each, metric, seeds) for each in (reference, line))
            percent, low, high = improvement(a, b)
            p_values.append(paired_p(a, b))
            text = "-" if np.isnan(percent) else f"{percent:+.1f} % [{low:+.1f}, {high:+.1f}]"
            rows.append([line.model, f"{line.variant} against {reference.variant}", metric, text, f"{p_values[-1]:.3g}"])
    for row, adjusted in zip(rows, holm(p_values)):
        row += [f"{adjusted:.3g}", "yes" if adjusted < LEVEL else "no"]
    how = (
        "Over the same test sessions (all prefixes of a session together), each one's metric averaged over the seeds. "
        "Improvement with its 95 % bootstrap interval (2,000 resamples of sessions); Wilcoxon's signed-rank test, two-sided, and its "
        "p-value after Holm's correction over this table. "
        "Sessions are resampled, training runs are not: with few seeds a difference can be significant here and still be luck in training."
    )
    head = ["model", "variants", "metric", "improvement", "p", "p (Holm)", f"below {LEVEL}"]
    return Table(f"Is it more than chance? {group}", how, head, rows, 3)


def by_session(line: Line, metric: str, seeds: Sequence[int]) -> npt.NDArray[np.float64]:
    """A metric of each test session, [S]; where every prefix is a row, the sum over a session's, which are not independent."""
    values = line.per_session(metric, seeds)
    if next(iter(line.results.values()))["settings"]["session_targets"] != "all":
        return values
    _, session = np.unique([name.rpartition(".")[0] for name in line.sessions.tolist()], return_inverse=True)
    summed: npt.NDArray[np.float64] = np.bincount(session, values).astype(np.float64)
    return summed


def _buckets_table(lines: Sequence[Line], tested: Sequence[str]) -> Table:
    buckets = {name: where for name, where in buckets_of(lines).items() if where.any()}
    rows = []
    for line in lines:
        seeds = sorted(line.ranks)
        values = (
            " / ".join(f"{100 * line.per_session(metric, seeds, where).mean():.2f}" for metric in tested)
            for where in buckets.values()
        )
        rows.append([line.model, line.variant, *values])
    how = (
        f"{' / '.join(tested)} of the test, in percent, mean over the seeds; number of sessions in the headline. Head: the target is among "
        "the 20 % of items that the training part clicks most. Lengths: thirds of the test sessions by clicks before the target. Without "
        "an intent: at least one view's answer named nothing, or its call failed."
    )
    head = ["model", "variant", *(f"{name} ({where.sum():,})" for name, where in buckets.items())]
    return Table("By popularity, session length and intent", how, head, rows)


def _search_tables(search: Mapping[str, Any]) -> list[Table]:
    """A search's trials, as a grid of two settings where it is one, and what the best one made of the test."""
    metric, trials = search["metric"], search["trials"]
    what = f"{search['model']}: search by {search['asked']['how']} over " + ", ".join(trials[0]["setting"])
    tables = []
    if found := by_two(search):
        row_key, column_key, rows, columns, scores = found
        best = np.unravel_index((np.nanargmax if search["bigger"] else np.nanargmin)(scores), scores.shape)
        cells = [
            [label(row), *("-" if np.isnan(score) else f"{score:.2f}" for score in line)] for row, line in zip(rows, scores)
        ]
        how = (
            f"{metric} on validation, in percent; the best in bold. One seed: neighbours differ by chance too. Intents: "
            + intents_of(search["best"]["result"]).replace("*", "").replace("`", "")
        )
        head = [f"{row_key} \\ {column_key}", *map(label, columns)]
        tables.append(Table(what, how, head, cells, 1, {(int(best[0]), int(best[1]) + 1)}))
    ordered = sorted(trials, key=lambda trial: -(trial["score"] or 0) if search["bigger"] else trial["score"] or np.inf)
    rows = []
    for trial in ordered[:20]:
        score = "failed" if trial["score"] is None else f"{100 * trial['score']:.2f}"
        rows.append([*map(_briefly, trial["setting"].values()), score, str(trial["epochs_seen"]), trial["error"] or ""])
    how = f"By {metric} on validation, in percent; {len(trials)} trials" + (
        ", the best 20 of them." if len(trials) > 20 else "."
    )
    head = [*trials[0]["setting"], f"valid {metric}", "reports", "error"]
    tables.append(Table(f"Trials of {what}", how, head, rows, 0))
    result = search["best"]["result"]
    setting = ", ".join(f"{key}={_briefly(value)}" for key, value in search["best"]["setting"].items())
    names = [name for name in result["test_result"]]
    values = [f"{100 * result['test_result'][name]:.2f}" for name in names]
    how = f"The setting with the best validation ({setting}), trained again and tested once, in percent. No other trial was tested."
    tables.append(Table("Test of the best setting", how, names, [values], 0))
    return tables


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
        columns: list[tuple[Callable[[Any], float], str]] = [
            (lambda r: float(np.median(r["seconds_per_epoch"])), "{:.2f}"),
            (lambda r: (r["best_epoch"] or 0) + 1, "{:.1f}"),
            (lambda r: sum(r["seconds_per_epoch"][: (r["best_epoch"] or 0) + 1]), "{:.1f}"),
            (lambda r: r["seconds_training"], "{:.1f}"),
            (lambda r: r["peak_memory_mb"], "{:,.0f}"),
            (lambda r: r["parameters"], "{:,.0f}"),
        ]
        rows.append([line.model, line.variant, *(form.format(np.mean([get(r) for r in results])) for get, form in columns)])
    how = (
        "Mean over the seeds: the median training epoch, epochs and training seconds until the best one, all seconds with validation, peak "
        "memory of the process (of the GPU where one trains), trained numbers. Cells that ran beside others share the machine."
    )
    head = ["model", "variant", "s per epoch", "epochs to best", "s to best", "s in all", "peak MB", "parameters"]
    return Table("Time and memory (the paper's Table 5)", how, head, rows)


def _variants_table(block: Block) -> Table:
    rows: dict[str, list[str]] = {}
    for line in block.lines:
        if line.results:
            usual = common_settings(block, line.group)
            settings = next(iter(line.results.values()))["settings"]
            changed = {key: value for key, value in settings.items() if key not in usual and key not in _NOT_A_VARIANTS}
            said = ", ".join(f"{key}={short(value)}" for key, value in changed.items())
            rows.setdefault(line.variant, [line.variant, line.about, said])
    how = "What each variant is, and its settings where those of its table differ from each other."
    return Table("Variants", how, ["variant", "what it is", "settings"], list(rows.values()), 3)


def short(value: Any) -> str:
    """A setting's value as a reader writes it."""
    return json.dumps(value).replace('"', "") if isinstance(value, list | bool) or value is None else str(value)


def _briefly(value: Any) -> str:
    """A value that was drawn, in four digits."""
    return f"{value:.4g}" if isinstance(value, float) else short(value)


def intents_of(result: Mapping[str, Any]) -> str:
    """Who made the intents that a run read, in words."""
    settings, stage1 = result["settings"], result["infer"]
    if stage1 is None:
        return "no intents."
    if settings["intent_source"] != "llm":
        return (
            "**no language model was asked here.** LLM4SBR reads `session_text`: the mean text vector of the session's items (of its last "
            "three for the short view). It shows what the fusion does with text, not what an LLM adds."
        )
    text = (
        f"answers of {settings['llm']}, {stage1['prompts']:,} prompts, {stage1['no_intent']:,} of "
        f"{stage1['intents'] + stage1['no_intent']:,} intents missing; text encoder {settings['encoder']}"
    )
    if stage1["not_asked"]:
        text += f"; {stage1['not_asked']:,} further intents were not asked for (max_sessions={settings['max_sessions']})"
    return text + "."
