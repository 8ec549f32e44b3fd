"""Any RecBole sequential model that compares a session embedding with its item table, as a backbone of ours.

Global is what the model's `forward` returns, local the embedding of the last click; unwrapped it scores as the original does. What a model
has of its own beyond that (CORE's cosine, FEARec's contrastive losses, penalties) stands in one table, `_ADAPTATIONS`.
"""

import inspect
import math
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.recbole import MODELS, import_models
from recbole_llm4sbr.model.contract import SessionEmbeddings, SessionRecommender
from recbole_llm4sbr.model.dropout import quicken_dropout
from recbole_llm4sbr.model.fearec import FEARecContrast
from recbole_llm4sbr.model.packed_gru import pack_gru
from recbole_llm4sbr.model.prefixes import take
from recbole_llm4sbr.model.text_items import TextItems

REMEDY = "write it as a SessionRecommender (docs/backbones.md), or train it plain with --llm4sbr=false"
# Models of RecBole that cannot be adapted, and why.
REFUSED = {
    "HGN": "its score has three parts",
    "NPE": "its score has two parts",
    "TransRec": "it scores by distance",
    "BERT4Rec": "it predicts masked clicks",
    "S3Rec": "it is trained in two stages",
    "RepeatNet": "it mixes two probability distributions",
    "DIN": "it scores one item at a time",
    "DIEN": "it scores one item at a time",
    "FPMC": "it scores pairs of items",
    "GRU4RecKG": "it needs a knowledge graph",
    "KSR": "it needs a knowledge graph",
    "SHAN": "its loss needs a reversed session from RecBole's data augmentation",
}
_SEQUENCE, _LENGTH = ("item_seq", "seq_item"), ("item_seq_len", "seq_item_len")


@dataclass(frozen=True)
class _Adaptation:
    """What a model of RecBole has of its own.

    Attributes:
        temperature: of the cosine by which it scores; None where it scores by dot product.
        items: the item embeddings that it scores, [n_items, H].
        penalty: what its loss adds to cross-entropy for its parameters, a scalar.
        contrast: what its loss adds for the batch, made of model and training part.
        prefixes: the session embeddings of prefixes, [P, H], made of model, clicks [B, L] and the row [P] and place [P] where each prefix
            ends; None where the model looks ahead, so that each prefix is a session of its own.
        ignores_padding: whether a session embedding is the same, to rounding, without the places behind the session's last click.
            False where a model reads them: it normalises over places, or its padding row is not zero.
    """

    temperature: Callable[[Any], float] | None = None
    items: Callable[[Any], Tensor] = lambda m: m.item_embedding.weight
    penalty: Callable[[Any], Tensor] | None = None
    contrast: type[FEARecContrast] | None = None
    prefixes: Callable[[Any, Tensor, Tensor, Tensor], Tensor] | None = None
    ignores_padding: bool = False


def _gathered(model: Any, item_seq: Tensor, row: Tensor, place: Tensor) -> Tensor:
    """Of a model whose embedding at a click depends on that click and earlier ones: it gathers those of all prefixes, not of the last."""
    model.gather_indexes = lambda output, _: output[row, place]
    try:
        return model(item_seq, (item_seq > 0).sum(1))  # type: ignore[no-any-return]
    finally:
        del model.gather_indexes


def _narm(model: Any, item_seq: Tensor, row: Tensor, place: Tensor) -> Tensor:
    """NARM (Li et al. 2017, eq. 4-8): each prefix attends to its own clicks."""
    states, _ = model.gru(model.emb_dropout(model.item_embedding(item_seq)))  # [B, L, H]
    last = states[row, place]  # [P, H]
    seen = torch.arange(item_seq.size(1), device=item_seq.device) <= place.unsqueeze(1)  # [P, L]
    weights = model.v_t(torch.sigmoid(model.a_1(states)[row] + model.a_2(last).unsqueeze(1))).squeeze(-1) * seen  # [P, L]
    local = torch.bmm(weights.unsqueeze(1), states[row]).squeeze(1)  # [P, H]
    return model.b(model.ct_dropout(torch.cat([local, last], 1)))  # type: ignore[no-any-return]


def _core(model: Any, item_seq: Tensor, row: Tensor, place: Tensor) -> Tensor:
    """CORE (Hou et al. 2022, eq. 3-6): a prefix is a mean of its clicks, whose weights are a softmax over them."""
    logits: list[Tensor] = []
    handle = model.net.fn.register_forward_hook(lambda _, __, values: logits.append(values))
    clicks = model.sess_dropout(model.item_embedding(item_seq))  # [B, L, H]
    model.net(item_seq, clicks)
    handle.remove()
    seen = torch.arange(item_seq.size(1), device=item_seq.device) <= place.unsqueeze(1)  # [P, L]
    weights = logits[0].squeeze(-1)[row].masked_fill(~seen, -torch.inf).softmax(1)  # [P, L]
    return nn.functional.normalize(torch.bmm(weights.unsqueeze(1), clicks[row]).squeeze(1), dim=-1)


