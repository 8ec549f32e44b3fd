"""The figures of grids (the paper's Figures 5-7 and what people look at besides), by plotly."""

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from recbole_llm4sbr.base.metrics import is_per_session
from recbole_llm4sbr.base.names import ENSEMBLE
from recbole_llm4sbr.report.block import Block, Line, main_lines, main_metrics
from recbole_llm4sbr.report.figure import Figure
from recbole_llm4sbr.report.search_figures import figures_of_search
from recbole_llm4sbr.report.searches import search_titles
from recbole_llm4sbr.report.style import COLOURS, DASHES, PATTERNS, SYMBOLS
from recbole_llm4sbr.report.table import COST, POPULARITY, TRAINING
from recbole_llm4sbr.report.unfinished import in_legend, note

Panel = tuple[str, Callable[[Line], tuple[float, float]]]  # its axis, and the mean and the spread of a line


def figures_of(block: Block) -> Iterator[Figure]:
    """All figures that a block has the runs for."""
    for group in block.groups:
        yield from _of_group(group, block.of(group))
    for search, title in zip(block.searches, search_titles(block.searches)):
        yield from figures_of_search(search, title)
    if not block.groups:
        return
    main = main_lines(block)
    metrics = main_metrics(main)
    metric = next(iter(main[0].results.values())).valid_metric
    models, names = _names(main)
    lines_said = ", ".join(f"{name}: {DASHES[number % 6]}" for number, name in enumerate(names))
    said = f" Lines: {lines_said}." if len(models) > 1 else ""
    yield Figure(TRAINING, TRAINING, f"{metric} in percent, first seed.{said}{note(main)}", _training(main), 440)
    trained = [line for line in main if not line.variant.startswith(ENSEMBLE)]  # an ensemble has no epochs of its own
    if trained:
        how = "Median seconds of a training epoch and peak memory, mean over the seeds." + note(main)
        yield Figure(COST, COST, how, *_panels(trained, [("s per epoch", _seconds), ("peak MB", _memory)]))
    if all(line.ranks for line in main) and len(main) > 1 and is_per_session(metrics[0]):
        how = f"{metrics[0]} in percent; head: the 20 % of items that the training part clicks most." + note(main)
        yield Figure(POPULARITY, POPULARITY, how, *_panels(main, [_popular(metrics[0], True), _popular(metrics[0], False)]))


def _of_group(group: str, lines: Sequence[Line]) -> Iterator[Figure]:
    """A curve where the lines differ in one number, else bars; nothing of a single line."""
    metrics = main_metrics(lines)
    swept = [_swept(line) for line in lines]
    how = "Test, in percent; bars and whiskers: mean and standard deviation over the seeds (none with one seed)."
    how += note(lines)
    if len({key for key, _ in filter(None, swept)}) == 1 and all(swept) and len(lines) > 1:
        key = swept[0][0]  # type: ignore[index]
        how = how.replace("bars and whiskers", "points and whiskers")
        yield Figure(group, f"{group}: {key}", how, _curve(lines, key, metrics), 480)
    elif len(lines) > 1:
        yield Figure(group, group, how, *_panels(lines, [(metric, _moments(metric)) for metric in metrics]))


def _swept(line: Line) -> tuple[str, float] | None:
    """The number that a variant's name sets, as `llm4sbr+intent_k=3`."""
    found = re.fullmatch(r"[^+]*\+(\w+)=([-+.\deE]+)", line.variant)
    return (found[1], float(found[2])) if found else None


def _moments(metric: str) -> Callable[[Line], tuple[float, float]]:
    def of(line: Line) -> tuple[float, float]:
        scores = line.scores(metric)
        return float(np.mean(scores)), float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0

    return of


def _seconds(line: Line) -> tuple[float, float]:
    return float(np.mean([np.median(result.seconds_per_epoch) for result in line.results.values()])), 0.0


def _memory(line: Line) -> tuple[float, float]:
    return float(np.mean([result.peak_memory_mb for result in line.results.values()])), 0.0


def _popular(metric: str, wanted: bool) -> Panel:
    """A metric of the sessions whose target is popular, or of the others."""

    def of(line: Line) -> tuple[float, float]:
        rows = line.ranks[min(line.ranks)]
        head = rows["head"][np.argsort(rows["session"], kind="stable")]
        where = head if wanted else ~head
        return 100 * float(line.by_seed(metric, sorted(line.ranks))[:, where].mean()), 0.0

    return f"{metric}, {'head' if wanted else 'tail'} targets", of


def _names(lines: Sequence[Line]) -> tuple[list[str], list[str]]:
    return list(dict.fromkeys(line.model for line in lines)), list(dict.fromkeys(line.name for line in lines))


def _panels(lines: Sequence[Line], panels: Sequence[Panel]) -> tuple[go.Figure, int]:
    """A panel with an axis of its own for each quantity, and the height of them all.

    Of one model a bar lies behind each variant's name; of several, models stand on the axis, and a bar per variant.
    """
    several = len({line.model for line in lines}) > 1
    return _upright(lines, panels) if several else _lying(lines, panels)


