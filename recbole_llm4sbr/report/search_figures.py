"""Figures of searches: a heat map of two settings, parallel coordinates of more, and a curve per setting."""

from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from recbole_llm4sbr.base.grids import Search, Trial
from recbole_llm4sbr.base.wording import show
from recbole_llm4sbr.report.figure import Figure
from recbole_llm4sbr.report.searches import by_two, distinct, note_of_trials
from recbole_llm4sbr.report.style import COLOURS, QUIET
from recbole_llm4sbr.report.unfinished import UNFINISHED


def figures_of_search(search: Search, section: str) -> Iterator[Figure]:
    """A heat map where two settings were searched, parallel coordinates of more, and a curve per setting."""
    metric, model = search.metric, search.model
    trials = [trial for trial in search.trials if trial.score is not None]
    note = note_of_trials(search)
    if found := by_two(search):
        row_key, column_key = found.row_key, found.column_key
        texts = [[text.replace(" ", "<br>") for text in found.texts(number, "")] for number in range(len(found.rows))]
        figure = go.Figure(
            go.Heatmap(
                z=found.scores, x=list(map(show, found.columns)), y=list(map(show, found.rows)), colorscale="Cividis",
                text=texts, texttemplate="%{text}", colorbar={"thickness": 12},
                hovertemplate=f"{row_key} %{{y}}, {column_key} %{{x}}: %{{z:.2f}}<extra></extra>",
            )
        )  # fmt: skip
        figure.update_xaxes(title=column_key, type="category").update_yaxes(title=row_key, type="category")
        title, how = f"Search: {row_key} and {column_key} ({model})", f"{metric} on validation, in percent.{note}"
        yield Figure(section, title, how, figure, 420)
    elif len(trials[0].setting) > 1:
        how = f"A line is a trial, dotted where it is unfinished; {metric} on validation, in percent.{note}"
        yield Figure(section, f"Search: all settings ({model})", how, _parallel(trials, metric, search.bigger), 460)
    for key in trials[0].setting:
        how = f"{metric} on validation, in percent: each trial, and the best of each value.{note}"
        yield Figure(section, f"Search: {key} ({model})", how, _points(trials, key, search.bigger), 300)


# how the lines of trials look that are the best, in the better half, and the others
_LEVELS = {
    "best": ("the best", {"color": COLOURS[5], "width": 4}),
    "better": ("the better half", {"color": COLOURS[4], "width": 2}),
    "other": ("the others", {"color": QUIET, "width": 1}),
}


def _points(trials: Sequence[Trial], key: str, bigger: bool) -> go.Figure:
    values = [trial.setting[key] for trial in trials]
    scores = [100 * (trial.score or 0.0) for trial in trials]
    different = distinct(values)
    listed = len(different) < len(values) or not all(isinstance(value, int | float) for value in values)
    x = list(map(show, values)) if listed else values
    figure = go.Figure()
    for unfinished, name, symbol in ((False, "a trial", "circle-open"), (True, f"a trial ({UNFINISHED})", "x-open")):
        shown = [place for place, trial in enumerate(trials) if trial.unfinished == unfinished]
        if shown:
            marker = {"color": COLOURS[4], "symbol": symbol, "size": 9}
            places, heights = [x[place] for place in shown], [scores[place] for place in shown]
            figure.add_trace(go.Scatter(x=places, y=heights, mode="markers", name=name, marker=marker))
    if listed:
        names = list(map(show, different))
        best = [(max if bigger else min)(score for at, score in zip(x, scores) if at == name) for name in names]
        figure.add_trace(
            go.Scatter(
                x=names,
                y=best,
                name="the best",
                mode="lines+markers",
                line={"color": COLOURS[0]},
                marker={"symbol": "square", "size": 8},
            )
        )
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=names)
    return figure.update_xaxes(title=key).update_yaxes(title="validation")


def _parallel(trials: Sequence[Trial], metric: str, bigger: bool) -> go.Figure:
    """Parallel coordinates: a line is a trial, every setting a vertical axis with its values evenly or, of numbers, to scale."""
    columns = {key: [trial.setting[key] for trial in trials] for key in trials[0].setting}
    columns[metric] = [100 * (trial.score or 0.0) for trial in trials]
    places, ticks = [], []
    for values in columns.values():
        different = distinct(values)
        if all(isinstance(value, int | float) for value in values):
            low, high = min(values), max(values)
            places.append([(value - low) / (high - low or 1) for value in values])
            ticks.append([f"{low:.3g}", f"{high:.3g}"])
        else:
            names = list(map(show, different))
            places.append([names.index(show(value)) / max(len(names) - 1, 1) for value in values])
            ticks.append([names[0], names[-1]])
    figure = go.Figure()
    order = sorted(range(len(trials)), key=lambda number: columns[metric][number], reverse=not bigger)  # the best on top
    named = set()
    for rank, number in enumerate(order, 1):
        unfinished = trials[number].unfinished
        said = "<br>".join(f"{key} {show(values[number], 4)}" for key, values in columns.items())
        said += f"<br>{UNFINISHED}" * unfinished
        name, line = _LEVELS["best" if rank == len(order) else "better" if 2 * rank > len(order) else "other"]
        figure.add_trace(
            go.Scatter(
                x=list(columns), y=[column[number] for column in places], mode="lines+markers",
                name=name, legendgroup=name, showlegend=name not in named,
                line={**line, "dash": "dot" if unfinished else "solid"}, text=said, hovertemplate="%{text}<extra></extra>",
            )
        )  # fmt: skip
        named.add(name)
    for key, (low, high) in zip(columns, ticks):
        figure.add_vline(x=key, line={"color": QUIET, "width": 1})
        for text, y, anchor in ((low, -0.02, "top"), (high, 1.02, "bottom")):
            figure.add_annotation(x=key, y=y, text=text, showarrow=False, yanchor=anchor)
    figure.update_yaxes(visible=False, range=[-0.15, 1.15])
    return figure.update_xaxes(showgrid=False, tickangle=-25)