_ADAPTATIONS = {
    "CORE": _Adaptation(
        temperature=lambda m: m.temperature,
        items=lambda m: m.item_dropout(m.item_embedding.weight),
        ignores_padding=True,
        prefixes=_core,
    ),
    "FEARec": _Adaptation(contrast=FEARecContrast),
    "GCSAN": _Adaptation(penalty=lambda m: m.reg_weight * m.reg_loss(m.item_embedding.weight), ignores_padding=True),
    "NextItNet": _Adaptation(
        penalty=lambda m: m.reg_weight * m.reg_loss([m.item_embedding.weight, m.final_layer.weight]) + m.reg_loss_rb()
    ),
    "SINE": _Adaptation(penalty=lambda m: m.calculate_reg_loss() * m.reg_loss_ratio * (m.loss_type not in ("CE", "BPR"))),
    "NARM": _Adaptation(ignores_padding=True, prefixes=_narm),
    **dict.fromkeys(
        ("FDSA", "GRU4Rec", "GRU4RecF", "SASRec", "SASRecF"), _Adaptation(ignores_padding=True, prefixes=_gathered)
    ),
}


def shares_prefixes(model: type, settings: Any) -> bool:
    """Whether the adapter trains a class on all prefixes of a session in one pass: one of RecBole's, or one that has its `forward`."""
    name = next(kind for kind in model.__mro__ if "forward" in vars(kind)).__name__
    if name == "CORE" and settings["dnn_type"] != "trm":
        return False
    return _of_recbole(model, "forward") and getattr(_ADAPTATIONS.get(name), "prefixes", None) is not None


def _of_recbole(model: type, method: str) -> bool:
    """Whether a class has a method of RecBole's."""
    return next(kind for kind in model.__mro__ if method in vars(kind)).__module__.startswith("recbole.")


def check_adaptable(model: type) -> None:
    """Refuse a model class that cannot be adapted, with the reason and what to do.

    Raises:
        UserError: the class is in `REFUSED`, or its `forward` needs more than a session's clicks and length.
    """
    name = model.__name__
    of_recbole = (kind.__name__ for kind in model.__mro__ if kind.__module__.startswith("recbole."))
    if refused := next((each for each in of_recbole if each in REFUSED), None):
        raise UserError(f"{name} cannot be wrapped: {REFUSED[refused]}; {REMEDY}")
    needed = list(inspect.signature(model.forward).parameters)[1:]  # type: ignore[attr-defined]
    if missing := [argument for argument in needed if argument not in (*_SEQUENCE, *_LENGTH)]:
        raise UserError(
            f"{name} cannot be wrapped: its forward() needs {', '.join(missing)}, which a session does not have; {REMEDY}"
        )


def has_item_table(model: nn.Module) -> bool:
    """Whether a model has the item table that the adapter scores, or is a session recommender, which brings its own."""
    return isinstance(model, SessionRecommender) or isinstance(getattr(model, "item_embedding", None), nn.Embedding)


