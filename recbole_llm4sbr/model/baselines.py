"""Baselines that use the LLM or the text encoder alone and train nothing (paper section 5.2.2, figure 5)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, normalize

from recbole_llm4sbr.base.facts import intents_of, several_answers
from recbole_llm4sbr.model.contract import SessionEmbeddings, SessionRecommender
from recbole_llm4sbr.model.intent_files import item_vectors
from recbole_llm4sbr.model.intents import SessionIntents

_BEHIND = 0.01  # what a title counts less than the one before it


class UntrainedRecommender(SessionRecommender):
    """Ranks items by the cosine similarity of their text vectors to a text vector of the session, `encode`'s global embedding.

    Args:
        config: RecBole's config.
        dataset: RecBole's dataset.
    """

    item_emb: Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.register_buffer("item_emb", normalize(item_vectors(config, dataset), dim=-1), persistent=False)
        self.fake_loss = nn.Parameter(torch.zeros(1))  # RecBole's optimizer needs one, as in its Pop and ItemKNN

    @property
    def item_table(self) -> Tensor:
        """Unit text vectors, [n_items, D]."""
        return self.item_emb

    @property
    def reads_cold(self) -> bool:
        """Yes: all that it has of an item is its text."""
        return True

    def take_cold(self, vectors: Tensor) -> None:
        """Add items that training does not have."""
        super().take_cold(vectors)
        self.item_emb = torch.cat([self.item_emb, normalize(vectors, dim=-1).to(self.item_emb)])

    def fuse(self, embeddings: SessionEmbeddings, interaction: Any) -> Tensor:
        """The session's text vector, [B, D]."""
        return embeddings.global_emb

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Of what stands in for a loss."""
        return ("no loss",)

    def calculate_loss(self, interaction: Any) -> Tensor:
        """A loss of 0, since nothing is trained."""
        return self.fake_loss.sum()


class LLMInfer(UntrainedRecommender):
    """LLM-Infer, also the paper's "w/o SBR": the sum over the views of the cosine between item and localized intent.

    Of several titles (`intent_answers`), whose mean is like none of them, it is the largest cosine to one of the intent's `intent_k` items,
    times the similarity of that one, less a hundredth for each place that it stands behind the first: titles that are named come before
    what is like them, the LLM's first one first.

    Args:
        config: reads `intent_answers` and what `SessionIntents.from_dataset` reads.
        dataset: RecBole's dataset.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.intents = SessionIntents.from_dataset(config, dataset)
        self.several = intents_of(config) == "llm" and several_answers(config)

    def encode(self, interaction: Any) -> SessionEmbeddings:
        """Sum of the views' unit intents; zeros, and so all items alike, for a session without any."""
        intents, _ = self.intents(interaction[self.USER_ID])  # [B, V, D]
        session = normalize(intents, dim=-1).sum(1)  # [B, D]
        return SessionEmbeddings(session, session, interaction[self.USER_ID])

    def score(self, session: Tensor, embeddings: SessionEmbeddings) -> Tensor:
        """Scores of all items, [B, n_items]."""
        if not self.several:
            return super().score(session, embeddings)
        intents, sessions = self.intents, embeddings.memo
        vectors = normalize(intents.item_emb, dim=-1)
        total = session.new_zeros(len(session), len(self.item_table))
        for nearest, sims in zip(intents.nearest[sessions].unbind(1), intents.sims[sessions].unbind(1)):  # a view, [B, k] each
            best = torch.full_like(total, -torch.inf)
            for place, (item, sim) in enumerate(zip(nearest.long().unbind(1), sims.unbind(1))):
                weight = sim.unsqueeze(1) * (1 - _BEHIND * place)
                best = torch.maximum(best, weight * (vectors[item] @ self.item_table.T))  # nothing is [B, k, n_items]
            total += best
        return total


class LLMSeqSim(UntrainedRecommender):
    """LLMSeqSim (Harte et al., RecSys 2023): the cosine between an item's text and the session's items' texts, aggregated.

    Args:
        config: reads `aggregate`: `mean`, `last` (the last click alone) or `position` (weights 1, 2, ..., n in click order).
        dataset: RecBole's dataset.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.aggregate = config["aggregate"]

    def encode(self, interaction: Any) -> SessionEmbeddings:
        """Unit weighted sum of the clicks' text vectors."""
        item_seq, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN].unsqueeze(1)
        place = torch.arange(1, item_seq.size(1) + 1, device=item_seq.device).expand_as(item_seq)  # [B, L]
        weights = {"mean": place > 0, "last": place == length, "position": place}[self.aggregate] * (place <= length)
        session = embedding_bag(item_seq, self.item_emb, per_sample_weights=weights.to(self.item_emb.dtype), mode="sum")
        session = normalize(session, dim=-1)  # [B, D]
        return SessionEmbeddings(session, session)


BASELINES: dict[str, type[SessionRecommender]] = {"LLMInfer": LLMInfer, "LLMSeqSim": LLMSeqSim}
