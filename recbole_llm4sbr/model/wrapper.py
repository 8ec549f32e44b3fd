"""`LLM4SBRWrapper`: any backbone, with intents fused into its session embedding and aligned with it (paper section 4.2)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm4sbr.errors import UserError
from recbole_llm4sbr.model.intents import SessionIntents
from recbole_llm4sbr.model.losses import alignment_uniformity
from recbole_llm4sbr.model.session import SessionRecommender, SessionViews

# The embedding that a view's intent is aligned with (eq. 9) and gates (eq. 10-11); views not named here go with the global one.
_PARTNER = {"short": "local"}
_EMBEDDINGS = ("global", "local")


class LLM4SBRWrapper(SessionRecommender):
    """A session recommender that has a backbone: keeps its `encode`, `score` and extra loss, replaces `fuse`, adds lambda * L_AU.

    A view that is left out leaves its embedding without a gate. A session without an intent is gated by the bias of the projection
    alone and takes no part in L_AU.

    Args:
        config: reads `views` and `intent_lambda`.
        dataset: RecBole's dataset.
        backbone: what is enhanced.
        intents: the sessions' intents, in the order of `views`.

    Raises:
        UserError: two views that belong to the same embedding.
    """

    def __init__(self, config: Any, dataset: Any, backbone: SessionRecommender, intents: SessionIntents) -> None:
        super().__init__(config, dataset)
        self.backbone = backbone
        self.intents = intents
        self.intent_lambda = float(config["intent_lambda"])
        self.partners = _partners(config["views"])
        size = backbone.item_table.size(1)
        self.project = nn.Linear(intents.dim, size)  # W and b of eq. 7, shared by the views
        self.gates = nn.ModuleDict({name: nn.Linear(size, 1, bias=False) for name in self.partners})  # w of eq. 10-11
        # SR-GNN's own mixing layer has the form of eq. 12: it goes on serving there, and no parameter is left idle
        self.mix = None if backbone.mixing_layer() else nn.Linear(2 * size, size)
        bound = 1 / math.sqrt(size)  # SR-GNN's initialisation
        for module in (self.project, *self.gates.values(), self.mix):
            for parameter in module.parameters() if module else ():
                nn.init.uniform_(parameter, -bound, bound)

    @property
    def item_table(self) -> Tensor:
        """The backbone's, [n_items, H]."""
        return self.backbone.item_table

    def encode(self, interaction: Any) -> SessionViews:
        """The backbone's views; `memo` holds the backbone's memo, the projected intents by embedding (eq. 7) and who has one."""
        views = self.backbone.encode(interaction)
        intents, known = self.intents(interaction[self.USER_ID])  # [B, V, D], [B, V]
        projected = dict(zip(self.partners, zip(self.project(intents).unbind(1), known.unbind(1))))  # [B, H], [B] each
        return SessionViews(views.local_emb, views.global_emb, (views, projected))

    def fuse(self, views: SessionViews, interaction: Any) -> Tensor:
        """Gate each embedding by its intent, then mix (eq. 10-12), [B, H]."""
        parts = []
        for name, embedding in self._embeddings(views):
            if name in self.partners:
                intent, _ = views.memo[1][name]
                embedding = self.gates[name](torch.sigmoid(embedding + intent)) * embedding  # [B, 1] * [B, H]
            parts.append(embedding)
        mix = self.mix or self.backbone.mixing_layer()
        mixed: Tensor = mix(torch.cat(parts, -1))  # type: ignore[misc]
        return mixed

    def score(self, session: Tensor, views: SessionViews) -> Tensor:
        """The backbone's, [B, n_items]."""
        return self.backbone.score(session, views.memo[0])

    def extra_losses(self, views: SessionViews, interaction: Any) -> list[Tensor]:
        """lambda * L_AU summed over views (eq. 9, 15), then the backbone's own."""
        losses = self.backbone.extra_losses(views.memo[0], interaction)
        if self.intent_lambda == 0:
            return losses
        embeddings = dict(self._embeddings(views))
        h, t, known = zip(*((embeddings[name], *views.memo[1][name]) for name in self.partners))
        losses_au = alignment_uniformity(torch.stack(h), torch.stack(t), torch.stack(known))  # [V]
        return [self.intent_lambda * losses_au.sum(), *losses]

    @staticmethod
    def _embeddings(views: SessionViews) -> list[tuple[str, Tensor]]:
        return list(zip(_EMBEDDINGS, (views.global_emb, views.local_emb)))


def _partners(views: Sequence[str]) -> list[str]:
    """The embedding of each view, in the order of the views."""
    partners = [_PARTNER.get(view, "global") for view in views]
    if len(set(partners)) < len(partners):
        raise UserError(
            f"views={list(views)!r}: at most one view per embedding; `short` goes with the local one, any other with the global one"
        )
    return partners