class AdaptedRecommender(SessionRecommender):
    """A RecBole model behind our contract.

    Args:
        config: RecBole's config.
        dataset: RecBole's dataset of the training part.
        model: the model; its `item_embedding` is the item table.

    Raises:
        UserError: it has no `item_embedding`, `check_adaptable` refuses it, or it scores by cosine and `similarity` asks for that too.
    """

    GROUPS = 4  # of like length in a batch; one where a recurrence skips padding by itself, since each has as many steps as its longest

    def __init__(self, config: Any, dataset: Any, model: nn.Module) -> None:
        super().__init__(config, dataset)
        name = type(model).__name__
        check_adaptable(type(model))
        if not has_item_table(model):
            raise UserError(f"{name} cannot be wrapped: it has no item_embedding table; {REMEDY}")
        self.model = model
        quicken_dropout(model)
        for part in model.modules():
            if getattr(getattr(part, "intermediate_act_fn", None), "__name__", "") == "gelu":  # RecBole's, in six operations
                part.intermediate_act_fn = nn.functional.gelu  # type: ignore[assignment]
        self._arguments = list(inspect.signature(model.forward).parameters)
        of_recbole = [kind.__name__ for kind in type(model).__mro__ if kind.__module__.startswith("recbole.")]
        self._adaptation = next((_ADAPTATIONS[kind] for kind in of_recbole if kind in _ADAPTATIONS), _Adaptation())
        self._contrast = self._adaptation.contrast(model, dataset) if self._adaptation.contrast else None
        known = self._adaptation.ignores_padding and _of_recbole(type(model), "forward")
        self.ignores_padding = bool(getattr(model, "ignores_padding", known))
        self._lengths: Tensor | None = None
        recurrences = [each for each in model.children() if isinstance(each, nn.GRU)] if self.ignores_padding else []
        for gru in recurrences:
            pack_gru(gru, lambda: self._lengths)
        self._groups = 1 if recurrences else self.GROUPS
        if self._adaptation.temperature:
            if self.temperature is not None:
                raise UserError(f"{name} scores by cosine as it is, over its temperature; leave similarity=dot")
            self.temperature = self._adaptation.temperature(model)
        self._drop_clicks()

    @property
    def item_module(self) -> nn.Module:
        """The model's own item embeddings."""
        items: nn.Module = self.model.item_embedding  # type: ignore[assignment]
        return items

    def take_items(self, tower: TextItems) -> None:
        """Put a text tower in the place of the model's item embeddings."""
        self.model.item_embedding = tower
        self._drop_clicks()

    def _drop_clicks(self) -> None:
        """Let `embedding_dropout` drop numbers of the clicks that the model looks up."""
        if self.embedding_dropout:
            self.item_module.register_forward_hook(lambda _, __, values: self.dropped(values, self.embedding_dropout))

    @property
    def item_table(self) -> Tensor:
        """The model's own item embeddings, [n_items, H]."""
        table: Tensor = self.item_module.weight  # type: ignore[assignment]
        return table

    def encode(self, interaction: Any) -> SessionEmbeddings:
        """Global: the model's forward; local: the last click's item embedding."""
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        last = torch.gather(item_seq, 1, (length - 1).unsqueeze(1)).squeeze(1)  # [B]
        return SessionEmbeddings(self.model.item_embedding(last), self._session_embedding(item_seq, length))  # type: ignore[operator]

    def _session_embedding(self, item_seq: Tensor, length: Tensor) -> Tensor:
        """What the model's forward returns, [B, H]; where it ignores padding, of groups of like length without most of it."""
        if not self.ignores_padding:
            return self._forward(item_seq, length)
        order = length.argsort()
        groups = order.tensor_split(min(self._groups, len(order)))
        parts = [self._forward(item_seq[rows, : int(length[rows[-1]])], length[rows]) for rows in groups]
        return torch.cat(parts)[order.argsort()]

    def encode_prefixes(self, sessions: Any) -> tuple[SessionEmbeddings, Any]:
        """As `encode`, of all prefixes; where the model reads from left to right, it reads each session once."""
        prefixes = self._adaptation.prefixes
        if prefixes is None:
            return super().encode_prefixes(sessions)
        order = sessions[self.ITEM_SEQ_LEN].argsort()  # those of like length together, without most of the padding
        sessions = take(sessions, order)
        rows, row, place = self.prefix_rows(sessions)
        item_seq, length = sessions[self.ITEM_SEQ], sessions[self.ITEM_SEQ_LEN]
        parts, count = [], len(order)
        for group in torch.arange(count, device=order.device).tensor_split(min(self._groups, count)):
            first, last = int(group[0]), int(group[-1])
            own = (row >= first) & (row <= last)
            self._lengths = length[first : last + 1]
            try:
                clicks = item_seq[first : last + 1, : int(length[last])]
                parts.append(prefixes(self.model, clicks, row[own] - first, place[own]))
            finally:
                self._lengths = None
        last_click = sessions[self.ITEM_SEQ][row, place]
        return SessionEmbeddings(self.model.item_embedding(last_click), torch.cat(parts)), rows  # type: ignore[operator]

    def _forward(self, item_seq: Tensor, length: Tensor) -> Tensor:
        self._lengths = length
        try:
            result: Tensor = self.model(**{name: item_seq if name in _SEQUENCE else length for name in self._arguments})
        finally:
            self._lengths = None
        return result

    def fuse(self, embeddings: SessionEmbeddings, interaction: Any) -> Tensor:
        """The model's own session embedding, [B, H]."""
        return embeddings.global_emb

    def score(self, session: Tensor, embeddings: SessionEmbeddings) -> Tensor:
        """Scores of all items as the model's own loss has them, [B, n_items]; under a cosine `session` is normalised here."""
        return self.compare(session, self._adaptation.items(self.model))

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Cross-entropy, and what the model's own loss adds to it."""
        return ("cross-entropy", f"{type(self.model).__name__}'s own")

    def extra_loss(self, embeddings: SessionEmbeddings, interaction: Any) -> Tensor | None:
        """What the model's own loss adds to cross-entropy, a scalar; None for most models."""
        if self._contrast:
            fields = (self.ITEM_SEQ, self.ITEM_SEQ_LEN, self.USER_ID)
            return self._contrast(embeddings.global_emb, *(interaction[field] for field in fields))
        return self._adaptation.penalty(self.model) if self._adaptation.penalty else None


