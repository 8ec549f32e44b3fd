"""What grids and searches leave in their folders, as it goes into JSON: cells of `compare`, trials of `tune`."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from recbole_llm4sbr.base.files import read_json_lines
from recbole_llm4sbr.base.records import PreparedCounts, Record
from recbole_llm4sbr.base.results import Budget, RunResult

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CellResult(Record):
    """What became of a cell: a line of `cells.jsonl`.

    Attributes:
        status: `ok` or `failed`.
        result: of the run, where it is ok.
        reason, traceback: why it failed.
        key: names the cell.
        machine: where it ran.
    """

    status: str
    result: RunResult | None = None
    reason: str = ""
    traceback: str = ""
    key: str = ""
    machine: str = ""

    @property
    def ok(self) -> bool:
        """Whether there is a result."""
        return self.status == "ok" and self.result is not None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """As `Record.from_json`, with its result."""
        result = value.get("result")
        return super().from_json({**value, "result": RunResult.from_json(result) if result else None})


def read_cell_results(path: Path) -> dict[str, CellResult]:
    """The results of cells by key; a line that is none is passed over with a warning."""
    found = {}
    for number, row in enumerate(read_json_lines(path), 1):
        try:
            found[row["key"]] = CellResult.from_json(row)
        except (KeyError, TypeError, AttributeError):
            log.warning("%s, line %s is not the result of a cell and is passed over", path, number)
    return found


@dataclass(frozen=True)
class GridEntry(Record):
    """A cell as `grid.json` names it: its place in the report, and the key of its result."""

    group: str
    dataset: str
    split: str
    model: str
    variant: str
    seed: int
    about: str
    key: str
    base: str = ""

    @property
    def place(self) -> tuple[str, str, str, str, str, int]:
        """Where it stands in the report."""
        return self.group, self.dataset, self.split, self.model, self.variant, self.seed


@dataclass(frozen=True)
class Trial(Record):
    """One trial of a search.

    Attributes:
        trial: its name in Ray's folder.
        setting: what was drawn.
        score: best on validation; None where it failed.
        error: why it failed.
        epochs_seen: epochs that it trained; of one that was stopped early those that were validated.
        best_epoch, epochs, seconds_training, parameters, best_valid_result: as in `Fitted`, None where it was stopped early.
        unfinished: as in `RunResult`; a trial that the scheduler stopped early is not.
        private_mb, peak_mb: memory of its own, and the most of its process.
    """

    trial: str
    setting: dict[str, Any]
    score: float | None = None
    error: str | None = None
    epochs_seen: int = 0
    best_epoch: int | None = None
    epochs: int | None = None
    seconds_training: float | None = None
    parameters: int | None = None
    best_valid_result: dict[str, float] | None = None
    unfinished: bool = False
    private_mb: float | None = None
    peak_mb: float | None = None

    def judged(self, settings: Mapping[str, Any]) -> Self:
        """The trial, with `unfinished` found from the settings that all trials share; what a file says of it is not read."""
        budget = Budget.of({**settings, **self.setting}, self.epochs or 0)
        return replace(self, unfinished=budget.ended(self.best_epoch, self.parameters))


@dataclass(frozen=True)
class BestTrial(Record):
    """The best trial of a search, trained again and tested."""

    setting: dict[str, Any]
    trial: str
    score: float
    result: RunResult

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """As `Record.from_json`, with its result."""
        return super().from_json({**value, "result": RunResult.from_json(value["result"])})


@dataclass(frozen=True)
class Search(Record):
    """A search of `tune`: `search.json`.

    Attributes:
        dataset, split, model, metric, bigger: what was searched, and the metric of validation.
        command, machine: what was typed, and where it ran.
        asked: what makes it this search and no other.
        counts: of the session files.
        trials: all of them.
        best: None until it is tested.
    """

    dataset: str
    split: str
    model: str
    metric: str
    bigger: bool
    command: str
    machine: str
    asked: dict[str, Any]
    counts: PreparedCounts
    trials: list[Trial] = field(default_factory=list)
    best: BestTrial | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """As `Record.from_json`, with its records."""
        best = value.get("best")
        shared = value["asked"].get("settings", {})
        nested = {
            "counts": PreparedCounts.from_json(value["counts"]),
            "trials": [Trial.from_json(each).judged(shared) for each in value["trials"]],
            "best": BestTrial.from_json(best) if best else None,
        }
        return super().from_json({**value, **nested})
