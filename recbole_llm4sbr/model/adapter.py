"""Any RecBole sequential model whose score is session embedding times item table, as a backbone of ours.

Global is what the model's `forward` returns, local the embedding of the last click; unwrapped it scores as the original does.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.model.contract import SessionEmbeddings, SessionRecommender

_REMEDY = "write it as a SessionRecommender (docs/backbones.md), or train it plain with --llm4sbr=false"
# Models of RecBole that cannot be adapted, and why.
REFUSED = {
    "CORE": "it scores by cosine with a temperature",
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
    "FEARec": "its loss contrasts augmented sessions, which would be lost",
    "SHAN": "its loss needs a reversed session from RecBole's data augmentation",
}
# What the calculate_loss of some models adds to cross-entropy, by name of the model.
_EXTRA: dict[str, Callable[[Any], Tensor]] = {
    "GCSAN": lambda m: m.reg_weight * m.reg_loss(m.item_embedding.weight),
    "NextItNet": lambda m: m.reg_weight * m.reg_loss([m.item_embedding.weight, m.final_layer.weight]) + m.reg_loss_rb(),
    "SINE": lambda m: m.calculate_reg_loss() * m.reg_loss_ratio * (m.loss_type not in ("CE", "BPR")),
}
_SEQUENCE, _LENGTH = ("item_seq", "seq_item"), ("item_seq_len", "seq_item_len")


def check_adaptable(model: type) -> None:
    """Refuse a model class that cannot be adapted, with the reason and what to do.

    Raises:
        UserError: the class is in `REFUSED`, or its `forward` needs more than a session's clicks and length.
    """
    name = model.__name__
    if name in REFUSED and model.__module__.startswith("recbole."):
        raise UserError(f"{name} cannot be wrapped: {REFUSED[name]}; {_REMEDY}")
    needed = list(inspect.signature(model.forward).parameters)[1:]  # type: ignore[attr-defined]
    if missing := [argument for argument in needed if argument not in (*_SEQUENCE, *_LENGTH)]:
        raise UserError(
            f"{name} cannot be wrapped: its forward() needs {', '.join(missing)}, which a session does not have; {_REMEDY}"
        )


class AdaptedRecommender(SessionRecommender):
    """A RecBole model behind our contract.

    Args:
        config: RecBole's config.
        dataset: RecBole's dataset.
        model: the model; its `item_embedding` is the item table.

    Raises:
        UserError: it has no `item_embedding`, or `check_adaptable` refuses it.
    """

    def __init__(self, config: Any, dataset: Any, model: nn.Module) -> None:
        super().__init__(config, dataset)
        check_adaptable(type(model))
        if not isinstance(getattr(model, "item_embedding", None), nn.Embedding):
            raise UserError(f"{type(model).__name__} cannot be wrapped: it has no item_embedding table; {_REMEDY}")
        self.model = model
        self._arguments = list(inspect.signature(model.forward).parameters)
        self._extra = _EXTRA.get(type(model).__name__)

    @property
    def item_table(self) -> Tensor:
        """The model's own item embeddings, [n_items, H]."""
        table: Tensor = self.model.item_embedding.weight  # type: ignore[union-attr,assignment]
        return table

    def encode(self, interaction: Any) -> SessionEmbeddings:
        """Global: the model's forward; local: the last click's item embedding."""
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        global_emb = self.model(**{name: item_seq if name in _SEQUENCE else length for name in self._arguments})  # [B, H]
        last = torch.gather(item_seq, 1, (length - 1).unsqueeze(1)).squeeze(1)  # [B]
        return SessionEmbeddings(self.model.item_embedding(last), global_emb)  # type: ignore[operator]

    def fuse(self, embeddings: SessionEmbeddings, interaction: Any) -> Tensor:
        """The model's own session embedding, [B, H]."""
        return embeddings.global_emb

    def extra_loss(self, embeddings: SessionEmbeddings, interaction: Any) -> Tensor | None:
        """What the model's own loss adds to cross-entropy, a scalar; None for most models."""
        return self._extra(self.model) if self._extra else None
