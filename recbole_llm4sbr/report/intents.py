"""The intents that the runs of a report read: who made them, and what they are worth before any training."""

from collections.abc import Sequence

from recbole_llm4sbr.base.facts import intents_name, intents_of, llm_name, uses_intents
from recbole_llm4sbr.base.records import IntentQuality, ViewQuality
from recbole_llm4sbr.base.results import RunResult
from recbole_llm4sbr.base.wording import percent
from recbole_llm4sbr.report.block import Line
from recbole_llm4sbr.report.table import Table


def describe_intents(result: RunResult) -> str:
    """Who made the intents that a run read, in words."""
    settings, counts = result.settings, result.infer
    if counts is None:
        return "no intents."
    if settings["intent_source"] != "llm":
        return (
            "**no language model was asked here.** LLM4SBR reads `session_text`: the mean text vector of the session's items (of its last "
            "three for the short view). It shows what the fusion does with text, not what an LLM adds."
        )
    text = (
        f"answers of {llm_name(settings)}, {counts.prompts:,} prompts, {counts.no_intent:,} of "
        f"{counts.intents + counts.no_intent:,} intents missing; text encoder {settings['encoder']}"
    )
    if counts.not_asked:
        text += f"; {counts.not_asked:,} further intents were not asked for (max_sessions={settings['max_sessions']})"
    return text + "."


def describe_all(lines: Sequence[Line]) -> str | None:
    """Who made the intents of all lines named `llm4sbr`, or else of those that read an LLM's, in words; None where there are none."""
    results = [(line.variant, next(iter(line.results.values()))) for line in lines if line.results]
    named = [each for variant, each in results if variant.partition("+")[0] == "llm4sbr"]
    reading = [each for _, each in results if each.infer and uses_intents(each.settings) and intents_of(each.settings) == "llm"]
    return " ".join(dict.fromkeys(map(describe_intents, named or reading))) or None


def quality_table(lines: Sequence[Line]) -> Table | None:
    """What the intents are worth before training, by source and view; None where no line has them measured."""
    rows: dict[tuple[str, str], list[str]] = {}
    cutoffs: list[int] = []
    found = [result for line in lines for result in line.results.values()]
    encoders = {result.settings.get("encoder") for result in found if result.infer is not None}
    for result in found:
        own = result.settings
        if result.infer is None or result.infer.quality is None or own["intent_source"] in ("shuffled", "random"):
            continue
        if not uses_intents(own):
            continue
        name = llm_name(own) if intents_of(own) == "llm" else intents_name(own)
        if intents_of(own) == "llm" and own.get("intent_answers", 1) > 1:
            name += f", {own['intent_answers']} titles"
        if len(encoders) > 1:
            name += f", encoder {own.get('encoder')}"
        quality = result.infer.quality
        cutoffs = cutoffs or quality.cutoffs(own["intent_k"])
        for each in quality.views:
            rows.setdefault((name, each.view), _row(name, each, quality, cutoffs))
    if not rows:
        return None
    how = (
        "Sessions of the training and the validation part. A title: the answer is the name of an item of the catalogue. In its session: "
        "that item, or where a session's items are candidates the item nearest to the answer, was clicked before. Hits: of the targets "
        "of the validation part, among the nearest items of the view. Alike: all views of a session have the same nearest items. The "
        "test part is not looked at, and nothing is trained."
    )
    head = ["intents", "view", "sessions", "a title", "in its session", *(f"hit@{cutoff}" for cutoff in cutoffs), "alike"]
    return Table("The intents before any training", how, head, list(rows.values()), 2)


def _row(name: str, view: ViewQuality, quality: IntentQuality, cutoffs: Sequence[int]) -> list[str]:
    shares = [view.titles, view.inside, *map(view.hit, cutoffs), quality.equal]
    return [name, view.view, f"{view.sessions:,}", *map(percent, shares)]
