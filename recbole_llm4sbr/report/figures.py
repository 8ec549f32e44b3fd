"""The figures of the report (the paper's Figures 5-7 and what people look at besides), by plotly."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from recbole_llm4sbr.base.metrics import is_per_session
from recbole_llm4sbr.base.names import ENSEMBLE
from recbole_llm4sbr.report.reading import Block, Line, main_metrics
from recbole_llm4sbr.report.search_figures import figures_of_search
from recbole_llm4sbr.report.style import COLOURS, DASHES, PATTERNS, SYMBOLS
from recbole_llm4sbr.report.unfinished import in_legend, note

Figure = tuple[str, str, str]  # title, how it was made, HTML


def page_script() -> str:
    """Plotly's own script, so that the page needs no network."""
    return f"<script>{get_plotlyjs()}</script>"


def figures_of(block: Block) -> Iterator[Figure]:
    """All figures that a block has the runs for."""
    count = 0

    def ready(title: str, how: str, figure: go.Figure, height: int = 420) -> Figure:
        nonlocal count
        count += 1
        figure.update_layout(
            template="plotly_white", height=height, margin={"l": 56, "r": 12, "t": 16, "b": 8}, font={"size": 13},
            legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0}, autosize=True,
        )  # fmt: skip
        name = re.sub(r"\W+", "-", f"{block.name}-{count}")
        options = {"responsive": True, "displaylogo": False, "displayModeBar": False}
        return title, how, figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=options)

    for group in block.groups:
        lines = block.of(group)
        metrics = main_metrics(lines)
        swept = [_swept(line) for line in lines]
        how = "Test, in percent; bars and whiskers: mean and standard deviation over the seeds (none with one seed)."
        how += note(lines)
        if len({key for key, _ in filter(None, swept)}) == 1 and all(swept) and len(lines) > 1:
            key = swept[0][0]  # type: ignore[index]
            yield ready(
                f"{group}: {key}", how.replace("bars and whiskers", "points and whiskers"), _curve(lines, key, metrics), 520
            )
        elif len(lines) > 1:
            yield ready(group, how, _bars(lines, metrics), 460)
    for search in block.searches:
        yield from (ready(*each) for each in figures_of_search(search))
    if not block.groups:
        return
    main = block.of(block.groups[0])
    metrics = main_metrics(main)
    metric = next(iter(main[0].results.values())).valid_metric
    lines_said = ", ".join(f"{variant}: {DASHES[number % 6]}" for number, variant in enumerate(_names(main)[1]))
    said = f" Lines: {lines_said}." if len(_names(main)[0]) > 1 else ""
    yield ready("Validation by epoch", f"{metric} in percent, first seed.{said}{note(main)}", _training(main), 480)
    how = "Median seconds of a training epoch and peak memory, mean over the seeds." + note(main)
    yield ready("Time and memory", how, _cost(main), 560)
    if all(line.ranks for line in main) and len(main) > 1 and is_per_session(metrics[0]):
        how = f"{metrics[0]} in percent; head: the 20 % of items that the training part clicks most." + note(main)
        yield ready("Popular and rare targets", how, _popularity(main, metrics[0]), 560)


def _swept(line: Line) -> tuple[str, float] | None:
    """The number that a variant's name sets, as `llm4sbr+intent_k=3`."""
    found = re.fullmatch(r"[^+]*\+(\w+)=([-+.\deE]+)", line.variant)
    return (found[1], float(found[2])) if found else None


def _bar(name: str, number: int, x: Sequence[Any], means: Sequence[float], spread: Sequence[float] | None = None) -> go.Bar:
    return go.Bar(
        name=name, x=x, y=means, error_y={"type": "data", "array": spread, "visible": spread is not None and any(spread)},
        marker={"color": COLOURS[number % 8], "line": {"color": "#1a1a1a", "width": 1}, "pattern": {"shape": PATTERNS[number % 8]}},
        hovertemplate="%{x}<br>" + name + ": %{y:.2f}<extra></extra>",
    )  # fmt: skip


def _moments(line: Line, metric: str) -> tuple[float, float]:
    scores = line.scores(metric)
    return float(np.mean(scores)), float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0


def _bars(lines: Sequence[Line], metrics: Sequence[str]) -> go.Figure:
    """Models on the axis and a bar per variant; with one model, metrics on the axis."""
    models, variants = _names(lines)
    figure = go.Figure()
    if len(models) > 1:
        of = {(line.model, line.variant): line for line in lines}
        for number, variant in enumerate(variants):
            there = [model for model in models if (model, variant) in of]
            moments = [_moments(of[model, variant], metrics[0]) for model in there]
            name = in_legend(variant, {model: of[model, variant] for model in there})
            figure.add_trace(_bar(name, number, there, *zip(*moments)))
        return figure.update_yaxes(title=metrics[0])
    for number, line in enumerate(lines):
        moments = [_moments(line, metric) for metric in metrics]
        figure.add_trace(_bar(in_legend(line.variant, {line.variant: line}), number, metrics, *zip(*moments)))
    return figure


