"""The answer of a block at a glance: a small table and a figure from the plain model to the LLM's intents."""

from collections.abc import Sequence

import plotly.graph_objects as go

from recbole_llm4sbr.report.figure import Figure
from recbole_llm4sbr.report.ladders import Ladder, Rung
from recbole_llm4sbr.report.style import COLOURS, QUIET
from recbole_llm4sbr.report.table import CHANCE, Table
from recbole_llm4sbr.report.verdicts import listed

ANSWER = "The answer"
HOW_TO_READ = (
    "In rising order of what the intents can know. Plain with text: the plain model, its item table started from text. No intents, random "
    "vectors, exchanged intents: the same model with these in the place of a session's own intents. Session text: the mean text of the "
    "session's items, which needs no LLM. Own settings: others than the row of the intents has. Intervals of 95 %; better and worse are "
    "said where the interval and a test over sessions, corrected for all tests of the table, agree; inside chance where they do not."
)


def answer_table(ladders: Sequence[Ladder]) -> Table | None:
    """A row for each rung; None where nothing is to be compared."""
    ladders = [ladder for ladder in ladders if ladder.top is not None and ladder.below]
    if not ladders:
        return None
    metric, rows = ladders[0].metric, []
    for ladder in ladders:
        for rung in ladder.rungs:
            name = f"{rung.label}\n{ladder.llm}" if rung is ladder.top and ladder.llm else rung.label
            tests = ladder.over_plain(rung), ladder.over(rung)
            said = (f"{test.interval}\n{CHANCE if test.verdict == 'no' else test.verdict}" if test else "" for test in tests)
            rows.append([ladder.model, name, rung.line.mean(metric), *said])
    tops = listed(sorted({ladder.top.name for ladder in ladders if ladder.top}), "or")
    return Table(ANSWER, HOW_TO_READ, ["model", "variant", metric, "over plain", f"{tops} over it"], rows)


def answer_figure(ladders: Sequence[Ladder]) -> Figure | None:
    """The improvement of every rung on the plain model, with its interval; None where none is tested."""
    pairs = [(ladder, rung) for ladder in ladders for rung in ladder.rungs]
    rows = [(ladder, rung, test) for ladder, rung in pairs if (test := ladder.over_plain(rung)) is not None and test.known]
    if not rows:
        return None
    several = len({ladder.model for ladder, _, _ in rows}) > 1
    names = [_place(ladder, rung, several) for ladder, rung, _ in rows]
    figure = go.Figure()
    for top, colour, symbol in ((False, COLOURS[0], "circle"), (True, COLOURS[5], "diamond")):
        shown = [(name, test) for name, (ladder, rung, test) in zip(names, rows) if (rung is ladder.top) == top]
        figure.add_trace(
            go.Scatter(
                x=[test.percent for _, test in shown], y=[name for name, _ in shown], mode="markers", showlegend=False,
                marker={"size": 11, "symbol": symbol, "color": colour},
                error_x={
                    "array": [test.high - test.percent for _, test in shown], "symmetric": False, "type": "data",
                    "arrayminus": [test.percent - test.low for _, test in shown], "color": colour, "thickness": 2, "width": 5,
                },
                text=[f"{test.interval}<br>{test.verdict}" for _, test in shown], hovertemplate="%{y}: %{text}<extra></extra>",
            )
        )  # fmt: skip
    figure.add_vline(x=0, line={"color": QUIET, "width": 2})
    figure.update_yaxes(categoryorder="array", categoryarray=list(dict.fromkeys(names))[::-1], ticksuffix=" ")
    figure.update_xaxes(title=f"{ladders[0].metric} over plain, in percent", zeroline=False)
    how = "Improvement on the plain model with its 95 % interval."
    return Figure(ANSWER, "Improvement on the plain model", how, figure, 90 + 34 * len(rows))


def _place(ladder: Ladder, rung: Rung, several: bool) -> str:
    """What stands at the axis of the figure."""
    own = rung.line.variant.partition("+llm=")[2]  # a control of one LLM of several
    name = ladder.llm if rung is ladder.top and ladder.llm else f"{rung.name} ({own})" if own else rung.name
    return f"{ladder.model}, {name}" if several else name
