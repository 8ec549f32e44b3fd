"""What travels between packages and into JSON files: results of runs, counts, cells of grids, trials of searches."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from recbole_llm4sbr.base.files import read_json_lines

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """A dataclass that goes into JSON and comes back."""

    def to_json(self) -> dict[str, Any]:
        """Fields by name, nested records as dicts."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The record in `value`; fields that this version does not know are left out, absent ones have their defaults."""
        return cls(**{each.name: value[each.name] for each in fields(cls) if each.init and each.name in value})


@dataclass(frozen=True)
class PreparedCounts(Record):
    """What `prepare` made of a click log.

    Attributes:
        sessions, items, clicks, average_length: after filtering.
        rows: of the parts train, valid and test.
        raw_clicks: before filtering.
        unseen_items, dropped_clicks: left out of valid and test since train never saw the item.
        catalogue: items that models rank.
        repeated: by part, rows whose target is among the clicks before it.
        cold_items: items of the catalogue that no training row holds; 0 under `cold_items: false`.
        cold_targets: of valid and test, rows whose target is one of them; empty under `cold_items: false`.
    """

    sessions: int
    items: int
    clicks: int
    average_length: float
    rows: dict[str, int]
    raw_clicks: int = 0
    unseen_items: int = 0
    dropped_clicks: int = 0
    catalogue: int = 0
    repeated: dict[str, int] = field(default_factory=dict)
    cold_items: int = 0
    cold_targets: dict[str, int] = field(default_factory=dict)

    @property
    def repeatable(self) -> bool:
        """What `repeatable: auto` stands for: whether at least one in a thousand training targets occurs earlier in its session."""
        return 1000 * self.repeated.get("train", 0) >= self.rows["train"]

    def settled(self, repeatable: bool | str) -> bool:
        """The setting `repeatable` with `auto` replaced by what the training part says."""
        return self.repeatable if repeatable == "auto" else bool(repeatable)

    def to_json(self) -> dict[str, Any]:
        """Fields by name, and what `repeatable: auto` stands for."""
        return {**super().to_json(), "repeatable": self.repeatable}


@dataclass(frozen=True)
class ViewQuality(Record):
    """How good the intents of a view are, over the sessions of the training and the validation part that have one.

    Attributes:
        view: its name.
        sessions: that have an intent.
        titles: share of them whose answer is the title of an item of the catalogue; None where no LLM answers.
        inside: share of them whose intent lies in the session itself; None where that cannot be told.
        valid_sessions: those of the validation part.
        hits: share of those whose target is among the 1, 2, ... nearest items that are stored; empty without such sessions.
    """

    view: str
    sessions: int
    titles: float | None
    inside: float | None
    valid_sessions: int
    hits: list[float]

    def hit(self, cutoff: int) -> float | None:
        """The share of hits among so many nearest items; None where it was not measured."""
        return self.hits[cutoff - 1] if cutoff <= len(self.hits) else None


@dataclass(frozen=True)
class IntentQuality(Record):
    """How good the intents of stage 1 are; the test part is not looked at.

    Attributes:
        inside_by: what `inside` means: `nearest`: the nearest item is one of the session's; `title`: the answer is the title of one.
        views: by view.
        equal: share of the sessions with all intents whose nearest items are the same in all views; None for a single view.
    """

    inside_by: str
    views: list[ViewQuality]
    equal: float | None = None

    def cutoffs(self, intent_k: int) -> list[int]:
        """The cut-offs at which hits are shown: `intent_k` and 20, or as many as are stored."""
        stored = max((len(each.hits) for each in self.views), default=0)
        return sorted({min(max(intent_k, 1), stored), min(20, stored)} - {0})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """As `Record.from_json`, with its views."""
        return super().from_json({**value, "views": [ViewQuality.from_json(each) for each in value["views"]]})


@dataclass(frozen=True)
class IntentCounts(Record):
    """What `infer` made of prepared sessions.

    Attributes:
        sessions: rows of the session files.
        intents, no_intent, not_asked: sessions x views with an intent, without one, and not asked for (`max_sessions`).
        prompts, distinct_prompts, distinct_answers: all that were needed, whoever answered.
        dim, k_max: numbers per vector, and nearest items stored per intent.
        calls, reused, shipped, failures: of this run: LLM calls, answers from the store or shipped, of these shipped, calls that failed.
        prompt_tokens, answer_tokens, llm_seconds, cost: of this run's calls; cost None without `llm_prices`.
        seconds: of the whole run.
        quality: of the intents; None in files of a version that did not measure it.
    """

    sessions: int = 0
    intents: int = 0
    no_intent: int = 0
    not_asked: int = 0
    prompts: int = 0
    distinct_prompts: int = 0
    distinct_answers: int = 0
    dim: int = 0
    k_max: int = 0
    calls: int = 0
    reused: int = 0
    shipped: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    llm_seconds: float = 0.0
    cost: float | None = None
    seconds: float = 0.0
    quality: IntentQuality | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """As `Record.from_json`, with its quality."""
        quality = value.get("quality")
        return super().from_json({**value, "quality": IntentQuality.from_json(quality) if quality else None})

    def of_files(self) -> dict[str, Any]:
        """The counts that belong to the files, not to the run that wrote them, as plain values."""
        return {name: value for name, value in self.to_json().items() if name in _OF_INTENT_FILES}


