"""The losses that FEARec (Du et al., SIGIR 2023) adds to cross-entropy: two embeddings of a session must agree, and those of two sessions
with the same target."""

from typing import Any

import torch
from torch import Tensor, nn


class SameTarget:
    """For a training session another one with the same target: what FEARec calls semantic augmentation.

    RecBole's model tries at random until the clicks differ, which never ends where all sessions with the target are alike (issue 2020 of
    RecBole). Here the sessions are sorted by target and clicks once, so that one draw suffices.

    Args:
        dataset: RecBole's dataset of the training part.
    """

    def __init__(self, dataset: Any) -> None:
        feat = dataset.inter_feat
        self.clicks, self.length = feat[dataset.iid_field + "_list"], feat[dataset.item_list_length_field]
        target, rows = feat[dataset.iid_field], len(feat)
        # Numbers in the order of target, then clicks: rows that are alike stand together, and so do those with the same target.
        _, kind = torch.unique(torch.cat([target.unsqueeze(1), self.clicks], 1), dim=0, return_inverse=True)  # [R]
        self._order = kind.argsort()
        self._target_start, target_size = _blocks(target)
        self._kind_start, self._kind_size = _blocks(kind)
        self._others = target_size - self._kind_size  # how many there are to choose from
        self._row = torch.zeros(dataset.user_num, dtype=torch.long)
        self._row[feat[dataset.uid_field]] = torch.arange(rows)

    def draw(self, session: Tensor) -> Tensor:
        """Rows of the training part, on the CPU, [B]: evenly among those with the target but not the clicks; its own where there is none.

        Args:
            session: RecBole's ids of training sessions, [B].
        """
        row = self._row[session.cpu()]
        others = self._others[row]
        place = self._target_start[row] + (torch.rand(len(row), dtype=torch.double) * others).long()
        place += torch.where(place >= self._kind_start[row], self._kind_size[row], 0)  # step over those with the same clicks
        return torch.where(others > 0, self._order[place.clamp(max=len(self._order) - 1)], row)


def _blocks(value: Tensor) -> tuple[Tensor, Tensor]:
    """Of each of `value` [R]: where the equal ones begin when all are sorted, and how many there are, both [R]."""
    _, inverse, count = torch.unique(value, return_inverse=True, return_counts=True)
    return (count.cumsum(0) - count)[inverse], count[inverse]


def info_nce(one: Tensor, other: Tensor, temperature: float, cosine: bool = False) -> Tensor:
    """InfoNCE as FEARec has it: each of the 2B embeddings must find its partner among all others; 0 for one pair.

    Args:
        one, other: two embeddings of each session, [B, H].
        temperature: what similarities are divided by.
        cosine: similarities are cosines; else dot products.
    """
    both = torch.cat([one, other])  # [2B, H]
    both = nn.functional.normalize(both, dim=-1) if cosine else both
    number = torch.arange(len(both), device=both.device)
    logits = (both @ both.T / temperature).masked_fill(number == number.unsqueeze(1), -torch.inf)  # [2B, 2B]
    return nn.functional.cross_entropy(logits, number.roll(len(one)))


# What FEARec's `contrast` and `fredom_type` draw together.
_PAIRS = {
    "un": [("own", "again")],
    "su": [("own", "same")],
    "us": [("own", "again"), ("own", "same")],
    "us_x": [("again", "same")],
}


class FEARecContrast:
    """The losses that FEARec (Du et al., SIGIR 2023) adds to cross-entropy, with the settings that its object read from the config.

    A session has three embeddings: its own, `again` under another dropout, and `same` of another training session with its target.

    Args:
        model: RecBole's FEARec.
        dataset: RecBole's dataset of the training part.
    """

    def __init__(self, model: Any, dataset: Any) -> None:
        self._model, self._pairs = model, _PAIRS.get(model.ssl, [])
        self._of_spectra = _PAIRS.get(model.fredom_type, []) if model.fredom and model.ssl == "us_x" else []
        self._same = SameTarget(dataset) if any("same" in pair for pair in self._pairs) else None

    def __call__(self, own: Tensor, item_seq: Tensor, length: Tensor, session: Tensor) -> Tensor | None:
        """A scalar; None without a contrastive loss.

        Args:
            own: the sessions' embeddings, [B, H].
            item_seq, length: their clicks, [B, L] and [B].
            session: their ids, [B].
        """
        model, named = self._model, {"own": own}
        if any("again" in pair for pair in self._pairs):
            named["again"] = model(item_seq, length)
        if self._same is not None:
            rows = self._same.draw(session)
            named["same"] = model(self._same.clicks[rows].to(length.device), self._same.length[rows].to(length.device))
        losses = []
        for one, other in self._pairs:
            weight = model.lmd if (one, other) == ("own", "again") else model.lmd_sem
            losses.append(weight * info_nce(named[one], named[other], model.tau, model.sim == "cos"))
        for one, other in self._of_spectra:
            gap = torch.fft.rfft(named[one], norm="ortho") - torch.fft.rfft(named[other], norm="ortho")
            losses.append(0.1 * gap.abs().mean())  # 0.1 stands in the authors' code
        return torch.stack(losses).sum() if losses else None