def _names(lines: Sequence[Line]) -> tuple[list[str], list[str]]:
    return list(dict.fromkeys(line.model for line in lines)), list(dict.fromkeys(line.variant for line in lines))


def _curve(lines: Sequence[Line], key: str, metrics: Sequence[str]) -> go.Figure:
    """A metric over the values of a setting, one panel per metric, a line per model."""
    figure = make_subplots(rows=len(metrics), cols=1, shared_xaxes=True, vertical_spacing=0.08)
    series = dict.fromkeys((line.model, line.variant.partition("+")[0]) for line in lines)
    for number, (model, variant) in enumerate(series):
        own = [line for line in lines if line.model == model and line.variant.partition("+")[0] == variant]
        points = [(_swept(line)[1], line) for line in own]  # type: ignore[index]
        points.sort(key=lambda point: point[0])
        name = in_legend(f"{model} {variant}", {f"{value:g}": line for value, line in points})
        for row, metric in enumerate(metrics, 1):
            moments = [_moments(line, metric) for _, line in points]
            trace = go.Scatter(
                x=[f"{value:g}" for value, _ in points], y=[mean for mean, _ in moments], name=name,
                legendgroup=f"{model} {variant}", showlegend=row == 1,
                error_y={"type": "data", "array": [spread for _, spread in moments], "visible": any(spread for _, spread in moments)},
                mode="lines+markers", line={"color": COLOURS[number % 8], "dash": DASHES[number % 6]},
                marker={"symbol": SYMBOLS[number % 8], "size": 9},
            )  # fmt: skip
            figure.add_trace(trace, row=row, col=1)
            figure.update_yaxes(title=metric, row=row, col=1)
    return figure.update_xaxes(title=key, type="category", row=len(metrics), col=1)


def _training(lines: Sequence[Line]) -> go.Figure:
    """The validation score of each epoch."""
    figure = go.Figure()
    models, variants = _names(lines)
    for line in lines:
        scores = line.results[min(line.results)].valid_scores
        model, variant = models.index(line.model), variants.index(line.variant)
        own = [each for each in lines if each.model == line.model] if len(models) > 1 else [line]
        name = in_legend(line.model if len(models) > 1 else line.variant, {each.variant: each for each in own})
        first = line is own[0]
        colour, dash = (model, variant) if len(models) > 1 else (variant, 0)
        figure.add_trace(
            go.Scatter(
                x=list(range(len(scores))), y=[100 * score for score in scores], name=name, mode="lines+markers",
                legendgroup=line.model if len(models) > 1 else line.variant, showlegend=first,
                line={"color": COLOURS[colour % 8], "dash": DASHES[dash % 6]}, marker={"symbol": SYMBOLS[colour % 8], "size": 6},
            )
        )  # fmt: skip
    return figure.update_xaxes(title="epoch").update_yaxes(title="validation")


def _cost(lines: Sequence[Line]) -> go.Figure:
    """Seconds per epoch and peak memory."""
    figure = make_subplots(rows=2, cols=1, vertical_spacing=0.12)
    for number, variant in enumerate(_names(lines)[1]):
        if variant.startswith(ENSEMBLE):
            continue  # it has no epochs, and the memory of its test alone
        there = [line for line in lines if line.variant == variant]
        name = in_legend(variant, {line.model: line for line in there})
        for row in (1, 2):
            values = [
                np.mean([np.median(r.seconds_per_epoch) if row == 1 else r.peak_memory_mb for r in line.results.values()])
                for line in there
            ]
            trace = _bar(name, number, [line.model for line in there], [float(value) for value in values])
            figure.add_trace(trace.update(legendgroup=variant, showlegend=row == 1), row=row, col=1)
    figure.update_yaxes(title="s per epoch", row=1, col=1)
    return figure.update_yaxes(title="peak MB", row=2, col=1)


def _popularity(lines: Sequence[Line], metric: str) -> go.Figure:
    """A metric of sessions whose target is popular, and of the others."""
    figure = make_subplots(rows=2, cols=1, vertical_spacing=0.16, subplot_titles=("head targets", "tail targets"))
    for number, variant in enumerate(_names(lines)[1]):
        there = [line for line in lines if line.variant == variant]
        name = in_legend(variant, {line.model: line for line in there})
        for row in (1, 2):
            values = []
            for line in there:
                rows = line.ranks[min(line.ranks)]
                head = rows["head"][np.argsort(rows["session"], kind="stable")]
                where = head if row == 1 else ~head
                values.append(100 * float(line.by_seed(metric, sorted(line.ranks))[:, where].mean()))
            trace = _bar(name, number, [line.model for line in there], values)
            figure.add_trace(trace.update(legendgroup=variant, showlegend=row == 1), row=row, col=1)
    return figure.update_yaxes(title=metric)
