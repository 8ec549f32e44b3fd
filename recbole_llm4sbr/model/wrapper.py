"""`LLM4SBRWrapper`: any backbone, with intents fused into its session embedding and aligned with it (paper section 4.2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.model.contract import SessionEmbeddings, SessionRecommender
from recbole_llm4sbr.model.intents import SessionIntents
from recbole_llm4sbr.model.losses import paired_alignment_uniformity
from recbole_llm4sbr.model.text_space import TextSpace

_INTO_THE_EMBEDDING = ("gate", "residual", "concat")  # fusions that change the session embedding, as the first part of `fusion`
# The embedding that a view's intent is aligned with (eq. 9) and gates (eq. 10-11); views not named here go with the global one.
_PARTNER = {"short": "local", "normal": "session"}


@dataclass
class _Memo:
    """What `fuse`, `score` and the losses of the wrapper need again.

    Attributes:
        backbone: the backbone's embeddings.
        pairs: by name (`global`, `local` or `session`) an embedding [B, H], its projected intent [B, H], and 1.0 for sessions that have
            an intent [B]; empty where intents neither enter the session embedding nor are aligned with it.
        in_text_space: the sum of the views' intents there, [B, R]; None unless `fusion` has late.
        nearest: the intents' items and their similarities, [B, V * k] each; None unless `fusion` has boost.
    """

    backbone: SessionEmbeddings
    pairs: dict[str, tuple[Tensor, Tensor, Tensor]]
    in_text_space: Tensor | None
    nearest: tuple[Tensor, Tensor] | None


class LLM4SBRWrapper(SessionRecommender):
    """A session recommender around a backbone: keeps its `encode`, `score` and extra loss, replaces `fuse`, adds lambda * L_AU.

    `fusion: gate` is the paper's: the backbone's own `fuse` of the gated embeddings, which in SR-GNN is the layer of eq. 12. Beside that of
    a backbone without such a layer stands one over both gated embeddings, and training starts from the backbone itself: a layer drawn at
    random would lose what sessions and items have in common. A view that is left out leaves its embedding without a gate. A session without
    an intent is gated by the bias of the projection alone, and takes no part in L_AU. The view `normal` stands alone and goes with the
    backbone's own session embedding, which it gates as a whole (the paper gives no formula). `residual` adds the projected intents to that
    embedding, `concat` adds a layer over both, which starts at zero; there an absent intent is zero. `late` leaves the session embedding
    alone: the intents score the items themselves, each view by a trained projection into the items' text space, beside the backbone's
    score; the projection starts at zero, so that training starts from the backbone. `boost` raises the scores of the k items nearest to
    each intent, by their similarity times a trained linear function of the session embedding for each view and rank, which starts at zero
    too. `gate+late`, `gate+boost` and `gate+late+boost` do what their parts do.

    Args:
        config: reads `views`, `fusion` and `intent_lambda`.
        dataset: RecBole's dataset.
        backbone: the session recommender to enhance.
        intents: the sessions' intents, in the order of `views`.
        texts: the items in the text space, R components; None unless `fusion` has late.

    Raises:
        UserError: two views that belong to the same embedding.
    """

    def __init__(
        self, config: Any, dataset: Any, backbone: SessionRecommender, intents: SessionIntents, texts: TextSpace | None = None
    ) -> None:
        super().__init__(config, dataset)
        self.backbone = backbone
        self.intents = intents
        self.intent_lambda = float(config["intent_lambda"])
        parts = config["fusion"].split("+")
        self.fusion = parts[0] if parts[0] in _INTO_THE_EMBEDDING else ""
        self.partners = _partners(config["views"])
        size = backbone.item_table.size(1)
        self.texts = texts
        self.late: nn.Linear | None = None
        if texts is not None:
            self.late = nn.Linear(len(config["views"]) * intents.dim, texts.size, bias=False)  # a projection for each view
            nn.init.zeros_(self.late.weight)
        self.boost: nn.Linear | None = None
        if "boost" in parts:
            self.boost = nn.Linear(size, intents.nearest[0].numel())
            nn.init.zeros_(self.boost.weight)
            nn.init.zeros_(self.boost.bias)
        self.project: nn.Linear | None = None
        if self.fusion or self.intent_lambda:
            self.project = nn.Linear(intents.dim, size)  # W and b of eq. 7, shared by the views
        gated = self.partners if self.fusion == "gate" else []
        self.gates = nn.ModuleDict({name: nn.Linear(size, 1, bias=False) for name in gated})  # w of eq. 10-11
        bound = 1 / math.sqrt(size)  # SR-GNN's initialisation
        for module in (self.project, *self.gates.values()):
            for parameter in module.parameters() if module else ():
                nn.init.uniform_(parameter, -bound, bound)
        read = 1 + len(self.partners) if self.fusion == "concat" else 0  # embeddings that the layer beside the backbone reads
        if self.fusion == "gate" and backbone.mixing_layer() is None:
            read = 0 if "session" in self.partners else 2
            for weight in self.gates.parameters():
                nn.init.constant_(weight, 2 / size)  # the gate of eq. 10-11 is then near 1, since a sigmoid is near 1/2
        self.beside: nn.Linear | None = None
        if read:
            self.beside = nn.Linear(read * size, size)
            nn.init.zeros_(self.beside.weight)
            nn.init.zeros_(self.beside.bias)

    @property
    def item_module(self) -> nn.Module | None:
        """What gives the backbone's items their embeddings."""
        return self.backbone.item_module

    @property
    def item_table(self) -> Tensor:
        """The backbone's item embeddings, [n_items, H]."""
        return self.backbone.item_table

    @property
    def reads_cold(self) -> bool:
        """Whether the backbone reads and ranks items without a training click."""
        return self.backbone.reads_cold

    def take_cold(self, vectors: Tensor) -> None:
        """Add items that training does not have, for the backbone and for what scores in the text space."""
        self.n_cold += len(vectors)
        self.backbone.take_cold(vectors)
        if self.texts is not None and self.reads_cold:
            self.texts.add(vectors)

    def encode(self, interaction: Any) -> SessionEmbeddings:
        """The backbone's embeddings; `memo` pairs them with projected intents (eq. 7)."""
        return self._with_intents(self.backbone.encode(interaction), interaction)

    def encode_prefixes(self, sessions: Any) -> tuple[SessionEmbeddings, Any]:
        """The backbone's embeddings of all prefixes, with each prefix's own intents."""
        own, rows = self.backbone.encode_prefixes(sessions)
        return self._with_intents(own, rows), rows

    def _with_intents(self, own: SessionEmbeddings, interaction: Any) -> SessionEmbeddings:
        """The backbone's embeddings, paired with intents."""
        intents, known = self.intents(interaction[self.USER_ID])  # [B, V, D], [B, V]
        named = {"global": own.global_emb, "local": own.local_emb}
        if "session" in self.partners:
            named["session"] = self.backbone.fuse(own, interaction)
        pairs = {}
        if self.project is not None:
            parts = zip(self.partners, self.project(intents).unbind(1), known.unbind(1))
            pairs = {name: (named[name], intent, has) for name, intent, has in parts}
        in_text_space = self.late(intents.flatten(1)) if self.late is not None else None  # an absent intent is zero
        nearest = self.intents.items(interaction[self.USER_ID]) if self.boost is not None else None
        return SessionEmbeddings(own.local_emb, own.global_emb, _Memo(own, pairs, in_text_space, nearest))

    def fuse(self, embeddings: SessionEmbeddings, interaction: Any) -> Tensor:
        """The session embedding with its intents, [B, H]."""
        backbone, pairs = embeddings.memo.backbone, embeddings.memo.pairs
        if self.fusion == "gate":
            if "session" in pairs:
                return self._gated("session", pairs)
            gated = {name: self._gated(name, pairs) for name in pairs}
            local, whole = gated.get("local", embeddings.local_emb), gated.get("global", embeddings.global_emb)
            session = self.backbone.fuse(SessionEmbeddings(local, whole, backbone.memo), interaction)
            return session if self.beside is None else session + self.beside(torch.cat([whole, local], -1))
        session = self.backbone.fuse(backbone, interaction)
        if not self.fusion:
            return session
        intents = [intent * has.unsqueeze(1) for _, intent, has in pairs.values()]  # [B, H] each
        added = torch.stack(intents).sum(0) if self.beside is None else self.beside(torch.cat([session, *intents], -1))
        return session + added

    def score(self, session: Tensor, embeddings: SessionEmbeddings) -> Tensor:
        """Scores of all items by the backbone's own `score`, under `late` and `boost` with those of the intents, [B, n_items]."""
        memo = embeddings.memo
        scores = self.backbone.score(session, memo.backbone)
        if memo.in_text_space is not None and self.texts is not None:
            scores = torch.addmm(scores, memo.in_text_space, self.texts().T)
        if memo.nearest is not None and self.boost is not None:
            items, sims = memo.nearest
            ranked = items < scores.size(1)  # of items that came after training a model may rank none
            boosts = self.boost(session) * sims * ranked  # [B, V * k]
            scores = scores.scatter_add(1, items * ranked, boosts.to(scores.dtype))
        return scores

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Cross-entropy, alignment and uniformity where they count, then the backbone's own."""
        names = self.backbone.loss_names
        aligned = self.intent_lambda != 0 and self.project is not None
        return (names[0], *(["alignment and uniformity"] if aligned else []), *names[1:])

    def extra_losses(self, embeddings: SessionEmbeddings, interaction: Any) -> list[Tensor]:
        """lambda * L_AU summed over the views (eq. 9, 15), then the backbone's own losses."""
        losses = self.backbone.extra_losses(embeddings.memo.backbone, interaction)
        if self.intent_lambda == 0 or not embeddings.memo.pairs:
            return losses
        h, t, known = zip(*embeddings.memo.pairs.values())  # V of [B, H], [B, H], [B]
        both = torch.stack([*h, *t]).view(2, len(h), *h[0].shape)
        return [self.intent_lambda * paired_alignment_uniformity(both, torch.stack(known)).sum(), *losses]

    @torch.no_grad()
    def gate_values(self, interaction: Any) -> dict[str, Tensor]:
        """The gates w^T sigmoid(h + t) of a batch by embedding (`global`, `local` or `session`; eq. 10-11), [B] each."""
        pairs = self.encode(self.readable(interaction)).memo.pairs
        return {name: self._gate(name, pairs).squeeze(1) for name in self.gates}

    def _gate(self, name: str, pairs: dict[str, tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """The gate of an embedding, [B, 1]."""
        embedding, intent, _ = pairs[name]
        gate: Tensor = self.gates[name](torch.sigmoid(embedding + intent))
        return gate

    def _gated(self, name: str, pairs: dict[str, tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """An embedding times its gate (eq. 10-11), [B, H]."""
        return self._gate(name, pairs) * pairs[name][0]


def _partners(views: Sequence[str]) -> list[str]:
    """The embedding of each view, in the order of the views."""
    partners = [_PARTNER.get(view, "global") for view in views]
    if len(set(partners)) < len(partners) or ("session" in partners and len(partners) > 1):
        raise UserError(
            f"views={list(views)!r}: at most one view per embedding; `short` goes with the local one, `normal`, alone, with the whole "
            f"session's, any other with the global one"
        )
    return partners
