"""`Recommender`: a trained model, or several as one, that ranks items for any session of known items."""

from collections.abc import Sequence
from contextlib import ExitStack
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.recbole import Interaction
from recbole_llm4sbr.base.schema import schema
from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.model import SessionIntents
from recbole_llm4sbr.model.candidates import best_candidates
from recbole_llm4sbr.model.training_graphs import training_sessions
from recbole_llm4sbr.recommend.catalogue import Catalogue
from recbole_llm4sbr.recommend.intents import SOURCES, Found, IntentLookup, Source, rows_of
from recbole_llm4sbr.recommend.new_items import check_reads_cold, new_items
from recbole_llm4sbr.recommend.ranking import candidate_scores
from recbole_llm4sbr.training.ensemble import Weights, load_members, pool_members
from recbole_llm4sbr.training.epochs import describe_model
from recbole_llm4sbr.training.loading import Loaded

COLUMNS = ["session", "rank", "item", "title", "score", "intents"]


class Recommender:
    """Ranks items for sessions that nobody has seen before; make it with `load`.

    Args:
        members: trained models over the same items.
        model: the model that scores; of several members their sum.
    """

    def __init__(self, members: Sequence[Loaded], model: torch.nn.Module) -> None:
        first, self._members = members[0], members
        self._model, self._config, self._dataset = model, first.config, first.dataset
        self._longest = first.config["MAX_ITEM_LIST_LENGTH"]
        tokens = [str(token) for token in first.dataset.field2id_token[first.dataset.iid_field]]
        clicked = np.zeros(len(tokens), bool)
        clicked[np.concatenate(training_sessions(first.config, first.train_data.dataset))] = True
        settings, new = first.config["given"], getattr(first.dataset, "added", None)
        cold = new is not None or settings["cold_items"]
        by_text = cold and any(getattr(member.model, "reads_cold", False) for member in members)
        self.catalogue = Catalogue.read(settings, dataset_folder(settings), tokens, clicked.tolist(), new, by_text)
        self._lookups = [
            (intents, IntentLookup(member, intents, self.catalogue.titles))
            for member in members
            for intents in member.model.modules()
            if isinstance(intents, SessionIntents)
        ]

    @property
    def title(self) -> str:
        """The model, or how many there are, with whose intents."""
        if len(self._members) > 1:
            return f"ensemble of {len(self._members)}"
        return describe_model(self._config["given"])

    @classmethod
    def load(
        cls,
        checkpoints: str | Path | Sequence[str | Path],
        weights: Weights = "equal",
        classes: Sequence[str] = (),
        cold_items: bool = False,
        **changed: Any,
    ) -> "Recommender":
        """Load a checkpoint, or several as an ensemble.

        Args:
            checkpoints, weights, classes, changed: as for `load_ensemble`.
            cold_items: whether items of the raw `.item` file that the checkpoints do not know are read and ranked too, by their texts.

        Raises:
            UserError: as `load_ensemble`; `cold_items` for checkpoints of which none has a text tower.
        """
        paths = [checkpoints] if isinstance(checkpoints, str | Path) else checkpoints
        schema()["cold_items"].check(cold_items)
        if cold_items:
            check_reads_cold(paths)
        members = load_members(paths, classes, new_items if cold_items else None, **changed)
        return cls(members, members[0].model if len(members) == 1 else pool_members(members, weights))

    @classmethod
    def together(cls, recommenders: Sequence["Recommender"]) -> "Recommender":
        """Loaded models over the same items as an ensemble of equal weights; they share what is loaded, so that one ranks at a time."""
        members = [member for each in recommenders for member in each._members]
        return cls(members, pool_members(members, "equal"))

    def recommend(
        self,
        sessions: Sequence[Sequence[str | int]],
        topn: int = 10,
        intents: Source = "stored",
        names: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """The best items of each session.

        Args:
            sessions: ids or titles of each session's items, in click order; a whole number is the id of its digits. What is like an id or a
                title and is none is unknown.
            topn: items per session.
            intents: where a model that reads intents has them from, in falling order of what they cost: `ask` the LLM (answers are kept in
                the store), `stored`: the answer store has the very prompt, else as `nearest`: those of the training session nearest in the
                backbone's own space; `none`. Intents of `session_text` are computed, and ask nothing.
            names: what each session is called in the result; by default its number.

        Returns:
            `session`, `rank` from 1 on, `item`, `title`, `score`, `intents` (where they came from; "-" where the model reads none). Items
            that are no candidates are left out, so that a session may have fewer rows than `topn`.

        Raises:
            UserError: an empty session, an item that is unknown or ambiguous, or a wrong `topn` or `intents`.
        """
        if intents not in SOURCES:
            raise UserError(f"intents={intents!r} is unknown; choose one of {', '.join(SOURCES)}")
        if type(topn) is not int or topn < 1:
            raise UserError(f"topn={topn!r} must be a whole number of at least 1")
        named = [str(each) for each in (range(len(sessions)) if names is None else names)]
        numbers = [self.numbers(items, name) for items, name in zip(sessions, named, strict=True)]
        if not numbers:
            return pd.DataFrame(columns=COLUMNS)
        scores, sources = self.scores(numbers, intents)
        best, items = best_candidates(scores, min(topn, scores.size(1) - 1))
        kept = (best > -torch.inf).numpy()
        row, place = np.nonzero(kept)
        found = items.numpy()[kept]
        return pd.DataFrame(
            {
                "session": np.array(named, object)[row],
                "rank": place + 1,
                "item": [self.catalogue.tokens[item] for item in found],
                "title": [self.catalogue.titles[item] for item in found],
                "score": best.numpy()[kept].astype(float),
                "intents": np.array(sources, object)[row],
            },
            columns=COLUMNS,
        )

    def scores(self, sessions: Sequence[Sequence[int]], intents: Source = "stored") -> tuple[Tensor, list[str]]:
        """Scores of all items by their number, [B, n_items], -inf for padding and for what is no candidate; and where intents came from.

        Args:
            sessions: item numbers of each session, in click order.
            intents: as for `recommend`.
        """
        scores, found = self.ranked(sessions, intents)
        sources = [sorted({each.source[number] for each in found}) for number in range(len(sessions))]
        return scores, ["+".join(each) or "-" for each in sources]

    @torch.no_grad()
    def ranked(self, sessions: Sequence[Sequence[int]], intents: Source = "stored") -> tuple[Tensor, list[Found]]:
        """Scores as `scores` has them, and the intents of every member that reads some.

        Args:
            sessions, intents: as for `scores`.
        """
        interaction = self._interaction(sessions)
        rows = rows_of(sessions, self.catalogue.tokens, [str(each) for each in range(len(sessions))])
        read = [lookup(rows, interaction, intents) for _, lookup in self._lookups]
        with ExitStack() as held:
            for (part, _), found in zip(self._lookups, read):
                held.enter_context(part.holding(found.vectors, found.nearest, found.sims))
            scores = candidate_scores(self._model, self._config, interaction)
        if self._config["repeatable"] is False:  # nor are clicks older than those that the model reads
            row = np.repeat(np.arange(len(sessions)), [len(each) for each in sessions])
            scores[row, np.concatenate(sessions).astype(int)] = -torch.inf
        return scores, read

    def described(
        self, sessions: Sequence[Sequence[int]], scores: Tensor, found: Sequence[Found], topn: int
    ) -> list[dict[str, Any]]:
        """What `ranked` returned as plain types, a dictionary for each session.

        Args:
            sessions: as for `ranked`.
            scores, found: what it returned.
            topn: items per session.

        Returns:
            `items` (rank, item, title, score), `intents` (where they came from) and `localized`: by view the items that the intents were
            localized to, with similarities, in falling order; of several members those of the first that reads intents.
        """
        best, items = best_candidates(scores, min(topn, scores.size(1) - 1))
        result = []
        for row, (values, places) in enumerate(zip(best.tolist(), items.tolist())):
            ranking = [
                {"rank": rank, **self._named(place), "score": value}
                for rank, (value, place) in enumerate(zip(values, places), 1)
                if value > -np.inf
            ]
            localized = {}
            for each in found[:1]:
                if each.of_items:
                    near, sims = each.nearest[row].tolist(), each.sims[row].tolist()
                    localized = {
                        view: [{**self._named(item), "similarity": sim} for item, sim in zip(*pairs) if item and sim]
                        for view, *pairs in zip(each.views, near, sims)
                    }
            sources = sorted({each.source[row] for each in found})
            session = [self._named(number) for number in sessions[row]]
            result.append({"session": session, "items": ranking, "intents": "+".join(sources) or "-", "localized": localized})
        return result

    def _named(self, number: int) -> dict[str, str]:
        return {"item": self.catalogue.tokens[number], "title": self.catalogue.titles[number]}

    @property
    def _clicks(self) -> str:
        return str(self._config["ITEM_ID_FIELD"] + self._config["LIST_SUFFIX"])

    def numbers(self, items: Sequence[str | int], name: str = "0") -> list[int]:
        """Item numbers of a session, whose items are named by id or title; a whole number is the id of its digits, and no place.

        Raises:
            UserError: it is empty, or an item is unknown or ambiguous; `name` says which session.
        """
        if isinstance(items, str) or not len(items):
            said = f"{items!r} is no list of items" if isinstance(items, str) else "it has no items"
            raise UserError(f"session {name!r}: {said}; name at least one by id or title")
        try:
            return [self.catalogue.find(_text_of(item)) for item in items]
        except UserError as error:
            raise UserError(str(error) if name == "0" else f"session {name!r}: {error}") from None

    def _interaction(self, sessions: Sequence[Sequence[int]]) -> Interaction:
        """The sessions as the model reads them: their newest clicks, padded; numbered as if they were the only ones."""
        recent = [list(each)[-self._longest :] for each in sessions]
        clicks = torch.zeros(len(recent), self._longest, dtype=torch.long)
        for row, each in enumerate(recent):
            clicks[row, : len(each)] = torch.tensor(each)
        fields = {
            self._dataset.uid_field: torch.arange(len(recent)),
            self._clicks: clicks,
            self._dataset.item_list_length_field: torch.tensor([len(each) for each in recent]),
        }
        return Interaction(fields).to(self._config["device"])


def _text_of(item: Any) -> str:
    """An id or a title as text.

    Raises:
        UserError: it is neither a text nor a whole number, as 50.0, True or None, whose text would be another's title.
    """
    if isinstance(item, str):
        return item
    if isinstance(item, bool) or not isinstance(item, Integral):
        raise UserError(f"item {item!r} is neither a text nor a whole number; name items by id or title")
    return str(int(item))
