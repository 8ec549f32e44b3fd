"""How good intents are before any training: do answers name items, do they repeat the session, do they hit the target.

The training and the validation part are looked at, targets of the validation part alone; the test part is not looked at.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.base.records import IntentQuality, PreparedCounts, ViewQuality
from recbole_llm4sbr.base.wording import aligned, percent
from recbole_llm4sbr.data.features import Localized
from recbole_llm4sbr.data.folders import asked_targets, dataset_folder
from recbole_llm4sbr.data.manifest import Manifest
from recbole_llm4sbr.data.rows import SessionRows, ranges, read_items
from recbole_llm4sbr.intent.cleaning import tidy
from recbole_llm4sbr.intent.llm_intents import Intents
from recbole_llm4sbr.intent.prompts import UNKNOWN_ITEM, item_names

Numbers = npt.NDArray[np.int64]

_ROWS = 50_000  # sessions looked at together


def quality_of(
    settings: Mapping[str, Any],
    prepared: Manifest,
    intents: Intents,
    rows: SessionRows,
    tokens: Sequence[str],
    found: Localized,
) -> IntentQuality:
    """The quality of a run's intents; titles are what prompts call the items.

    Args:
        settings: of the run.
        prepared: the manifest of the session files.
        intents, rows, tokens, found: as for `measure`.
    """
    titles = None
    if intents.names:
        items = read_items(dataset_folder(settings) / f"{settings['dataset']}.item")
        named = dict(zip(items["item_id"], item_names(items, settings)))
        titles = [named[token] for token in tokens]
    targets = asked_targets(settings)
    parts = PreparedCounts.from_json(prepared.counts).of_targets(targets, targets)
    return measure(intents, found, rows, tokens, titles, parts, "nearest" if settings["repeatable"] else "title")


def measure(
    intents: Intents,
    found: Localized,
    rows: SessionRows,
    tokens: Sequence[str],
    titles: Sequence[str] | None,
    parts: Mapping[str, int],
    inside_by: str,
) -> IntentQuality:
    """The quality of all sessions' intents.

    Args:
        intents: of the sessions.
        found: the items nearest to them.
        rows: the sessions: first the training part, then the validation part, then any others, which are not looked at.
        tokens: item tokens of the catalogue.
        titles: what each item is called, in the same order; None where no LLM answers.
        parts: rows of the parts `train` and `valid`.
        inside_by: `nearest` or `title`, as in `IntentQuality`.
    """
    place = rows.places_in(tokens)
    train, seen = parts["train"], parts["train"] + parts["valid"]
    title, answer = _numbered(titles, intents.names) if titles is not None else (None, None)
    views = []
    for view, column in intents.rows.items():
        at = found.places[view][:seen].astype(np.int64)
        has = np.flatnonzero(at >= 0)
        said, owner = None, has
        if answer is not None:
            numbers = column[has, None] if intents.sets is None else intents.sets[column[has]]  # [has, n]
            owner, said = np.repeat(has, (numbers >= 0).sum(1)), answer[numbers[numbers >= 0]]  # every title of these sessions
        inside: float | None = None
        if inside_by == "nearest":
            inside = _inside(rows, has, found.items[at[has], 0], place)
        elif said is not None and title is not None:
            inside = _inside(rows, owner, said, title[place])
        late = train + np.flatnonzero(at[train:] >= 0)
        hit = found.items[at[late]] == place[rows.targets[late]][:, None]  # [valid sessions, K]
        views.append(
            ViewQuality(
                view,
                len(has),
                _share(said >= 0) if said is not None else None,
                inside,
                len(late),
                np.logical_or.accumulate(hit, 1).mean(0).round(4).tolist() if len(late) else [],
            )
        )
    return IntentQuality(inside_by, views, _equal([found.places[view][:seen] for view in intents.rows], found))


def _numbered(titles: Sequence[str], names: Sequence[str]) -> tuple[Numbers, Numbers]:
    """A number for each distinct title: of every item, -2 without a title; and of every answer, -1 for one that is no title.

    An answer was cleaned, so that titles are tidied before the comparison too; upper and lower case do not count.
    """
    number: dict[str, int] = {}
    cleaned = ["" if title == UNKNOWN_ITEM else tidy(title).casefold() for title in titles]
    of_items = [number.setdefault(title, len(number)) if title else -2 for title in cleaned]
    return np.array(of_items, np.int64), np.array([number.get(tidy(name).casefold(), -1) for name in names], np.int64)


def _inside(rows: SessionRows, chosen: Numbers, wanted: npt.NDArray[np.integer], of_token: Numbers) -> float | None:
    """Share of the chosen rows that hold a click whose number is the wanted one; None of no rows.

    Args:
        rows: the sessions.
        chosen: some of them, [n].
        wanted: a number for each of these, [n].
        of_token: the number of each of `rows.tokens`.
    """
    count = 0
    for first in range(0, len(chosen), _ROWS):
        some = chosen[first : first + _ROWS]
        starts, lengths = rows.starts[some], rows.starts[some + 1] - rows.starts[some]
        clicks = of_token[rows.clicks[ranges(starts, lengths)]]
        same = clicks == np.repeat(wanted[first : first + _ROWS], lengths)
        count += int(np.logical_or.reduceat(same, np.cumsum(lengths) - lengths).sum())
    return round(count / len(chosen), 4) if len(chosen) else None


def _equal(places: Sequence[npt.NDArray[np.int32]], found: Localized) -> float | None:
    """Share of the sessions with an intent in every view whose nearest items are the same in all; None of no sessions or a single view."""
    has = np.flatnonzero(np.all([place >= 0 for place in places], 0))
    if len(places) < 2 or not len(has):
        return None
    same = 0
    for first in range(0, len(has), _ROWS):
        one, *others = (found.items[place[has[first : first + _ROWS]]] for place in places)  # [n, K] each
        same += int(np.all([(one == other).all(1) for other in others], 0).sum())
    return round(same / len(has), 4)


def _share(which: npt.NDArray[np.bool_]) -> float | None:
    return round(float(which.mean()), 4) if len(which) else None


def describe_quality(quality: IntentQuality, intent_k: int) -> str:
    """The quality as a small table for people; hits at `intent_k` and at 20, or at as many as are stored."""
    inside = "nearest in session" if quality.inside_by == "nearest" else "title in session"
    rows = [
        {"view": each.view, "sessions": each.sessions, "a title": percent(each.titles), inside: percent(each.inside)}
        | {f"hit@{cutoff}": percent(each.hit(cutoff)) for cutoff in quality.cutoffs(intent_k)}
        for each in quality.views
    ]
    lines = ["intents of the training and validation sessions (hits: of validation, among the nearest items)", aligned(rows)]
    if quality.equal is not None:
        lines.append(f"the same nearest items in all views: {percent(quality.equal)} of the sessions")
    return "\n".join(lines)
