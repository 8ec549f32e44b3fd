"""The contract of a session recommender: encode, fuse, score, extra loss. Loss, predict and full sort are written once, here."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.recbole import InputType, Interaction, SequentialRecommender
from recbole_llm4sbr.model.candidates import cross_entropy, exclude_clicked, settled_repeatable
from recbole_llm4sbr.model.cold_items import known_clicks
from recbole_llm4sbr.model.dropout import dropout
from recbole_llm4sbr.model.prefixes import TARGETS, prefix_rows
from recbole_llm4sbr.model.text_items import TextItems


@dataclass
class SessionEmbeddings:
    """What a backbone makes of a batch of sessions (paper eq. 6).

    Attributes:
        local_emb: what the last click says, [B, H].
        global_emb: what the whole session says, [B, H].
        memo: whatever `score` or `extra_loss` of the same backbone need again.
    """

    local_emb: Tensor
    global_emb: Tensor
    memo: Any = None


class SessionRecommender(SequentialRecommender):  # type: ignore[misc]
    """A sequential recommender of RecBole in three exchangeable steps. A backbone gives `encode`, `fuse` and the item table.

    Under `repeatable: false` the items of the session that the model reads are no candidates, in the loss and in the scores.

    Args:
        config: RecBole's config; reads `similarity`, `temperature`, `repeatable` (true or false), `embedding_dropout`,
            `session_dropout` and `label_smoothing`.
        dataset: RecBole's dataset.
    """

    input_type = InputType.POINTWISE  # a row is a session and its target; no negative items
    dot_only = False  # true where `score` is no similarity of one session embedding and one embedding per item

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.temperature = float(config["temperature"]) if config["similarity"] == "cosine" else None
        self.repeatable = settled_repeatable(config)
        self.embedding_dropout, self.session_dropout = float(config["embedding_dropout"]), float(config["session_dropout"])
        self.label_smoothing = float(config["label_smoothing"])
        self.n_cold = 0  # items behind those that training has

    @property
    def item_module(self) -> nn.Module | None:
        """What gives items their embeddings: an `nn.Embedding`, or a text tower; None of a model that has neither."""
        return getattr(self, "item_embedding", None)

    def take_items(self, tower: TextItems) -> None:
        """Put a text tower in the place of the item embeddings.

        Raises:
            UserError: the model has no `item_embedding`.
        """
        if self.item_module is None:
            raise UserError(
                f"{type(self).__name__} has no item_embedding, in whose place items=text puts a text tower; define take_items, or leave "
                f"items=id"
            )
        self.add_module("item_embedding", tower)

    def one_table(self) -> AbstractContextManager[None]:
        """Within it a text tower projects its table once, for the clicks and for the scores."""
        return self.item_module.shared() if isinstance(self.item_module, TextItems) else nullcontext()

    @property
    def reads_cold(self) -> bool:
        """Whether the model reads and ranks items without a training click, by their texts."""
        return isinstance(self.item_module, TextItems)

    def take_cold(self, vectors: Tensor) -> None:
        """Add items that training does not have, behind the others; unless `reads_cold`, they stay unknown and are no candidates.

        Args:
            vectors: their text vectors, which only a model that `reads_cold` looks at, [C, D].
        """
        self.n_cold += len(vectors)
        if isinstance(self.item_module, TextItems):
            self.item_module.space.add(vectors)

    def readable(self, interaction: Interaction) -> Interaction:
        """The sessions as the model can read them: itself, unless it holds items that the model does not know."""
        if self.reads_cold or not self.n_cold:
            return interaction
        clicks, length = known_clicks(interaction[self.ITEM_SEQ], self.n_items)
        fields = {name: interaction[name] for name in interaction}
        return Interaction({**fields, self.ITEM_SEQ: clicks, self.ITEM_SEQ_LEN: length})

    @property
    def item_table(self) -> Tensor:
        """Item embeddings with the padding row 0, [n_items, H]."""
        table: Tensor = self.item_embedding.weight
        return table

    def embed(self, items: Tensor) -> Tensor:
        """Embeddings of clicked items [...], in training with `embedding_dropout`, [..., H]."""
        return self.dropped(self.item_embedding(items), self.embedding_dropout)

    def dropped(self, values: Tensor, share: float) -> Tensor:
        """`values` with a share of their numbers dropped, in training."""
        return dropout(values, share) if share and self.training else values

    def mixing_layer(self) -> nn.Linear | None:
        """The layer [2H -> H] with which `fuse` mixes global and local embedding, in this order; None when there is none.

        Where there is one, `fuse` of gated embeddings is eq. 12 of the paper; where there is none, the wrapper adds a layer beside `fuse`.
        """
        return None

    def encode(self, interaction: Interaction) -> SessionEmbeddings:
        """Local and global embedding of each session."""
        raise NotImplementedError(
            f"{type(self).__name__} must define encode(interaction) -> SessionEmbeddings; see docs/backbones.md"
        )

    def encode_prefixes(self, sessions: Interaction) -> tuple[SessionEmbeddings, Interaction]:
        """Embeddings of all prefixes that a batch of sessions (`model.prefixes`) is trained on, P of them, and these prefixes as rows.

        Here each is encoded as a row of its own; a backbone that can do better defines it beside its `encode`, and is trained so.
        """
        rows, _, _ = self.prefix_rows(sessions)
        return self.encode(rows), rows

    def prefix_rows(self, sessions: Interaction) -> tuple[Interaction, Tensor, Tensor]:
        """The prefixes of a batch of sessions as rows, with the row [P] and the place [P] of each in the batch."""
        return prefix_rows(sessions, self.ITEM_SEQ, self.ITEM_SEQ_LEN, self.POS_ITEM_ID, self.USER_ID)

    def fuse(self, embeddings: SessionEmbeddings, interaction: Interaction) -> Tensor:
        """The session embedding, [B, H]."""
        raise NotImplementedError(f"{type(self).__name__} must define fuse(embeddings, interaction); see docs/backbones.md")

    def score(self, session: Tensor, embeddings: SessionEmbeddings) -> Tensor:
        """Scores of all items, [B, n_items]: session embedding times item table (eq. 13).

        The caller may write into what it returns, so that it must be a tensor of its own that no gradient formula reads again (as the
        output of a product or a sum is, and that of a softmax is not).
        """
        return self.compare(session, self.item_table)

    def compare(self, session: Tensor, items: Tensor) -> Tensor:
        """Dot products of sessions [B, H] and items [n, H], or under `similarity: cosine` cosines over the temperature, [B, n]."""
        if self.temperature is None:
            return session @ items.T
        return nn.functional.normalize(session, dim=-1) @ nn.functional.normalize(items, dim=-1).T / self.temperature

    def extra_loss(self, embeddings: SessionEmbeddings, interaction: Interaction) -> Tensor | None:
        """A loss of the model's own besides cross-entropy, a scalar; None when it has none."""
        return None

    def forward(self, interaction: Interaction) -> Tensor:
        """Scores of all items, [B, n_items]; -inf for what is no candidate."""
        interaction = self.readable(interaction)
        with self.one_table():
            embeddings = self.encode(interaction)
            scores = self.score(self.fuse(embeddings, interaction), embeddings)
        scores = scores if self.repeatable else exclude_clicked(scores, interaction[self.ITEM_SEQ])
        unknown = 0 if self.reads_cold else self.n_cold
        return nn.functional.pad(scores, (0, unknown), value=-torch.inf) if unknown else scores

    def calculate_loss(self, interaction: Interaction) -> Tensor | tuple[Tensor, ...]:
        """Cross-entropy over all candidates (eq. 14) and the model's other losses; RecBole's trainer adds up a tuple and logs its parts."""
        with self.one_table():
            if TARGETS in interaction:
                embeddings, interaction = self.encode_prefixes(interaction)
            else:
                embeddings = self.encode(interaction)
            scores = self.score(self.dropped(self.fuse(embeddings, interaction), self.session_dropout), embeddings)
            target = interaction[self.POS_ITEM_ID]
            if not self.repeatable:
                exclude_clicked(scores, interaction[self.ITEM_SEQ], target)
            loss = cross_entropy(scores, target, self.label_smoothing)
            extra = self.extra_losses(embeddings, interaction)
        return (loss, *extra) if extra else loss

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the parts of `calculate_loss`, in their order; the last one may be absent there."""
        return ("cross-entropy", f"{type(self).__name__}'s own")

    def extra_losses(self, embeddings: SessionEmbeddings, interaction: Interaction) -> list[Tensor]:
        """All losses besides cross-entropy, scalars; the wrapper puts its own before the backbone's."""
        extra = self.extra_loss(embeddings, interaction)
        return [] if extra is None else [extra]

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items, [B, n_items]; column 0 is padding, which RecBole's evaluator ignores."""
        scores: Tensor = self(interaction)
        return scores

    def predict(self, interaction: Interaction) -> Tensor:
        """Scores of each row's own item, [B]."""
        item = interaction[self.ITEM_ID]
        return torch.gather(self(interaction), 1, item.unsqueeze(1)).squeeze(1)
