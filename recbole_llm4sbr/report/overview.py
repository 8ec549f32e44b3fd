"""All answers of a report in one table: what text, session text and the LLM's intents are worth, by dataset and backbone."""

from collections.abc import Sequence

from recbole_llm4sbr.report.comparisons import Comparison
from recbole_llm4sbr.report.ladders import LLM, PLAIN, SESSION_TEXT, TEXT, Ladder
from recbole_llm4sbr.report.table import CHANCE, Table
from recbole_llm4sbr.report.verdicts import finding

OVERVIEW = "At a glance"
_SAY_NOTHING = ("no intents", "random vectors", "exchanged intents")
_HOW = (
    "Test, in percent, mean ± standard deviation over the seeds, by the metric that selects the epoch. Controls: the best of no intents, "
    "random vectors and exchanged intents, which say nothing of the session. Intervals of 95 %, and whether a difference is more than "
    "chance, are those of the tests behind."
)


def overview_table(blocks: Sequence[tuple[str, Sequence[Ladder]]]) -> Table | None:
    """A row for each backbone that has intents and a plain model beside it; None where those of one block, which says it itself, are all.

    Args:
        blocks: the title of each, and its ladders.
    """
    rows = [
        [title, ladder.model, finding(ladder), *_scores(ladder), *_gains(ladder)]
        for title, ladders in blocks
        for ladder in ladders
        if ladder.worth[0]
    ]
    metrics = {ladder.metric for _, ladders in blocks for ladder in ladders if ladder.worth[0]}
    head = ["data", "model", "finding", PLAIN, TEXT, "controls", SESSION_TEXT, LLM, "over plain", f"{LLM} over {SESSION_TEXT}"]
    how = f"{', '.join(sorted(metrics))}. {_HOW}"
    said = [column for column in range(len(head)) if any(row[column] for row in rows)]
    rows = [[row[column] for column in said] for row in rows]
    return Table(OVERVIEW, how, [head[column] for column in said], rows, texts=3) if len({row[0] for row in rows}) > 1 else None


def _scores(ladder: Ladder) -> list[str]:
    """The metric of each kind of rung, "" where there is none; of the controls without content that of the best one."""
    by_name = {rung.name: rung for rung in ladder.rungs}
    nothing = [by_name[name] for name in _SAY_NOTHING if name in by_name]
    best = max(nothing, key=lambda rung: sum(rung.line.scores(ladder.metric)) / len(rung.line.results), default=None)
    kinds = [(by_name.get(name), "") for name in (PLAIN, TEXT)]
    kinds += [(best, best.name if best else ""), (by_name.get(SESSION_TEXT), ""), (by_name.get(LLM), ladder.llm)]
    return ["\n".join(filter(None, (rung.line.mean(ladder.metric), name))) if rung else "" for rung, name in kinds]


def _gains(ladder: Ladder) -> list[str]:
    """What the intents are over the plain model, and an LLM's over session text."""
    text = next((rung for rung in ladder.below if rung.name == SESSION_TEXT), None)
    plain = ladder.over(ladder.plain) if ladder.plain is not None else None
    return [_gain(plain), _gain(ladder.over(text) if text is not None else None)]


def _gain(test: Comparison | None) -> str:
    return f"{test.interval}\n{CHANCE if test.verdict == 'no' else test.verdict}" if test is not None else ""
