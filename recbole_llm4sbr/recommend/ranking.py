"""Ranks by trained models: scores of the candidates, and what a model makes of sessions that stand in the prepared files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import tower_said, uses_intents
from recbole_llm4sbr.base.settings import class_name
from recbole_llm4sbr.model.candidates import best_candidates, exclude_clicked, target_ranks
from recbole_llm4sbr.model.wrapper import LLM4SBRWrapper
from recbole_llm4sbr.training.loading import Loaded, load_model
from recbole_llm4sbr.training.trainer import read_checkpoint

_BATCH = 256  # sessions ranked at once
_CONTROLS = {
    "shuffled": "control: it reads the intents of another session",
    "random": "control: it reads random vectors in the intents' place",
    "none": "control: it reads no intents",
}


@dataclass(frozen=True)
class Ranked:
    """What a model makes of a session.

    Attributes:
        rank: of the target among the candidates, behind all others of its score; 0 where it is no candidate.
        candidates: how many there are.
        best: tokens and scores of the best candidates.
        gates: by embedding (`global`, `local` or `session`) the gate w^T sigmoid(h + t); empty for a model without gates.
    """

    rank: int
    candidates: int
    best: list[tuple[str, float]]
    gates: dict[str, float]


@torch.no_grad()
def candidate_scores(model: Any, config: Any, interaction: Any) -> Tensor:
    """Scores of all items by their number, -inf for padding and for what is no candidate, on the CPU, [B, n_items]."""
    clicks = interaction[config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]]
    scores: Tensor = model.full_sort_predict(interaction).view(len(clicks), -1).clone()
    scores[:, 0] = -torch.inf
    if config["repeatable"] is False:
        exclude_clicked(scores, clicks)
    return scores.cpu()


class Ranker:
    """A trained model that ranks the sessions of its own files.

    Args:
        checkpoint: its file.
        loaded: the model and its data.
    """

    def __init__(self, checkpoint: str, loaded: Loaded) -> None:
        self.checkpoint, self.loaded = checkpoint, loaded
        self.settings = loaded.config["given"]
        self._tokens = loaded.dataset.field2id_token[loaded.dataset.iid_field]

    @property
    def about(self) -> str:
        """The model in words."""
        settings, model = self.settings, class_name(self.settings["model"])
        if not settings["llm4sbr"]:
            return f"{model}, plain{tower_said(settings)}"
        source = settings["intent_source"]
        said = f"LLM4SBR({model}){tower_said(settings)}, fusion {settings['fusion']}, intents from {source}"
        return f"{said} ({_CONTROLS[source]})" if source in _CONTROLS else said

    @property
    def reads_intents(self) -> bool:
        """Whether it reads intents from feature files."""
        return uses_intents(self.settings)

    def test_ranks(self) -> dict[str, int]:
        """The rank of each test session's target by session id, as `Ranked.rank`."""
        feat, dataset = self.loaded.test_data.dataset.inter_feat, self.loaded.dataset
        found = np.concatenate([self._ranks(feat[piece])[0] for piece in torch.split(torch.arange(len(feat)), _BATCH)])
        names = dataset.field2id_token[dataset.uid_field][feat[dataset.uid_field].numpy()]
        return dict(zip(map(str, names), found.tolist()))

    def rank(self, session: str, topn: int) -> Ranked:
        """What the model makes of a session of its files.

        Args:
            session: its id.
            topn: how many of the best candidates.
        """
        row = self._row(session)
        (rank,), scores = self._ranks(row)
        best, items = (each[0] for each in best_candidates(scores, min(topn, scores.size(1) - 1)))
        kept = [(str(self._tokens[item]), score) for item, score in zip(items.tolist(), best.tolist()) if score > -torch.inf]
        model, gates = self.loaded.model, dict[str, Tensor]()
        if isinstance(model, LLM4SBRWrapper):
            gates = model.gate_values(row.to(self.loaded.config["device"]))
        return Ranked(int(rank), int(scores.isfinite().sum()), kept, {name: float(gate[0]) for name, gate in gates.items()})

    def _ranks(self, interaction: Any) -> tuple[npt.NDArray[np.int64], Tensor]:
        """Ranks of the targets [B], and the scores of the candidates [B, n_items]."""
        scores = candidate_scores(self.loaded.model, self.loaded.config, interaction.to(self.loaded.config["device"]))
        return target_ranks(scores, interaction[self.loaded.dataset.iid_field].cpu()).numpy(), scores

    def _row(self, session: str) -> Any:
        """A session as the model reads it, a batch of one."""
        dataset = self.loaded.dataset
        number = dataset.token2id(dataset.uid_field, session)
        place = (dataset.inter_feat[dataset.uid_field] == number).nonzero().squeeze(1)
        if len(place):
            return dataset.inter_feat[place[:1]]
        raise UserError(f"{self.checkpoint!r} has no session {session!r}")


def load_rankers(checkpoints: Sequence[str | Path], classes: Sequence[str] = (), **changed: Any) -> list[Ranker]:
    """Load checkpoints whose ranks can be compared.

    Args:
        checkpoints, classes, changed: as for `load_ensemble`.

    Raises:
        UserError: a checkpoint that `load_model` refuses, or one of another data set or of other session files.
    """
    names = [str(path) for path in checkpoints]
    wanted = changed.pop("dataset", None)
    for name in names:
        trained = str(read_checkpoint(name)["config"].get("given", {}).get("dataset"))
        wanted = wanted or trained
        if trained != str(wanted):
            raise UserError(
                f"{name!r} was trained on the data set {trained!r}, not on {str(wanted)!r}; name checkpoints of one data set"
            )
    rankers = [Ranker(name, load_model(name, classes, **changed)) for name in names]
    for ranker in rankers[1:]:
        for kind, read in _ALIKE.items():
            if read(ranker.loaded.config) != read(rankers[0].loaded.config):
                raise UserError(
                    f"{names[0]!r} and {ranker.checkpoint!r} differ in their {kind}; name checkpoints of one data set"
                )
    return rankers


def _session_files(config: Any) -> dict[str, str]:
    return {name: each for name, each in config["trained_on"]["files"].items() if name.endswith(".inter")}


def _items(config: Any) -> list[str]:
    return list(config["trained_on"]["items"])


_ALIKE: dict[str, Callable[[Any], Any]] = {"session files": _session_files, "items": _items}