def _upright(lines: Sequence[Line], panels: Sequence[Panel]) -> tuple[go.Figure, int]:
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for number, name in enumerate(_names(lines)[1]):
        own = {line.model: line for line in lines if line.name == name}
        for row, (axis, moments) in enumerate(panels, 1):
            means, spreads = zip(*map(moments, own.values()))
            bar = _bar(in_legend(name, own), number, x=list(own), y=means, error_y=_whiskers(spreads))
            bar.update(legendgroup=name, showlegend=row == 1, hovertemplate=f"%{{x}}<br>{name}: %{{y:.2f}}<extra></extra>")
            figure.add_trace(bar, row=row, col=1).update_yaxes(title=axis, row=row, col=1)
    return figure, 480


def _lying(lines: Sequence[Line], panels: Sequence[Panel]) -> tuple[go.Figure, int]:
    """Bars at their places in pixels, since a long name needs more room than a short one."""
    names = [_broken(in_legend(line.name, {line.name: line})) for line in lines]
    room = [12 + 15 * (name.count("<br>") + 1) for name in names]
    places = [sum(room[:number]) + own / 2 for number, own in enumerate(room)]
    height = 40 + len(panels) * (48 + sum(room))
    figure = make_subplots(rows=len(panels), cols=1, vertical_spacing=52 / height, subplot_titles=[axis for axis, _ in panels])
    for number, (line, name, place) in enumerate(zip(lines, names, places)):
        for row, (_, moments) in enumerate(panels, 1):
            mean, spread = moments(line)
            bar = _bar(name, number, x=[mean], y=[place], error_x=_whiskers([spread]), orientation="h", width=19)
            bar.update(showlegend=False, hovertemplate=f"{name}: %{{x:.2f}}<extra></extra>")
            figure.add_trace(bar, row=row, col=1)
    figure.update_yaxes(tickvals=places, ticktext=names, range=[sum(room), 0], ticksuffix=" ", showgrid=False)
    return figure.update_annotations(font={"size": 13}), height


def _bar(name: str, number: int, **more: Any) -> go.Bar:
    """Bars of one series."""
    return go.Bar(name=name, marker={"color": COLOURS[number % 8], "pattern": {"shape": PATTERNS[number % 8]}}, **more)


def _whiskers(spreads: Sequence[float]) -> dict[str, Any]:
    return {"type": "data", "array": spreads, "visible": any(spreads)}


def _broken(name: str, width: int = 27) -> str:
    """A name on lines that fit beside an axis, broken behind commas and before what it changes.

    >>> _broken("llm4sbr+fusion=gate+late+item_init=random")
    'llm4sbr+fusion=gate+late<br>+item_init=random'
    """
    lines = textwrap.wrap(re.sub(r"(?<! )\+", " +", name).replace(",", ", "), width)
    return "<br>".join(re.sub(r" \+(?! )", "+", line) for line in lines)


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
            moments = [_moments(metric)(line) for _, line in points]
            trace = go.Scatter(
                x=[f"{value:g}" for value, _ in points], y=[mean for mean, _ in moments], name=name,
                legendgroup=f"{model} {variant}", showlegend=row == 1,
                error_y=_whiskers([spread for _, spread in moments]),
                mode="lines+markers", line={"color": COLOURS[number % 8], "dash": DASHES[number % 6]},
                marker={"symbol": SYMBOLS[number % 8], "size": 9},
            )  # fmt: skip
            figure.add_trace(trace, row=row, col=1)
            figure.update_yaxes(title=metric, row=row, col=1)
    return figure.update_xaxes(title=key, type="category", row=len(metrics), col=1)


def _training(lines: Sequence[Line]) -> go.Figure:
    """The validation score of each epoch."""
    figure = go.Figure()
    models, names = _names(lines)
    for line in lines:
        result = line.results[min(line.results)]
        scores, step = result.valid_scores, result.budget.eval_step
        model, variant = models.index(line.model), names.index(line.name)
        own = [each for each in lines if each.model == line.model] if len(models) > 1 else [line]
        name = in_legend(line.model if len(models) > 1 else line.name, {each.name: each for each in own})
        first = line is own[0]
        colour, dash = (model, variant) if len(models) > 1 else (variant, 0)
        figure.add_trace(
            go.Scatter(
                x=[step * number - 1 for number in range(1, len(scores) + 1)], y=[100 * score for score in scores],
                name=name, mode="lines+markers",
                legendgroup=line.model if len(models) > 1 else line.name, showlegend=first,
                line={"color": COLOURS[colour % 8], "dash": DASHES[dash % 6]}, marker={"symbol": SYMBOLS[colour % 8], "size": 6},
            )
        )  # fmt: skip
    longest = max(max(trace.x, default=0) + 1 for trace in figure.data)
    figure.update_xaxes(title="epoch", tick0=0, dtick=next(step for step in whole_steps() if longest <= 12 * step))
    return figure.update_yaxes(title="validation")


def whole_steps() -> Iterator[int]:
    """Steps between the ticks of an axis of whole numbers: 1, 2, 5, 10, 20, 50, ..."""
    size = 1
    while True:
        yield from (size, 2 * size, 5 * size)
        size *= 10
