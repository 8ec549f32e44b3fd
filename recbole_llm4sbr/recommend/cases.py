"""Sessions looked at whole: items and target, what the LLM was asked and said of each view, the items that its answers stand for, and what
trained models make of it all (paper Figures 3, 4 and 8)."""

import difflib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import intents_of, uses_intents
from recbole_llm4sbr.base.records import PreparedCounts
from recbole_llm4sbr.base.wording import beginning, shortened
from recbole_llm4sbr.data.checks import check_intents, check_items, check_prepared, settled
from recbole_llm4sbr.data.features import read_localized
from recbole_llm4sbr.data.folders import dataset_folder, intents_folder, part_files
from recbole_llm4sbr.data.manifest import Manifest
from recbole_llm4sbr.data.rows import SessionRows, read_items, read_sessions, session_of
from recbole_llm4sbr.data.sessions import PARTS
from recbole_llm4sbr.intent.llm_intents import Asked, asked_about
from recbole_llm4sbr.intent.prompts import shown_names
from recbole_llm4sbr.recommend.ranking import Ranker

TOPN = 5  # recommendations, and nearest items at least


@dataclass(frozen=True)
class Item:
    """An item in a session's case.

    Attributes:
        token, title: its id, and what prompts call it.
        in_session, target: whether the session holds it, and whether it is what comes next.
        value: its similarity to an intent, or its score by a model; 0 of a click.
    """

    token: str
    title: str
    in_session: bool = False
    target: bool = False
    value: float = 0.0


@dataclass(frozen=True)
class ViewCase:
    """A session's intent in one view.

    Attributes:
        view: its name.
        asked: the prompt, the raw answer and the name in it; None where no LLM answers.
        near: the nearest items in falling order of similarity; none where the session has no intent in this view.
        taken: how many of them the model takes (`intent_k`).
    """

    view: str
    asked: Asked | None
    near: list[Item]
    taken: int


@dataclass(frozen=True)
class ModelCase:
    """What a checkpoint makes of a session.

    Attributes:
        checkpoint, about: its file, and the model in words.
        rank, candidates, gates: as in `Ranked`.
        best: the best candidates.
    """

    checkpoint: str
    about: str
    rank: int
    candidates: int
    best: list[Item]
    gates: dict[str, float]


@dataclass(frozen=True)
class Case:
    """A session whole.

    Attributes:
        session, part: its id, and the part that it stands in.
        items, target: its clicks in their order, and what comes next.
        source: whose the intents are: `llm`, `session_text` or `none`.
        note: why there are no intents to show; "" where there are.
        views: its intents.
        models: what models make of it.
    """

    session: str
    part: str
    items: list[Item]
    target: Item
    source: str
    note: str
    views: list[ViewCase]
    models: list[ModelCase]


