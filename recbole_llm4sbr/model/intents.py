"""Localized intents of sessions on the device (paper eq. 5): a gather of the k nearest items per view, weighted by similarity."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm4sbr.model.intent_files import IntentFiles

_SWAPS = 50  # rounds of swaps between sessions that got what they have


class SessionIntents(nn.Module):
    """Intent vectors by session id. Nothing here is trained; buffers are not saved in checkpoints, they come from the feature files.

    Args:
        vectors: vectors that intents are made of, row 0 all zeros, [M, D].
        nearest: rows of `vectors` per session and view, in falling order of similarity, 0 where there is no intent, [S, V, k].
        sims: their similarities, 0 where there is no intent, [S, V, k].
        weighting: `similarity`: sum of sim * vector (eq. 5); `softmax`: sum of softmax(sim) * vector.
    """

    item_emb: Tensor
    nearest: Tensor
    sims: Tensor

    def __init__(self, vectors: Tensor, nearest: Tensor, sims: Tensor, weighting: str = "similarity") -> None:
        super().__init__()
        self.softmax = weighting == "softmax"
        # as they are, without a copy: several trials of a search may share them
        self.register_buffer("item_emb", vectors, persistent=False)
        self.register_buffer("nearest", nearest, persistent=False)
        self.register_buffer("sims", sims, persistent=False)

    @property
    def dim(self) -> int:
        """Numbers per intent vector."""
        return int(self.item_emb.size(1))

    def forward(self, session: Tensor) -> tuple[Tensor, Tensor]:
        """Intents of sessions.

        Args:
            session: RecBole's session ids, [B].

        Returns:
            Intent vectors [B, V, D], zeros where a session has none, and 1.0 where it has one [B, V].
        """
        nearest, weights = self.nearest[session], self.sims[session]  # [B, V, k]
        known = nearest[..., 0] != 0
        if self.softmax:
            weights = weights.softmax(-1) * known.unsqueeze(-1)
        flat = nn.functional.embedding_bag(
            nearest.flatten(0, 1), self.item_emb, per_sample_weights=weights.flatten(0, 1), mode="sum"
        )  # [B * V, D], without the [B, V, k, D] in between
        return flat.view(*nearest.shape[:2], -1), known.to(weights.dtype)

    @contextmanager
    def holding(self, vectors: Tensor, nearest: Tensor, sims: Tensor) -> Iterator[None]:
        """Intents of other sessions for a while: those of sessions 0, 1, ... that stand in no file.

        Args:
            vectors, nearest, sims: as when it is made.
        """
        own = self.item_emb, self.nearest, self.sims
        self.item_emb, self.nearest, self.sims = vectors, nearest, sims
        try:
            yield
        finally:
            self.item_emb, self.nearest, self.sims = own

    def items(self, session: Tensor) -> tuple[Tensor, Tensor]:
        """The items that the intents of sessions are made of, of all views, and their similarities; 0 and 0.0 where there is none.

        Args:
            session: RecBole's session ids, [B].

        Returns:
            Both [B, V * k].
        """
        return self.nearest[session].flatten(1).long(), self.sims[session].flatten(1)

    def known(self, session: Tensor) -> Tensor:
        """Which sessions have intents of all views, [B]."""
        return (self.nearest[session][..., 0] != 0).all(1)

    @classmethod
    def from_dataset(cls, config: Any, dataset: Any) -> "SessionIntents":
        """Read the feature files of a RecBole dataset; rows are joined with its items and sessions by id.

        Args:
            config: reads `data_path`, `views`, `intent_k`, `intent_weighting`, `intent_source`, `control_of` and, for the controls
                `shuffled` (sessions exchange their intents) and `random` (random unit vectors for the items'), `seed`.
            dataset: RecBole's dataset over the session files in the same folder.

        Raises:
            UserError: an item or session of the dataset has no row, or fewer than `intent_k` neighbours are stored.
        """
        sessions = dataset.field2id_token[dataset.uid_field]
        if config["intent_source"] == "none":
            nothing = torch.zeros(len(sessions), len(config["views"]), 1)
            return cls(torch.zeros(1, 1), nothing.int(), nothing)
        vectors, nearest, sims = cls._read(config, dataset)
        control = torch.Generator().manual_seed(config["seed"])
        if config["intent_source"] == "shuffled":
            other = exchanged(nearest, control)
            nearest, sims = nearest[other], sims[other]
        elif config["intent_source"] == "random":
            drawn = nn.functional.normalize(torch.randn(vectors[1:].shape, generator=control), dim=-1)
            vectors = torch.cat([vectors[:1], drawn])
            nearest = torch.randint(1, len(vectors), nearest.shape, generator=control, dtype=torch.int32) * (nearest != 0)
        # of an answer's own titles the intent is the mean, however items are weighted
        return cls(vectors, nearest, sims, config["intent_weighting"] if config["intent_k"] else "similarity")

    @staticmethod
    def _read(config: Any, dataset: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The files' vectors [M, D], nearest rows and similarities [S, V, k]."""
        views, k = config["views"], config["intent_k"]
        loaded = getattr(dataset, "preloaded", None)
        files = loaded if loaded and loaded.serves(config) else IntentFiles.read(config, dataset, views, k)
        places = [files.views.index(view) for view in views]
        chosen = slice(None) if places == list(range(len(files.views))) else places
        if k == 0:
            nearest = files.answer[:, chosen]
            return files.answers, nearest, shares(nearest)
        return files.items[: dataset.item_num], files.nearest[:, chosen, :k], files.sims[:, chosen, :k]


def exchanged(nearest: Tensor, generator: torch.Generator) -> Tensor:
    """Whose intents each session gets under `intent_source: shuffled`: all views of another session that has intents, drawn at random.

    Where more than one session has intents, none keeps its own. As far as random swaps get, none gets in any view the very items that its
    own intent has, as the same answer gives; that fails where most sessions share one answer. Sessions without intents stay without.

    Args:
        nearest: as in `SessionIntents`, [S, V, k].
        generator: of the draws.

    Returns:
        A permutation of the sessions, [S].

    >>> nearest = torch.tensor([0, 5, 5, 0, 7, 7]).reshape(6, 1, 1)
    >>> nearest[exchanged(nearest, torch.Generator().manual_seed(1))].flatten().tolist()
    [0, 7, 7, 0, 5, 5]
    """
    holders = (nearest[..., 0] != 0).any(1).nonzero().squeeze(1)
    held = nearest[holders]
    order = torch.randperm(len(holders), generator=generator)
    given = torch.empty_like(order)
    given[order] = order.roll(1)  # a single cycle through all holders

    def alike(to: Tensor, of: Tensor) -> Tensor:
        return ((held[to] == held[of]).all(-1) & (held[to][..., 0] != 0)).any(1)

    wrong = alike(torch.arange(len(holders)), given)
    for _ in range(_SWAPS):
        if not wrong.any():
            break
        one, two = torch.randperm(len(holders), generator=generator)[: len(holders) // 2 * 2].view(2, -1)
        some = wrong[one] | wrong[two]
        one, two = one[some], two[some]
        better = ~(alike(one, given[two]) | alike(two, given[one]))
        one, two = one[better], two[better]
        given[one], given[two] = given[two], given[one]
        wrong[one] = wrong[two] = False
    other = torch.arange(len(nearest))
    other[holders] = holders[given]
    return other


def shares(titles: Tensor) -> Tensor:
    """Equal weights of the titles of each intent, which make their mean: 1 of a single one, 0 where there is none.

    Args:
        titles: rows of vectors, 0 behind the last of an intent, [..., n].

    >>> shares(torch.tensor([[7, 3], [4, 0], [0, 0]])).tolist()
    [[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]]
    """
    there = (titles != 0).float()
    return there / there.sum(-1, keepdim=True).clamp(min=1)
