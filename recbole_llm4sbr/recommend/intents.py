"""Intents of sessions that stand in no file: asked, found in the answer store, or those of the nearest training session."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import intents_of
from recbole_llm4sbr.base.records import IntentCounts
from recbole_llm4sbr.data.features import Vectors
from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.data.rows import SessionRows, read_items
from recbole_llm4sbr.intent.encoder import Encoder
from recbole_llm4sbr.intent.infer import localized
from recbole_llm4sbr.intent.llm_intents import Intents, ask_llm, known_answers
from recbole_llm4sbr.intent.localization import ItemIndex
from recbole_llm4sbr.intent.prompts import prompt_name
from recbole_llm4sbr.intent.session_text import session_text
from recbole_llm4sbr.model import SessionIntents
from recbole_llm4sbr.model.cold_items import trained_part
from recbole_llm4sbr.model.contract import SessionRecommender
from recbole_llm4sbr.model.intent_files import item_vectors
from recbole_llm4sbr.model.intents import shares
from recbole_llm4sbr.training.loading import Loaded

Source = Literal["stored", "ask", "nearest", "none"]
SOURCES = ("stored", "ask", "nearest", "none")
_ROWS = 512  # training sessions encoded at once


@dataclass(frozen=True)
class Found:
    """Intents of B sessions, in the form that `SessionIntents` keeps.

    Attributes:
        vectors: rows that intents are made of, [M, D].
        nearest, sims: as in `SessionIntents`, [B, V, k].
        source: of each session: `asked`, `stored`, `session_text`, `nearest` or `none`.
        views: the V views.
        of_items: whether `vectors` are the items' by their number, so that `nearest` names items.
    """

    vectors: Tensor
    nearest: Tensor
    sims: Tensor
    source: list[str]
    views: list[str]
    of_items: bool


@dataclass(frozen=True)
class _Items:
    """The M items of a model, padding among them, in the order of the catalogue: of its `.item` file, then those that came later.

    Attributes:
        order: the model's number of each, [M].
        place: where each number stands here, [M].
        tokens, titles: of each; titles as prompts have them.
        vectors: of their texts, [M, D].
        index: of those that intents may stand for.
    """

    order: npt.NDArray[np.int64]
    place: npt.NDArray[np.int64]
    tokens: list[str]
    titles: list[str]
    vectors: Vectors
    index: ItemIndex


class IntentLookup:
    """Looks intents up by what a session holds, for one trained model.

    Args:
        loaded: the model, its settings and its data.
        intents: the part of the model that holds intents.
        titles: what people are shown of each item, by its number.
    """

    def __init__(self, loaded: Loaded, intents: SessionIntents, titles: Sequence[str]) -> None:
        self._loaded, self._intents, self._titles = loaded, intents, list(map(prompt_name, titles))
        self._settings: Mapping[str, Any] = {**loaded.config["given"], "max_sessions": 0, "llm_refresh": False}
        # the controls say nothing of a session
        self._own = self._settings["intent_source"] not in ("none", "random", "shuffled")
        self._encoder: Encoder | None = None
        self._near: tuple[Any, Tensor] | None = None

    def __call__(self, rows: SessionRows, interaction: Any, source: Source) -> Found:
        """Intents of sessions; whichever cannot be had from `source` are those of the nearest training session, unless it is `none`.

        Args:
            rows: the sessions, their clicks as the model's item numbers.
            interaction: the same, as the model reads them.
            source: where intents come from; `stored` asks no LLM.

        Raises:
            UserError: the LLM is to be asked and fails.
        """
        held, count = self._intents, len(rows.ids)
        if source == "none" or self._settings["intent_source"] == "none":
            nothing = held.nearest.new_zeros(count, *held.nearest.shape[1:])
            return self._found(held.item_emb, nearest=nothing, sims=held.sims.new_zeros(nothing.shape), source=["none"] * count)
        vectors, nearest, sims = self._made(rows, source)
        said = "session_text" if intents_of(self._settings) == "session_text" else {"ask": "asked"}.get(source, "stored")
        origin = [said if has else "nearest" for has in (nearest[..., 0] != 0).all(1).tolist()]
        absent = torch.tensor([each == "nearest" for each in origin], device=nearest.device)
        if absent.any():
            place = self._nearest_training(interaction)[absent.cpu().numpy()]
            width = held.nearest.size(2)  # new sessions may have more titles than any in the files
            nearest[absent], sims[absent] = 0, 0
            nearest[absent, :, :width], sims[absent, :, :width] = held.nearest[place].to(nearest.dtype), held.sims[place]
        return self._found(vectors, nearest, sims, origin)

    def _found(self, vectors: Tensor, nearest: Tensor, sims: Tensor, source: list[str]) -> Found:
        of_items = bool(self._settings["intent_k"]) and self._settings["intent_source"] not in ("none", "random")
        return Found(vectors, nearest, sims, source, list(self._settings["views"]), of_items)

    def _made(self, rows: SessionRows, source: Source) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors, and rows of them with similarities by session and view, 0 where there is no intent."""
        held, settings = self._intents, self._settings
        views, k = settings["views"], settings["intent_k"]
        nearest = held.nearest.new_zeros(len(rows.ids), *held.nearest.shape[1:], dtype=torch.long)
        sims = held.sims.new_zeros(nearest.shape)
        if source == "nearest" or not self._own:
            return held.item_emb, nearest, sims
        items = self._items
        rows = replace(rows, tokens=items.tokens, clicks=items.place[rows.clicks].astype(np.int32))
        made = self._intents_of(rows, source)
        if made is None:
            return held.item_emb, nearest, sims
        if k == 0:  # the answers' own vectors
            vectors = torch.cat([held.item_emb, torch.from_numpy(made.vectors).to(held.item_emb)])
            sets = np.arange(len(made.vectors))[:, None] if made.sets is None else made.sets
            width = max(nearest.size(2), sets.shape[1])
            nearest = nearest.new_zeros(*nearest.shape[:2], width)
            for column, view in enumerate(views):
                titles = np.where(made.rows[view][:, None] < 0, -1, sets[made.rows[view]]).astype(np.int64)  # [B, n]
                places = torch.from_numpy(titles).to(nearest.device)
                nearest[:, column, : places.size(1)] = torch.where(places < 0, 0, places + len(held.item_emb))
            return vectors, nearest, shares(nearest).to(sims.dtype)
        found = localized(made, rows, items.tokens, items.index, settings)
        for column, view in enumerate(views):
            at = found.places[view]
            has = np.flatnonzero(at >= 0)
            nearest[has, column] = torch.from_numpy(items.order[found.items[at[has], :k]]).to(nearest.device)
            # as the feature files have them, with four decimals
            sims[has, column] = torch.from_numpy(np.round(found.sims[at[has], :k], 4)).to(sims)
        return held.item_emb, nearest, sims

    @cached_property
    def _items(self) -> _Items:
        """The items as `infer` has them, in the order of the catalogue, so that intents do not hang on the model's numbers."""
        dataset, settings = self._loaded.dataset, self._settings
        tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field]]
        catalogue = read_items(dataset_folder(settings) / f"{settings['dataset']}.item")["item_id"]
        place = pd.Index(catalogue).get_indexer(tokens)
        place[1:][place[1:] < 0] = len(catalogue)  # those that came after training, in their order; padding stays first
        order = np.argsort(place, kind="stable")
        vectors = item_vectors(self._loaded.config, dataset).numpy()
        known = vectors.copy()
        known[trained_part(dataset).item_num :] = 0  # no intent stands for an item that training does not have
        return _Items(
            order,
            np.argsort(order),
            [tokens[number] for number in order],
            [self._titles[number] for number in order],
            vectors[order],
            ItemIndex(known[order], settings["faiss_index"]),
        )

    def _intents_of(self, rows: SessionRows, source: Source) -> Intents | None:
        """The sessions' intents before localization; None where there are none.

        Args:
            rows: sessions over the tokens of `_items`.
            source: `ask` or `stored`.
        """
        settings, items = self._settings, self._items
        if intents_of(settings) == "session_text":
            return Intents(*session_text(rows, items.tokens, items.vectors, settings["views"]), IntentCounts())
        if source == "ask":
            given = {**settings, "llm_batch": False}  # whoever asks here waits
            return ask_llm(given, rows, self._text_encoder(), (items.tokens, items.vectors))
        return known_answers(settings, rows, self._text_encoder, items.titles, items.vectors)

    def _text_encoder(self) -> Encoder:
        if self._encoder is None:
            given = self._settings
            self._encoder = Encoder(given["encoder"], given["encoder_batch_size"], given["llm_device"])
        return self._encoder

    @torch.no_grad()
    def _nearest_training(self, interaction: Any) -> npt.NDArray[np.int64]:
        """Session ids of the training sessions with intents that are nearest by the cosine of the backbone's session embeddings, [B]."""
        import faiss

        if self._near is None:
            rows = self._loaded.train_data.dataset.inter_feat
            field = self._loaded.dataset.uid_field
            known = self._intents.known(rows[field].to(self._intents.nearest.device)).nonzero().squeeze(1).cpu()
            if not len(known):
                raise UserError("no training session has intents of all views; choose --intents=none")
            embedded = [self._embed(rows[piece].to(self._loaded.config["device"])) for piece in torch.split(known, _ROWS)]
            vectors = np.concatenate(embedded)
            index = faiss.IndexFlatIP(vectors.shape[1])
            index.add(vectors)
            self._near = index, rows[field][known]
        index, ids = self._near
        _, place = index.search(self._embed(interaction), 1)
        found: npt.NDArray[np.int64] = ids.numpy()[place[:, 0]]
        return found

    def _embed(self, interaction: Any) -> npt.NDArray[np.float32]:
        """Unit session embeddings of the backbone without intents, [B, H]."""
        model = self._loaded.model
        backbone = getattr(model, "backbone", model)
        if not isinstance(backbone, SessionRecommender) or backbone is model:
            # a baseline that reads intents alone has no embedding of its own: the session's items stand for it
            items = item_vectors(self._loaded.config, self._loaded.dataset).to(self._loaded.config["device"])
            embedding = items[interaction[self._loaded.config["ITEM_ID_FIELD"] + self._loaded.config["LIST_SUFFIX"]]].sum(1)
        else:
            interaction = backbone.readable(interaction)
            embedding = backbone.fuse(backbone.encode(interaction), interaction)
        unit: npt.NDArray[np.float32] = torch.nn.functional.normalize(embedding.float(), dim=-1).cpu().numpy()
        return np.ascontiguousarray(unit)


def rows_of(sessions: Sequence[Sequence[int]], tokens: Sequence[str], names: Sequence[str]) -> SessionRows:
    """Sessions of item numbers as prepared rows whose clicks are places in `tokens`; they have no targets."""
    lengths = np.array([len(each) for each in sessions], np.int64)
    clicks = np.array([number for each in sessions for number in each], np.int32)
    return SessionRows(tokens, list(names), clicks, np.r_[0, lengths.cumsum()], np.zeros(len(lengths), np.int32), lengths)
