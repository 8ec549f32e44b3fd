"""RecBole's evaluation where each session has one target: equal scores count against the model, and only candidates are recommended."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recbole_llm4sbr.base.recbole import (
    GAUC,
    AveragePopularity,
    Collector,
    Evaluator,
    GiniIndex,
    ItemCoverage,
    ShannonEntropy,
    TailPercentage,
)
from recbole_llm4sbr.model.candidates import best_candidates, target_ranks
from recbole_llm4sbr.model.training_graphs import training_sessions

_PER_ROW = ("rec.items", "rec.topk", "rec.meanrank")  # what is collected of each row
Items = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


class SessionCollector(Collector):  # type: ignore[misc]
    """What RecBole's metrics are computed from; where several processes share the work, each has what all of them found.

    Attributes:
        count: rows of the part that is evaluated.
        ranks: of the last evaluation, each row's session id and its target's rank, 0 beyond the largest `topk`; None where no metric
            needs them.
    """

    count = 0
    ranks: tuple[Tensor, Tensor] | None = None

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._rows: list[tuple[Tensor, Tensor]] = []

    def data_collect(self, train_data: Any) -> None:
        """RecBole's, but padding is no item, and an item's popularity is its clicks in the training part and not its rows there."""
        super().data_collect(train_data)
        dataset = train_data.dataset
        self.data_struct.set("data.num_items", dataset.item_num - 1)
        if self.register.need("data.count_items"):
            clicks = np.bincount(np.concatenate(training_sessions(self.config, dataset)), minlength=dataset.item_num)
            self.data_struct.set("data.count_items", dict(enumerate(clicks[1:].tolist(), 1)))

    def eval_batch_collect(self, scores_tensor: Tensor, interaction: Any, positive_u: Tensor, positive_i: Tensor) -> None:
        """Add a batch.

        Args:
            scores_tensor: -inf for what is no candidate, [B, n_items].
            interaction: the sessions.
            positive_u: 0 to B - 1, as each session has one target.
            positive_i: the targets, [B].
        """
        scores, target, longest = scores_tensor, positive_i.to(scores_tensor.device), max(self.topk)
        need, add = self.register.need, self.data_struct.update_tensor
        rank = target_ranks(scores, target)
        if need("rec.items"):
            add("rec.items", best_candidates(scores, longest)[1])
        if need("rec.topk"):
            hits = rank.unsqueeze(1) == torch.arange(1, longest + 1, device=rank.device)  # [B, longest]
            add("rec.topk", torch.cat([hits, torch.ones_like(hits[:, :1])], 1).int())
            self._rows.append((interaction[self.config["USER_ID_FIELD"]].cpu(), (rank * (rank <= longest)).cpu()))
        if need("rec.meanrank"):  # of GAUC: the area under a curve takes the mean rank of equal scores
            candidates, known = (scores != -torch.inf).sum(1), rank > 0
            first = (scores > scores.gather(1, target.unsqueeze(1))).sum(1) + 1
            mean = torch.where(known, (first + rank) / 2, candidates + 1)  # what is no candidate stands behind all of them
            add("rec.meanrank", torch.stack([mean, candidates + ~known, torch.ones_like(mean)], 1))

    def get_data_struct(self) -> Any:
        """RecBole's, at the end of an evaluation."""
        rows, self._rows = self._rows, []
        struct = super().get_data_struct()
        found = [torch.cat(each) for each in zip(*rows)]
        if torch.distributed.is_initialized():
            found = [rows_of_all(each, self.count, self.config["device"]) for each in found]
            for name in (each for each in _PER_ROW if each in struct):
                struct.set(name, rows_of_all(struct.get(name), self.count, self.config["device"]))
        self.ranks = (found[0], found[1]) if found else None
        return struct


def rows_of_all(mine: Tensor, count: int, device: torch.device) -> Tensor:
    """What all processes found of their rows, in the order of the data, each row once.

    Torch's DistributedSampler deals the rows out in turn, and repeats the first ones until all processes have as many.

    Args:
        mine: of this process's rows, [R, ...]; R is the same in all processes.
        count: rows that there are.
        device: through which the processes speak.

    Returns:
        [count, ...] on the CPU.
    """
    mine = mine.to(device).contiguous()
    found = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(found, mine)
    return torch.stack(found, 1).flatten(0, 1)[:count].cpu()


class SessionEvaluator(Evaluator):  # type: ignore[misc]
    """RecBole's, with metrics that are defined for lists that end early (0 from there on), as where few candidates are left."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.metric_class |= {name: metric(config) for name, metric in _METRICS.items() if name in self.metric_class}


class _GAUC(GAUC):  # type: ignore[misc]
    """RecBole's; 0 where no row has a candidate besides its target."""

    def metric_info(self, pos_rank_sum: Values, user_len_list: Values, pos_len_list: Values) -> float:
        alone = (user_len_list == pos_len_list).all()
        return 0.0 if alone else float(super().metric_info(pos_rank_sum, user_len_list, pos_len_list))


class _ItemCoverage(ItemCoverage):  # type: ignore[misc]
    def get_coverage(self, item_matrix: Items, num_items: int) -> float:
        return float(super().get_coverage(item_matrix[item_matrix > 0], num_items))


class _ShannonEntropy(ShannonEntropy):  # type: ignore[misc]
    def get_entropy(self, item_matrix: Items) -> float:
        return float(super().get_entropy(item_matrix[item_matrix > 0][None])) if item_matrix.any() else 0.0


class _GiniIndex(GiniIndex):  # type: ignore[misc]
    def get_gini(self, item_matrix: Items, num_items: int) -> float:
        return float(super().get_gini(item_matrix[item_matrix > 0][None], num_items)) if item_matrix.any() else 0.0


class _AveragePopularity(AveragePopularity):  # type: ignore[misc]
    def get_pop(self, item_matrix: Items, item_count: dict[int, int]) -> Values:
        return _looked_up(super().get_pop, item_matrix, item_count)

    def metric_info(self, values: Values) -> Values:
        return _running_mean(values)


class _TailPercentage(TailPercentage):  # type: ignore[misc]
    def get_tail(self, item_matrix: Items, count_items: dict[int, int]) -> Values:
        return _looked_up(super().get_tail, item_matrix, count_items)

    def metric_info(self, values: Values) -> Values:
        return _running_mean(values)


def _looked_up(of_items: Callable[[Items, dict[int, int]], Items], lists: Items, counts: dict[int, int]) -> Values:
    """RecBole's value of each item of lists [R, k], nan where a list has ended. RecBole finds it in a loop: once for each item here."""
    values = of_items(np.arange(max(counts) + 1)[:, None], counts)[:, 0].astype(np.float64)
    values[0] = np.nan
    return values[lists]


def _running_mean(values: Values) -> Values:
    """Of each row the mean of its first 1, 2, ... values, nan left out; 0 of none."""
    count = (~np.isnan(values)).cumsum(1)
    mean: Values = np.nancumsum(values, 1) / np.maximum(count, 1)
    return mean


_METRICS: dict[str, type] = {
    "gauc": _GAUC,
    "itemcoverage": _ItemCoverage,
    "shannonentropy": _ShannonEntropy,
    "giniindex": _GiniIndex,
    "averagepopularity": _AveragePopularity,
    "tailpercentage": _TailPercentage,
}
