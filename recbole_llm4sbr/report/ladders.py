"""What a model with intents stands on: the plain model, controls whose intents say ever more, and the intents themselves, in one table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from recbole_llm4sbr.base.facts import engine, llm_name
from recbole_llm4sbr.base.names import ENSEMBLE, split_changes
from recbole_llm4sbr.report.block import Block, Line, is_llm4sbr, is_plain_with_text
from recbole_llm4sbr.report.comparisons import Comparison
from recbole_llm4sbr.report.statistics import ONE_SEED, UNFINISHED_RUN

PLAIN, TEXT, SESSION_TEXT, ECHO, LLM = "plain", "plain with text", "session text", "echo", "LLM"
CONTROLS = {"none": "no intents", "random": "random vectors", "shuffled": "exchanged intents", "session_text": SESSION_TEXT}


@dataclass(frozen=True)
class Rung:
    """A line of a ladder, and what it is there.

    Attributes:
        name: `PLAIN`, `TEXT`, one of `CONTROLS`, `ECHO`, or `LLM`.
        line: which.
    """

    name: str
    line: Line

    @property
    def label(self) -> str:
        """The name as a table shows it, with a word where other settings than the text and the LLM are the line's own."""
        changes = [each.partition("=")[0] for each in split_changes(self.line.variant)[1:]]
        return f"{self.name}, own settings" if set(changes) - {"item_init", "llm"} else self.name


@dataclass(frozen=True)
class Ladder:
    """A backbone with one source of intents, and what it is held against.

    Attributes:
        group, model: where it stands.
        top: the model with intents; None where the table has none.
        below: what it is held against, in rising order.
        metric: that it is judged by.
        tests: by line and reference.
        without_result: cells of the model in the table that have no result.
    """

    group: str
    model: str
    top: Rung | None
    below: list[Rung]
    metric: str
    tests: Mapping[tuple[int, int], Comparison] = field(repr=False)
    without_result: int = 0

    @property
    def llm(self) -> str:
        """The LLM whose intents are on top; "" where it is another's."""
        return llm_name(self.top.line.settings) if self.top is not None and self.top.name == LLM else ""

    @property
    def plain(self) -> Rung | None:
        """The plain model that the top is tested against, without text where there is one; else any that is there."""
        plain = [rung for rung in self.below if rung.name in (PLAIN, TEXT)]
        return next((rung for rung in plain if self.over(rung) is not None), plain[0] if plain else None)

    @property
    def controls(self) -> list[tuple[Rung, Comparison]]:
        """The others below that the top is tested against."""
        return [(rung, test) for rung in self.below if rung is not self.plain and (test := self.over(rung)) is not None]

    @property
    def rungs(self) -> list[Rung]:
        """All of them in rising order."""
        return [*self.below, *([] if self.top is None else [self.top])]

    def over(self, rung: Rung) -> Comparison | None:
        """The top against a rung; None where they are not tested."""
        return self.tests.get((id(self.top.line), id(rung.line))) if self.top is not None else None

    def over_plain(self, rung: Rung) -> Comparison | None:
        """A rung against the plain model; None where they are not tested."""
        return self.tests.get((id(rung.line), id(self.plain.line))) if self.plain is not None else None

    @property
    def worth(self) -> tuple[bool, int, int]:
        """How much it tells: whether it is held against a plain model, the tests that are judged, the rungs."""
        found = [test for rung in self.below if (test := self.over(rung)) is not None]
        judged = sum(test.verdict not in (ONE_SEED, UNFINISHED_RUN) for test in found)
        return self.plain is not None and self.over(self.plain) is not None, judged, len(self.below)


def ladders_of(block: Block, tests: Mapping[str, Sequence[Comparison]]) -> list[Ladder]:
    """Of each model and source of intents the ladder that tells most, an LLM's first; of a model without intents its plain lines."""
    metric = _metric(block, tests)
    best: dict[tuple[str, str], Ladder] = {}
    for group in block.groups:
        found = {(id(each.line), id(each.reference)): each for each in tests[group] if each.metric == metric}
        single = [line for line in block.of(group) if not line.variant.startswith(ENSEMBLE)]
        for model in dict.fromkeys(line.model for line in single):
            lines = [line for line in single if line.model == model]
            failed = sum(len(line.reasons) for line in block.lines if (line.group, line.model) == (group, model))
            tops: list[Rung | None] = [*_tops(lines)]
            for top in tops or [None]:
                ladder = Ladder(group, model, top, _below(lines, top), metric, found, failed)
                place = (model, ladder.llm or (top.name if top else ""))
                if place not in best or ladder.worth > best[place].worth:
                    best[place] = ladder
    with_intents = {model for (model, source) in best if source}
    kept = [ladder for (model, source), ladder in best.items() if source or model not in with_intents]
    return sorted(kept, key=lambda ladder: (not ladder.llm, ladder.top is None))


def _metric(block: Block, tests: Mapping[str, Sequence[Comparison]]) -> str:
    """The metric that selects the epoch, where it is tested; else the first that is."""
    usual = block.valid_metrics[0]
    tested = [each.metric for found in tests.values() for each in found]
    return next((metric for metric in tested if metric.lower() == usual.lower()), tested[0] if tested else usual)


def _source(line: Line) -> str:
    """Whose intents of a session's own a line reads, as a rung is called: an LLM's, those of `echo`, or session text; "" where none."""
    source = str(line.settings.get("intent_source", "")) if line.settings.get("llm4sbr") else ""
    if source == "llm":
        return ECHO if engine(line.settings) == "echo" else LLM
    return SESSION_TEXT if source == "session_text" else ""


def _tops(lines: Iterable[Line]) -> list[Rung]:
    """The lines of a model whose intents are judged: LLM4SBR, of each LLM, by that name; else the nearest to it that is there."""
    with_intents = [line for line in lines if _source(line)]
    chosen = [line for line in with_intents if is_llm4sbr(line.variant)] or sorted(with_intents, key=_distance)[:1]
    return [Rung(_source(line), line) for line in chosen]


def _same(line: Line, other: Line) -> bool:
    """Whether two lines are one, or are the very same runs."""
    return line is other or bool(line.keys and line.keys == other.keys)


def _distance(line: Line) -> tuple[bool, bool]:
    """How far a line with intents is from `llm4sbr` by its name."""
    return line.variant.partition("+")[0] != "llm4sbr", line.variant == "session_text"


def _below(lines: Sequence[Line], top: Rung | None) -> list[Rung]:
    """What is held against a top: the plain model with and without text, and the controls of the same LLM."""
    named = [
        line for line in lines if line.variant.partition("+")[0] in ("plain", "w/o LLM") or is_plain_with_text(line.variant)
    ]
    plain = [line for line in named if not line.settings.get("llm4sbr")]
    rungs = []
    for name, wanted in ((PLAIN, False), (TEXT, True)):
        own = [line for line in plain if (line.settings.get("item_init", "random") != "random") == wanted]
        rungs += [Rung(name, min(own, key=lambda line: len(line.variant)))] if own else []
    if top is None:
        return rungs
    match = is_llm4sbr(top.line.variant)
    suffix = match[1] or "" if match else ""
    for variant, name in CONTROLS.items():
        own = [line for line in lines if line.variant in (variant + suffix, variant) and not _same(line, top.line)]
        rungs += [Rung(name, max(own, key=lambda line: len(line.variant)))] if own else []
    return rungs
