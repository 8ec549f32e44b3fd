"""RecBole's dataloaders over session files: training rows may be whole sessions, and an epoch may be a part of the rows."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from recbole_llm4sbr.base.recbole import Interaction, TrainDataLoader, data_preparation
from recbole_llm4sbr.model.prefixes import TARGETS, session_rows
from recbole_llm4sbr.model.registry import shares_prefixes


def session_loaders(config: Any, parts: Sequence[Any]) -> tuple["SessionLoader", Any, Any]:
    """The dataloaders of train, valid and test.

    Args:
        config: RecBole's config of the run.
        parts: RecBole's datasets of train, valid and test, a row for each prefix. Where the model is trained on all prefixes of a
            session in one pass, the training rows become sessions, unless they are already.
    """
    train = parts[0]
    if TARGETS not in train.inter_feat and shares_prefixes(config, train):
        clicks = train.iid_field + config["LIST_SUFFIX"]
        rows = session_rows(train.inter_feat, clicks, train.item_list_length_field, train.iid_field, train.uid_field)
        train = train.copy(rows)
    loader, valid_data, test_data = data_preparation(config, _Built([train, *parts[1:]]))
    return SessionLoader(config, train, loader._sampler, shuffle=config["shuffle"]), valid_data, test_data


class _Built:
    """What `data_preparation` asks of a dataset that is split already."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts

    def build(self) -> Sequence[Any]:
        return self._parts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parts[0], name)


class SessionLoader(TrainDataLoader):  # type: ignore[misc]
    """RecBole's dataloader of training, with two changes.

    Where a row is a session, a batch has as many of them as make `train_batch_size` targets on average. With `eval_every` an epoch of
    RecBole's trainer is a round of that many targets; rounds go through the rows in a random order, and see all before one is seen again.

    Attributes:
        round: the epoch of RecBole's trainer that comes next.
    """

    round = 0

    @property
    def targets(self) -> int:
        """Targets of the training part."""
        feat: Interaction = self._dataset.inter_feat
        return int((feat[TARGETS] > 0).sum()) if TARGETS in feat.interaction else len(feat)

    def _init_batch_size_and_step(self) -> None:
        super()._init_batch_size_and_step()
        if TARGETS in self._dataset.inter_feat.interaction:
            self.step: int = max(1, round(self.config["train_batch_size"] * self.sample_size / self.targets))
            self.set_batch_size(self.step)

    @property
    def _rounds(self) -> int:
        """Rounds that make an epoch over all rows."""
        every = self.config["eval_every"]
        return max(1, round(self.targets / every)) if every else 1

    def __len__(self) -> int:
        """Batches of a round."""
        batches: int = super().__len__()
        return -(-batches // self._rounds)

    def __iter__(self) -> Iterator[Interaction]:
        """The batches of the round."""
        if self._rounds == 1:
            yield from super().__iter__()
            return
        epoch, piece = divmod(self.round, self._rounds)
        seed = torch.Generator().manual_seed(self.config["seed"] + epoch)
        rows = torch.randperm(self.sample_size, generator=seed).tolist()
        for batch in range(piece * len(self), min((piece + 1) * len(self), super().__len__())):
            yield self.collate_fn(rows[batch * self.step : (batch + 1) * self.step])
