"""What travels between packages and into JSON files: counts of prepared sessions and of intents, and how good these are."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self


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
        rows: by part, the sessions with a target in it: the rows under `train_targets` and `eval_targets: last`.
        prefixes: by part, the rows under `all`; empty in files of an earlier version.
        raw_clicks: before filtering.
        unseen_items, dropped_clicks: left out of valid and test since train never saw the item.
        catalogue: items that models rank.
        repeated: rows whose target is among the clicks before it, by part: of train's `prefixes`, of valid's and test's `rows`.
        duplicates: clicks on the item of an earlier one of their session at the very same time.
        duplicated: of the rows counted in `repeated`, those whose target is such a click.
        cold_items: items of the catalogue that no training row holds; 0 under `cold_items: false`.
        cold_targets: of valid and test, rows of `rows` whose target is one of them; empty under `cold_items: false`.
    """

    sessions: int
    items: int
    clicks: int
    average_length: float
    rows: dict[str, int]
    prefixes: dict[str, int] = field(default_factory=dict)
    raw_clicks: int = 0
    unseen_items: int = 0
    dropped_clicks: int = 0
    catalogue: int = 0
    repeated: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    duplicated: dict[str, int] = field(default_factory=dict)
    cold_items: int = 0
    cold_targets: dict[str, int] = field(default_factory=dict)

    @property
    def repeatable(self) -> bool:
        """What `repeatable: auto` stands for: whether at least one in a thousand training targets occurs earlier in its session.

        A click that a log holds twice is no return to its item and does not count.
        """
        again = self.repeated.get("train", 0) - self.duplicated.get("train", 0)
        return 1000 * again >= (self.prefixes or self.rows)["train"]

    def of_targets(self, train: str, evaluated: str) -> dict[str, int]:
        """Rows by part under settings of `train_targets` and `eval_targets`, `all` or `last`."""
        targets = {part: train if part == "train" else evaluated for part in self.rows}
        return {part: (self.prefixes or self.rows if targets[part] == "all" else self.rows)[part] for part in self.rows}

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
        cut: of those without one, how many have an answer that was cut at `llm_max_new_tokens` before it named anything.
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
    cut: int = 0
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
    "sessions", "intents", "no_intent", "not_asked", "cut", "prompts", "distinct_prompts", "distinct_answers", "dim", "k_max",
    "quality",
)  # fmt: skip