_TRIED = 32  # training rows


def own_ways(kind: type[nn.Module], config: Any, dataset: Any) -> list[str]:
    """What a class does otherwise than the adapter would in its place, tried on a few training rows: `scores`, `loss`.

    The scores are those of its `full_sort_predict`. Its loss should be their cross-entropy, all items being candidates, and what the
    adapter knows of the model of RecBole that it extends.

    Args:
        kind: of the user's own, one that `check_adaptable` lets pass.
        config: RecBole's config.
        dataset: RecBole's dataset of the training part.

    Raises:
        UserError: the class has no item table.
    """
    device = config["device"]
    rows = dataset.inter_feat[:_TRIED].to(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        model = kind(config, dataset).to(device).eval()
        adapted = AdaptedRecommender(config, dataset, model).to(device).eval()
        own = model.full_sort_predict(rows).view(len(rows), -1)  # type: ignore[operator]
        try:
            loss = model.calculate_loss(rows)  # type: ignore[operator]
        except (KeyError, IndexError):  # it is trained against sampled items, which these rows do not have
            loss = torch.tensor(torch.nan, device=device)
        if config["similarity"] == "cosine":  # what is switched is not tried
            adapted.temperature = None
        scores = adapted.full_sort_predict(rows).view(len(rows), -1)
        expected = nn.functional.cross_entropy(own, rows[config["ITEM_ID_FIELD"]])
        if adapted._adaptation.penalty:
            expected = expected + adapted._adaptation.penalty(model)
    total = torch.stack([*loss]).sum() if isinstance(loss, tuple) else loss
    seen = torch.isfinite(scores)  # the others are padding and what is no candidate
    alike = own.shape == scores.shape and torch.allclose(own[seen], scores[seen], rtol=1e-3, atol=1e-4)
    ways = [] if alike else ["scores"]
    return ways if torch.allclose(total, expected, rtol=1e-3) else [*ways, "loss"]


class CORE(AdaptedRecommender):
    """RecBole's CORE behind our contract also when it is plain: its own `predict` leaves the item's length in the score, its full sort not.

    Args:
        config: RecBole's config.
        dataset: RecBole's dataset of the training part.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset, import_models(f"{MODELS}.core").CORE(config, dataset))

    @staticmethod
    def check_settings(settings: Any) -> None:
        """Refuse a second cosine.

        Raises:
            UserError: names the setting.
        """
        if settings["similarity"] == "cosine":
            raise UserError("CORE scores by cosine as it is, over its temperature; leave similarity=dot")


class FEARec(AdaptedRecommender):
    """RecBole's FEARec behind our contract also when it is plain: on session files RecBole's own training loss may never return.

    Args:
        config: RecBole's config.
        dataset: RecBole's dataset of the training part.

    """

    def __init__(self, config: Any, dataset: Any) -> None:
        self.check_settings(config)
        original = import_models(f"{MODELS}.fearec").FEARec
        # Its list of sessions by target takes time that grows with their square; `SameTarget` stands in its place.
        kind = type("FEARec", (original,), {"get_same_item_index": lambda *_: {}})
        with redirect_stdout(None):  # it prints its frequencies
            model = kind(config, dataset)
        super().__init__(config, dataset, model)

    @staticmethod
    def check_settings(settings: Any) -> None:
        """Refuse settings under which RecBole's code breaks off.

        Raises:
            UserError: names the setting and what to set instead.
        """
        width, factor = settings["MAX_ITEM_LIST_LENGTH"], settings["topk_factor"]
        if settings["n_layers"] < 2:
            raise UserError(f"FEARec with n_layers={settings['n_layers']}: it divides by n_layers - 1; set it to 2 or more")
        if settings["dual_domain"] and width % 2:
            raise UserError(
                f"FEARec with dual_domain=true loses a place of the odd MAX_ITEM_LIST_LENGTH={width}; make it {width + 1}, or set "
                f"dual_domain=false"
            )
        delays, most = int(factor * math.log(width)), width // 2 * 2
        if not 1 <= delays <= most:
            raise UserError(
                f"FEARec with topk_factor={factor} and MAX_ITEM_LIST_LENGTH={width} adds up {delays} delays; change one of them so that "
                f"int(topk_factor x ln MAX_ITEM_LIST_LENGTH) is from 1 to {most}"
            )