_OF_INTENT_FILES = (
    "sessions", "intents", "no_intent", "not_asked", "prompts", "distinct_prompts", "distinct_answers", "dim", "k_max",
    "quality",
)  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """What a run may spend on training.

    Attributes:
        epochs: the most that it may train.
        eval_step: epochs from one validation to the next.
    """

    epochs: int
    eval_step: int = 1

    @classmethod
    def of(cls, settings: Mapping[str, Any], trained: int = 0) -> Self:
        """The budget in `settings`; where they do not name `epochs`, the epochs that were trained."""
        return cls(settings.get("epochs") or trained, settings.get("eval_step") or 1)

    def ended(self, best_epoch: int | None, parameters: int | None) -> bool:
        """Whether the budget ended training, rather than early stopping: the best epoch is the last one that is validated.

        Args:
            best_epoch: from 0 on; None, of a run that was not validated or was stopped from outside, is not judged.
            parameters: trained numbers. A single one is the placeholder that RecBole's optimizer needs (`fake_loss`) of a model that
                trains nothing, and that no budget ends.

        >>> Budget(50).ended(49, 1000), Budget(50).ended(48, 1000), Budget(5, eval_step=2).ended(3, 1000), Budget(1).ended(0, 1)
        (True, False, True, False)
        """
        if best_epoch is None or (parameters is not None and parameters <= 1):
            return False
        return best_epoch == self.epochs // self.eval_step * self.eval_step - 1

    def advice(self) -> str:
        """What is said of a run that its budget ended, and the setting to raise.

        >>> Budget(50).advice()
        'the best epoch is the last of epochs=50, so training is unfinished; raise --epochs'
        """
        last = "last" if self.eval_step == 1 else "last validated one"
        return f"the best epoch is the {last} of epochs={self.epochs}, so training is unfinished; raise --epochs"


@dataclass(frozen=True)
class Fitted(Record):
    """What training found, before the test.

    Attributes:
        best_valid_score, valid_score_bigger, best_valid_result: RecBole's.
        valid_metric: what selects the epoch.
        best_epoch: from 0 on; None where nothing was validated.
        epochs: that were trained.
        valid_scores, train_losses, seconds_per_epoch: by epoch.
        seconds_training: with validation.
        parameters: trained numbers.
    """

    best_valid_score: float
    valid_score_bigger: bool
    best_valid_result: dict[str, float]
    valid_metric: str
    best_epoch: int | None
    epochs: int
    valid_scores: list[float]
    train_losses: list[float]
    seconds_training: float
    seconds_per_epoch: list[float]
    parameters: int


@dataclass(frozen=True)
class ClicksBucket(Record):
    """The test rows whose targets have so many clicks in the training part.

    Attributes:
        clicks: how many, in words.
        rows: of the test.
        result: metrics by name, in small letters, those that have a value for each row.
    """

    clicks: str
    rows: int
    result: dict[str, float]


@dataclass(frozen=True)
class Tested(Fitted):
    """What one training process found, with the test.

    Attributes:
        test_result: RecBole's metrics by name, in small letters.
        peak_memory_mb: of the process, or of its GPU.
        checkpoint: the file; None where none was written.
        by_clicks: the test by the training clicks of the target; empty unless cold items are ranked, and with several processes.
    """

    test_result: dict[str, float]
    peak_memory_mb: float
    checkpoint: str | None
    by_clicks: list[ClicksBucket] = field(default_factory=list, kw_only=True)


@dataclass(frozen=True)
class Member(Record):
    """A member of an ensemble.

    Attributes:
        name: what it is.
        checkpoint: its file.
        weight: of its log-probabilities.
        unfinished: as in `RunResult`.
    """

    name: str
    checkpoint: str
    weight: float
    unfinished: bool = False


@dataclass(frozen=True)
class RunResult(Tested):
    """The result of a run, as `--result_file` and grids keep it.

    Attributes:
        prepare: counts of the session files.
        infer: counts of the intents; None where the model reads none.
        settings: all settings of the run, plain values.
        versions: of this package, Python and the libraries that results depend on.
        unfinished: whether the best epoch is the last that `epochs` allowed. Early stopping did not end such a run, so that its metrics
            support no claim. Never read from a file but found anew, since earlier versions did not write it. An ensemble is unfinished
            where a member is.
        members: of an ensemble; empty for a model.
    """

    prepare: PreparedCounts
    infer: IntentCounts | None
    settings: dict[str, Any]
    versions: dict[str, str]
    unfinished: bool = field(init=False)
    members: list[Member] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Find out whether the run is unfinished."""
        ended = self.budget.ended(self.best_epoch, self.parameters) or any(each.unfinished for each in self.members)
        object.__setattr__(self, "unfinished", ended)

    @property
    def budget(self) -> Budget:
        """The epochs that the run was allowed."""
        return Budget.of(self.settings, self.epochs)

    def advice(self) -> str:
        """What is said of an unfinished run, and the setting to raise; of an ensemble, which members it is of."""
        members = ", ".join(each.name for each in self.members if each.unfinished)
        return f"training of its members is unfinished ({members}); raise --epochs" if members else self.budget.advice()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """As `Record.from_json`, with its records."""
        infer = value.get("infer")
        nested = {
            "prepare": PreparedCounts.from_json(value["prepare"]),
            "infer": IntentCounts.from_json(infer) if infer else None,
            "members": [Member.from_json(each) for each in value.get("members", ())],
            "by_clicks": [ClicksBucket.from_json(each) for each in value.get("by_clicks", ())],
        }
        return super().from_json({**value, **nested})

    def metric_names(self) -> list[str]:
        """Names of the metrics at their cut-offs, as Hit@5, in the order of the settings."""
        cutoffs = self.settings["topk"] if isinstance(self.settings["topk"], list) else [self.settings["topk"]]
        return [f"{metric}@{cutoff}" for metric in self.settings["metrics"] for cutoff in cutoffs]


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
        epochs_seen: reports that it made.
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
