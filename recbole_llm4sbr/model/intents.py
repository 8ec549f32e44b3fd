"""Localized intents of sessions on the device (paper eq. 5): a gather of the k nearest items per view, weighted by similarity."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm4sbr.errors import UserError


class SessionIntents(nn.Module):
    """Intent vectors by session id. Nothing here is trained; buffers are not saved in checkpoints, they come from the feature files.

    Args:
        vectors: vectors that intents are made of, row 0 all zeros, [M, D].
        nearest: rows of `vectors` per session and view, in falling order of similarity, 0 where there is no intent, [S, V, k].
        sims: their similarities, [S, V, k].
        weighting: `similarity`: sum of sim * vector (eq. 5); `softmax`: sum of softmax(sim) * vector.
    """

    item_emb: Tensor
    nearest: Tensor
    weights: Tensor

    def __init__(self, vectors: Tensor, nearest: Tensor, sims: Tensor, weighting: str = "similarity") -> None:
        super().__init__()
        known = nearest != 0
        if weighting == "softmax":
            sims = sims.masked_fill(~known, -torch.inf).softmax(-1).nan_to_num(0.0)
        self.register_buffer("item_emb", vectors.float(), persistent=False)
        self.register_buffer("nearest", nearest.int().contiguous(), persistent=False)  # int32: half the memory of ids
        self.register_buffer("weights", (sims.float() * known).contiguous(), persistent=False)

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
        nearest, weights = self.nearest[session], self.weights[session]  # [B, V, k]
        flat = nn.functional.embedding_bag(
            nearest.flatten(0, 1), self.item_emb, per_sample_weights=weights.flatten(0, 1), mode="sum"
        )  # [B * V, D], without the [B, V, k, D] in between
        return flat.view(*nearest.shape[:2], -1), (nearest[..., 0] != 0).to(weights.dtype)

    @classmethod
    def from_dataset(cls, config: Any, dataset: Any) -> "SessionIntents":
        """Read what RecBole loaded from `.itememb`, `.sessemb` and, for k = 0, `.intentemb`; rows are joined by id.

        Raises:
            UserError: the item vectors are not those of exactly the catalogue, or fewer than `intent_k` neighbours are stored.
        """
        views: Sequence[str] = config["views"]
        sessions = dataset.num(dataset.uid_field)
        feat = dataset.sessemb_feat
        if config["intent_k"] == 0:
            vectors, rows = _answer_vectors(dataset, views)
            nearest = torch.zeros(sessions, len(views), 1, dtype=torch.int32)
            nearest[feat["sid"]] = rows.unsqueeze(-1)
            return cls(vectors, nearest, torch.ones(nearest.shape))
        vectors = _item_vectors(dataset)
        k = config["intent_k"]
        nearest = torch.zeros(sessions, len(views), k, dtype=torch.int32)
        sims = torch.zeros(sessions, len(views), k)
        for column, view in enumerate(views):
            found, similar = feat[f"{view}_items"], feat[f"{view}_sims"]
            if found.size(1) < k:
                raise UserError(
                    f"intent_k={k} is larger than the {found.size(1)} items stored for the view {view!r}; lower it, or run `infer` "
                    f"with a larger --intent_k_max and --rebuild=true"
                )
            nearest[feat["sid"], column] = found[:, :k].int()
            sims[feat["sid"], column] = similar[:, :k].float()
        return cls(vectors, nearest, sims, config["intent_weighting"])


def _item_vectors(dataset: Any) -> Tensor:
    """Text vectors by RecBole item id, [n_items, D]."""
    feat = dataset.itememb_feat
    vectors = torch.zeros(dataset.item_num, feat["item_emb"].size(1))
    vectors[feat["iid"]] = feat["item_emb"].float()
    present = torch.zeros(dataset.item_num, dtype=torch.bool)
    present[feat["iid"]] = True
    if not present[1:].all():
        token = dataset.id2token(dataset.iid_field, int((~present[1:]).nonzero()[0]) + 1)
        raise UserError(
            f"item {token!r} has no row in the .itememb file, which was made for another catalogue; run `infer` with --rebuild=true"
        )
    return vectors


def _answer_vectors(dataset: Any, views: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Vectors of distinct answers by RecBole intent id, 0 for none, [A + 1, D], and the id of every session row and view, [S, V]."""
    feat = dataset.intentemb_feat
    vectors = torch.zeros(len(feat) + 1, feat["intent_emb"].size(1))
    vectors[feat["intent_id"]] = feat["intent_emb"].float()
    return vectors, torch.stack([dataset.sessemb_feat[f"{view}_intent"] for view in views], 1).int()
