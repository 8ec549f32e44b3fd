"""What a model is worth before any training of a recommender: its intents of some validation sessions, which no tuning has read."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recbole_llm4sbr.base.facts import intents_of
from recbole_llm4sbr.base.records import IntentCounts, IntentQuality
from recbole_llm4sbr.base.settings import Settings
from recbole_llm4sbr.base.wording import aligned, percent
from recbole_llm4sbr.data.folders import asked_targets, dataset_folder, part_file
from recbole_llm4sbr.data.rows import SessionRows, read_items, read_sessions
from recbole_llm4sbr.data.sessions import PARTS
from recbole_llm4sbr.intent.encoder import Encoder
from recbole_llm4sbr.intent.infer import localized
from recbole_llm4sbr.intent.llm_intents import Intents, ask_llm
from recbole_llm4sbr.intent.localization import ItemIndex
from recbole_llm4sbr.intent.prompts import item_names, item_texts
from recbole_llm4sbr.intent.quality import measure
from recbole_llm4sbr.intent.session_text import session_text

_STORED = 20  # nearest items of an intent, for Hit@20


def sample(settings: Mapping[str, Any], most: int) -> SessionRows:
    """Rows of the validation part, evenly spread over it."""
    longest = settings["MAX_ITEM_LIST_LENGTH"]
    file = part_file(PARTS[1], asked_targets(settings))
    rows = read_sessions(dataset_folder(settings), settings["dataset"], file, longest=longest)
    chosen = (
        np.unique(np.linspace(0, len(rows.ids) - 1, min(most, len(rows.ids))).astype(int)) if rows.ids else np.zeros(0, int)
    )
    return rows.take(chosen.tolist())


def judge(settings: Mapping[str, Any], rows: SessionRows, encoder: Encoder) -> IntentQuality:
    """The quality of the intents that `settings` ask for: an LLM's, or those of `session_text`.

    Args:
        settings: of a run; the dataset is prepared, `repeatable` is settled.
        rows: of the validation part.
        encoder: of the settings.
    """
    settings = Settings(settings) | {"intent_k_max": _STORED, "max_sessions": 0}
    items = read_items(dataset_folder(settings) / f"{settings['dataset']}.item")
    tokens = items["item_id"].tolist()
    vectors = encoder.encode(item_texts(items, settings))
    titles = None
    if intents_of(settings) == "llm":
        intents, titles = ask_llm(settings, rows, encoder, (tokens, vectors)), item_names(items, settings)
    else:
        intents = Intents(*session_text(rows, tokens, vectors, settings["views"]), IntentCounts())
    found = localized(intents, rows, tokens, ItemIndex(vectors, "Flat"), settings)
    parts = {"train": 0, "valid": len(rows.ids)}
    return measure(intents, found, rows, tokens, titles, parts, "nearest" if settings["repeatable"] else "title")


def describe(judged: Mapping[str, IntentQuality], intent_k: int) -> str:
    """What was judged as one table, a line for each model and view."""
    lines: list[dict[str, Any]] = []
    for name, quality in judged.items():
        for each in quality.views:
            outside = None if each.inside is None else 1 - each.inside
            hits = {f"hit@{cutoff}": percent(each.hit(cutoff)) for cutoff in quality.cutoffs(intent_k)}
            lines.append(
                {"": name, "view": each.view, "outside the session": percent(outside), "exact titles": percent(each.titles)}
                | hits
            )
    return aligned(lines)


def mean_hit(quality: IntentQuality, cutoff: int) -> float:
    """Mean hit rate over the views; 0 of none."""
    hits: Sequence[float | None] = [each.hit(cutoff) for each in quality.views]
    return float(np.mean([hit or 0.0 for hit in hits])) if hits else 0.0
