"""The figures of the report (the paper's Figures 5-7 and what people look at besides), by plotly.

Colours are Okabe and Ito's, which read without colour vision, and every series has a pattern, a dash or a symbol of its own as well.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from recbole_llm4sbr.grids import Block, Line

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
PATTERNS = ("", "/", "x", ".", "\\", "-", "+", "|")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "pentagon")
METRICS = ("Hit@20", "MRR@20")
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
            legend={"orientation": "h", "yanchor": "top", "y": -0.16, "x": 0}, autosize=True,
        )  # fmt: skip
        name = re.sub(r"\W+", "-", f"{block.name}-{count}")
        options = {"responsive": True, "displaylogo": False, "displayModeBar": False}
        return title, how, figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=options)

    for group in block.groups:
        lines = block.of(group)
        swept = [_swept(line) for line in lines]
        how = "Test, in percent; bars and whiskers: mean and standard deviation over the seeds (none with one seed)."
        if len({key for key, _ in filter(None, swept)}) == 1 and all(swept) and len(lines) > 1:
            key = swept[0][0]  # type: ignore[index]
            yield ready(f"{group}: {key}", how.replace("bars and whiskers", "points and whiskers"), _curve(lines, key), 520)
        elif len(lines) > 1:
            yield ready(group, how, _bars(lines), 460)
    main = block.of(block.groups[0])
    yield ready(
        "Validation by epoch",
        f"{main[0].results[min(main[0].results)]['valid_metric']} in percent, first seed.",
        _training(main),
        480,
    )
    yield ready("Time and memory", "Median seconds of a training epoch and peak memory, mean over the seeds.", _cost(main), 560)
    if all(line.ranks for line in main) and len(main) > 1:
        yield ready(
            "Popular and rare targets",
            "Hit@20 in percent; head: the 20 % of items that the training part clicks most.",
            _popularity(main),
        )


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


def _bars(lines: Sequence[Line]) -> go.Figure:
    """Models on the axis and a bar per variant; with one model, metrics on the axis."""
    models, variants = _names(lines)
    figure = go.Figure()
    if len(models) > 1:
        of = {(line.model, line.variant): line for line in lines}
        for number, variant in enumerate(variants):
            there = [model for model in models if (model, variant) in of]
            moments = [_moments(of[model, variant], METRICS[0]) for model in there]
            figure.add_trace(_bar(variant, number, there, *zip(*moments)))
        return figure.update_yaxes(title=METRICS[0])
    for number, line in enumerate(lines):
        moments = [_moments(line, metric) for metric in METRICS]
        figure.add_trace(_bar(line.variant, number, METRICS, *zip(*moments)))
    return figure


def _names(lines: Sequence[Line]) -> tuple[list[str], list[str]]:
    return list(dict.fromkeys(line.model for line in lines)), list(dict.fromkeys(line.variant for line in lines))


def _curve(lines: Sequence[Line], key: str) -> go.Figure:
    """A metric over the values of a setting, one panel per metric, a line per model."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for number, model in enumerate(_names(lines)[0]):
        points = sorted((_swept(line)[1], line) for line in lines if line.model == model)  # type: ignore[index]
        for row, metric in enumerate(METRICS, 1):
            moments = [_moments(line, metric) for _, line in points]
            trace = go.Scatter(
                x=[f"{value:g}" for value, _ in points], y=[mean for mean, _ in moments], name=model, legendgroup=model,
                showlegend=row == 1,
                error_y={"type": "data", "array": [spread for _, spread in moments], "visible": any(spread for _, spread in moments)},
                mode="lines+markers", line={"color": COLOURS[number % 8], "dash": DASHES[number % 6]},
                marker={"symbol": SYMBOLS[number % 8], "size": 9},
            )  # fmt: skip
            figure.add_trace(trace, row=row, col=1)
            figure.update_yaxes(title=metric, row=row, col=1)
    return figure.update_xaxes(title=key, type="category", row=2, col=1)


def _training(lines: Sequence[Line]) -> go.Figure:
    """The validation score of each epoch."""
    figure = go.Figure()
    models, variants = _names(lines)
    for line in lines:
        scores = line.results[min(line.results)]["valid_scores"]
        model, variant = models.index(line.model), variants.index(line.variant)
        name = f"{line.model} {line.variant}" if len(models) > 1 else line.variant
        colour, dash = (model, variant) if len(models) > 1 else (variant, 0)
        figure.add_trace(
            go.Scatter(
                x=list(range(len(scores))), y=[100 * score for score in scores], name=name, mode="lines+markers",
                line={"color": COLOURS[colour % 8], "dash": DASHES[dash % 6]}, marker={"symbol": SYMBOLS[colour % 8], "size": 6},
            )
        )  # fmt: skip
    return figure.update_xaxes(title="epoch").update_yaxes(title="validation")


def _cost(lines: Sequence[Line]) -> go.Figure:
    """Seconds per epoch and peak memory."""
    figure = make_subplots(rows=2, cols=1, vertical_spacing=0.12)
    for number, variant in enumerate(_names(lines)[1]):
        there = [line for line in lines if line.variant == variant]
        for row in (1, 2):
            values = [
                np.mean([np.median(r["seconds_per_epoch"]) if row == 1 else r["peak_memory_mb"] for r in line.results.values()])
                for line in there
            ]
            trace = _bar(variant, number, [line.model for line in there], [float(value) for value in values])
            figure.add_trace(trace.update(legendgroup=variant, showlegend=row == 1), row=row, col=1)
    figure.update_yaxes(title="s per epoch", row=1, col=1)
    return figure.update_yaxes(title="peak MB", row=2, col=1)


def _popularity(lines: Sequence[Line]) -> go.Figure:
    """Hit@20 of sessions whose target is popular, and of the others."""
    figure = go.Figure()
    models = _names(lines)[0]
    for number, line in enumerate(lines):
        rows = line.ranks[min(line.ranks)]
        head = rows["head"][np.argsort(rows["session"], kind="stable")]
        parts = [100 * line.per_session(METRICS[0], sorted(line.ranks), where).mean() for where in (head, ~head)]
        name = f"{line.model} {line.variant}" if len(models) > 1 else line.variant
        figure.add_trace(_bar(name, number, ["head targets", "tail targets"], parts))
    return figure.update_yaxes(title=METRICS[0])
