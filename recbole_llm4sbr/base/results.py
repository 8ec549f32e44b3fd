"""What training and testing a model came to, as it goes into JSON: results of runs, and whether a budget ended them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from recbole_llm4sbr.base.records import IntentCounts, PreparedCounts, Record


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
        by_clicks: the test by the training clicks of the target; empty unless cold items are ranked.
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
        """Names of the metrics at their cut-offs, as Hit@5, in the order of the settings; GAUC has none."""
        cutoffs = self.settings["topk"] if isinstance(self.settings["topk"], list) else [self.settings["topk"]]
        return [
            name
            for metric in self.settings["metrics"]
            for name in ([metric] if metric.lower() == "gauc" else [f"{metric}@{cutoff}" for cutoff in cutoffs])
        ]