class Inspector:
    """Finds sessions of prepared files, and all that is known of them.

    Args:
        settings: whose files are read; `of_models` takes those of checkpoints.
        rankers: trained models, in the order in which they are compared.

    Raises:
        UserError: files that are not there or were made otherwise; without intents only where a model reads them.
    """

    def __init__(self, settings: Mapping[str, Any], rankers: Sequence[Ranker] = ()) -> None:
        prepared = check_prepared(settings)
        self._settings: Mapping[str, Any] = settled(settings, prepared)
        self._rankers = list(rankers)
        folder = dataset_folder(settings)
        self._note = self._missing_intents(prepared)
        targets = settings["train_targets"], settings["eval_targets"]
        longest = settings["MAX_ITEM_LIST_LENGTH"]
        self._rows = read_sessions(folder, settings["dataset"], *part_files(*targets), longest=longest)
        self._place = {session: row for row, session in enumerate(self._rows.ids)}
        counts = PreparedCounts.from_json(prepared.counts).of_targets(*targets)
        self._ends = np.cumsum([counts[part] for part in PARTS])
        items = read_items(folder / f"{settings['dataset']}.item")
        self._titles = shown_names(items, settings)

    @classmethod
    def of_models(cls, rankers: Sequence[Ranker]) -> "Inspector":
        """By the settings of the first model that reads intents, else of the first."""
        return cls(next((each for each in rankers if each.reads_intents), rankers[0]).settings, rankers)

    def _missing_intents(self, prepared: Manifest) -> str:
        """Why there are no intents to show; "" where there are.

        Raises:
            UserError: the settings need them, and they are not there.
        """
        if intents_of(self._settings) == "none":
            return "intent_source=none: there are no intents"
        try:
            check_intents(self._settings, prepared, check_items(self._settings, prepared))
        except UserError as error:
            if uses_intents(self._settings):
                raise
            return f"no intents are shown: {error}"
        return ""

    def find(self, session: str) -> str:
        """The id of a row of any part: the given one, or of a session the one with its last target.

        Raises:
            UserError: there is none; names near ones.
        """
        if session in self._place:
            return session
        if row := {session_of(each): each for each in self._rows.ids}.get(session):  # later parts and longer prefixes come last
            return row
        like = heapq.nlargest(500, self._rows.ids, key=lambda each: beginning(each, session))
        near = difflib.get_close_matches(session, like, 3, 0.5) or like[:3]
        shown = ", ".join(shortened(each, 60) for each in near)
        raise UserError(
            f"there is no session {shortened(session, 60)!r} in {self._settings['dataset']!r}; its ids are like {shown}"
        )

    def draw(self, count: int, seed: int) -> list[str]:
        """Ids of sessions of the test part, drawn without return; at most all of them."""
        test = range(self._ends[1], self._ends[2])
        drawn = np.random.default_rng(seed).choice(test, min(count, len(test)), replace=False)
        return [self._rows.ids[row] for row in drawn.tolist()]

    def extreme(self, count: int, best: bool) -> list[str]:
        """Ids of the test sessions whose target's rank improves (or worsens) most from the first model to the second.

        Of a single model, those with the best (or worst) ranks. Targets that are no candidates are left out.

        Raises:
            UserError: there is no model, or no session's rank improves (or worsens).
        """
        if not self._rankers:
            raise UserError("there is no model to rank by; name one or two with --checkpoints=a.pth,b.pth")
        first, *others = (ranker.test_ranks() for ranker in self._rankers[:2])
        known = [name for name, rank in first.items() if rank and all(each[name] for each in others)]
        gain = {name: first[name] - others[0][name] if others else -first[name] for name in known}
        order = sorted(known, key=lambda name: -gain[name] if best else gain[name])
        if others:
            order = [name for name in order if (gain[name] > 0 if best else gain[name] < 0)]
        if not order:
            between = " to ".join(repr(each.checkpoint) for each in self._rankers[:2])
            how = ("improves from" if best else "worsens from") if others else "is a candidate of"
            raise UserError(f"no test session's target {how} {between}; choose --random=N instead")
        return order[:count]

    def cases(self, sessions: Sequence[str]) -> list[Case]:
        """All that is known of sessions that are there."""
        chosen = [self._place[each] for each in sessions]
        rows = self._rows.take(chosen)
        settings, source = self._settings, intents_of(self._settings)
        cells: dict[str, dict[str, str]] = {}
        asked: list[dict[str, Asked]] = [{} for _ in sessions]
        if not self._note:
            path = intents_folder(dataset_folder(settings), settings) / f"{settings['dataset']}.sessemb"
            cells = read_localized(path, sessions)
            asked = asked_about(settings, self._rows, chosen) if source == "llm" else asked
        return [self._case(rows, row, cells.get(each), asked[row]) for row, each in enumerate(sessions)]

    def _case(self, rows: SessionRows, row: int, cells: Mapping[str, str] | None, asked: Mapping[str, Asked]) -> Case:
        session, clicks, target = rows.ids[row], rows.prefix(row), rows.tokens[rows.targets[row]]
        held = set(clicks)

        def item(token: str, value: float = 0.0) -> Item:
            return Item(token, self._titles.get(token, token), token in held, token == target, value)

        views, k = [], self._settings["intent_k"]
        for view in self._settings["views"] if cells else ():
            pairs = zip((cells or {})[f"{view}_items"].split(), (cells or {})[f"{view}_sims"].split())
            near = [item(token, float(similarity)) for token, similarity in pairs]
            views.append(ViewCase(view, asked.get(view), near[: max(k, TOPN)], k))
        models = []
        for ranker in self._rankers:
            made = ranker.rank(session, TOPN)
            best = [item(token, score) for token, score in made.best]
            models.append(ModelCase(ranker.checkpoint, ranker.about, made.rank, made.candidates, best, made.gates))
        part = PARTS[int(np.searchsorted(self._ends, self._place[session], "right"))]
        source = intents_of(self._settings)
        return Case(session, part, [item(token) for token in clicks], item(target), source, self._note, views, models)
