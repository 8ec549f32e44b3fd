"""Did the language model help? The answer of a block in words: a topic, and a sentence with the numbers of each finding."""

from collections.abc import Sequence

from recbole_llm4sbr.base.wording import percent
from recbole_llm4sbr.report.ladders import CONTROLS, LLM, PLAIN, SESSION_TEXT, TEXT, Ladder, Rung
from recbole_llm4sbr.report.statistics import ONE_SEED, UNFINISHED_RUN
from recbole_llm4sbr.report.unfinished import named_runs

WHAT_THE_LLM_ADDED = "What the language model added"
_SEARCH = "A search of settings"
_STRONGEST = ((SESSION_TEXT,), (CONTROLS["random"], CONTROLS["shuffled"]), (CONTROLS["none"],))
_NOT_JUDGED = (ONE_SEED, UNFINISHED_RUN)


def page_title(ladders: Sequence[Sequence[Ladder]]) -> str:
    """The title of a page over the ladders of its blocks: what the LLM added is said only where every block can say it."""
    topics = {topic(each) for each in ladders}
    if topics in ({WHAT_THE_LLM_ADDED}, {_SEARCH}):
        return topics.pop()
    if any(ladder.top for each in ladders for ladder in each):
        return "Session recommenders with and without intents"
    return "Session recommenders compared"


def topic(ladders: Sequence[Ladder]) -> str:
    """What the tables of a block can speak of; a block without any is a search."""
    if not ladders:
        return _SEARCH
    of_llm = [ladder for ladder in ladders if ladder.llm]
    if of_llm:
        controlled = any(rung.name in CONTROLS.values() for ladder in of_llm for rung, _ in ladder.controls)
        return WHAT_THE_LLM_ADDED if controlled else "With and without intents of a language model"
    if tops := {ladder.top.name for ladder in ladders if ladder.top}:
        said = "Intents of session text" if tops == {SESSION_TEXT} else "Intents"
        return f"{said}; no language model was asked"
    return "No intents"


def sentences(ladders: Sequence[Ladder]) -> list[str]:
    """A sentence for all backbones of which the same is found, with the finding in Markdown's bold."""
    if not ladders:
        return ["**Nothing is compared here**; the best trial of a search is tested once."]
    alike: dict[tuple[str, str], list[Ladder]] = {}
    for ladder in ladders:
        alike.setdefault((ladder.llm, finding(ladder)), []).append(ladder)
    several = len({ladder.llm for ladder in ladders if ladder.llm}) > 1
    return [_sentence(same, found, llm if several else "") for (llm, found), same in alike.items()]


def finding(ladder: Ladder) -> str:
    """What is found of a ladder's intents, in words without numbers.

    A gain over the plain model is ascribed to what intents say only where they are better than every control too that they are tested
    against, and to the LLM only where session text is one of these.
    """
    if ladder.top is None:
        return "no variant with intents, so nothing to judge"
    of_llm = ladder.top.name == LLM
    said = f"the LLM's intents{_asked_for(ladder.top)}" if of_llm else f"intents of {ladder.top.name}"
    asked = "" if of_llm else "no LLM was asked; "
    if ladder.plain is None:
        return f"{asked}no plain model beside {said}: not judged"
    test = ladder.over(ladder.plain)
    if test is None:
        return f"{asked}not tested, since ranks of single sessions are missing: not judged"
    if test.verdict in _NOT_JUDGED:
        return asked + test.verdict
    if test.verdict == "worse":
        return f"{asked}worse with {said} than {ladder.plain.name}"
    if test.verdict == "no":
        return f"{asked}no gain beyond chance from {said}"
    return asked + _better(ladder.plain, ladder, said, of_llm)


def _better(plain: Rung, ladder: Ladder, said: str, of_llm: bool) -> str:
    """What may be said of intents that are better than the plain model, by the controls that they are tested against."""
    unknown = f"what the {'LLM' if of_llm else 'text'} adds is not shown"
    better = f"better with {said} than {plain.name}"
    names = [rung.name for rung, _ in ladder.controls]
    if not names:
        return f"{better}, but not tested against any control: {unknown}"
    if equal := [rung.name for rung, test in ladder.controls if test.verdict in ("no", "worse")]:
        return f"{better}, but not better than {listed(equal, 'or')}: {unknown}"
    if unjudged := [rung.name for rung, test in ladder.controls if test.verdict in _NOT_JUDGED]:
        return f"{better}, but not judged against {listed(unjudged, 'or')}: {unknown}"
    if of_llm and SESSION_TEXT not in names:
        return f"{better} and {listed(names)}, but not tested against session text, which needs no LLM: {unknown}"
    return f"{said} help: better than {plain.name} and than every control ({listed(names)})"


def _asked_for(top: Rung) -> str:
    """The share of intents that the LLM was asked for, where that is not all of them."""
    found = [result.infer for result in top.line.results.values() if result.infer is not None]
    left_out, intents = sum(each.not_asked for each in found), sum(each.intents + each.no_intent for each in found)
    return f" (only {percent(intents / (intents + left_out))} of them were asked for)" if left_out else ""


def _sentence(ladders: Sequence[Ladder], found: str, llm: str) -> str:
    """One sentence over backbones of which the same is found."""
    who = listed([ladder.model for ladder in ladders]) + (f" with {llm}" if llm else "")
    return f"{who}: **{found}**; " + "; ".join(filter(None, (_numbers(ladders), _ground(ladders)))) + "."


def _numbers(ladders: Sequence[Ladder]) -> str:
    """The improvements on the plain models and the strongest controls that are there; the table has all."""
    names = [rung.name for rung in ladders[0].below if ladders[0].over(rung) is not None]
    strongest = next((each for each in _STRONGEST if set(each) & set(names)), ())
    names = [name for name in names if name in (PLAIN, TEXT, *strongest)]
    metrics = [f" {ladders[0].metric}", *[""] * len(names)]
    return ", ".join(f"{_over(ladders, name)}{metric} over {name}" for name, metric in zip(names, metrics))


def _over(ladders: Sequence[Ladder], name: str) -> str:
    """The improvements on a rung: with their intervals of one or two backbones, of more from the least to the largest."""
    tests = [(ladder, test) for ladder in ladders for rung in ladder.below if rung.name == name and (test := ladder.over(rung))]
    if len(ladders) > 2:
        values = [test.percent for _, test in tests]
        return f"{min(values):+.1f} to {max(values):+.1f} %"
    return " and ".join(test.interval + (f" ({ladder.model})" if len(ladders) > 1 else "") for ladder, test in tests)


def _ground(ladders: Sequence[Ladder]) -> str:
    """What the numbers rest on: seeds, unfinished runs, cells without a result."""
    lines = [rung.line for ladder in ladders for rung in ladder.rungs]
    if not lines:
        return ""
    fewest, most = (find(len(line.results) for line in lines) for find in (min, max))
    seeds = f"{fewest} seed{'s' * (fewest > 1)}" if fewest == most else f"{fewest} to {most} seeds"
    failed = sum(ladder.without_result for ladder in ladders)
    said = f"{seeds}, unfinished: {named_runs(lines) or 'none'}"
    return said + f", cells without a result: {failed}" * bool(failed)


def listed(names: Sequence[str], last: str = "and") -> str:
    """Names as a list in words.

    >>> listed(["SRGNN", "NARM", "STAMP"]), listed(["SRGNN"])
    ('SRGNN, NARM and STAMP', 'SRGNN')
    """
    return f" {last} ".join(filter(None, (", ".join(names[:-1]), names[-1])))
