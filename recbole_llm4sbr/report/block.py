"""What a report reads: lines of a grid, a variant of a model each, and the blocks that they stand in; what is tested against what."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.base.facts import artefacts_of, deciding_keys
from recbole_llm4sbr.base.grids import Search
from recbole_llm4sbr.base.metrics import is_per_session, session_metric, shown_by
from recbole_llm4sbr.base.names import ENSEMBLE, control_of_ensemble, reference_of, report_name
from recbole_llm4sbr.base.results import RunResult
from recbole_llm4sbr.base.schema import schema

CONTROLS = ("session_text", "shuffled", "random", "none")
REFERENCES = ("plain", "w/o LLM", "llm4sbr")  # what the variants of a group are tested against: the first of these that it has
_LIKE = {"text-init": "plain-text-init", "cosine": "plain-cosine"}  # enhanced variants, and the plain ones with the same switch


@dataclass
class Line:
    """One variant of one model in one group of a grid, over its seeds.

    Attributes:
        group, model, variant, about: its place, and what the variant is.
        results: of the runs, by seed.
        ranks: test rows by seed: session, rank, length, head, intent, and clicks but in files of versions that did not count them.
        reasons: why a seed's run failed.
        name: of the variant as tables and figures show it: a long one is cut, and no other variant of the block has it.
        keys: of its cells.
    """

    group: str
    model: str
    variant: str
    about: str
    results: dict[int, RunResult] = field(default_factory=dict)
    ranks: dict[int, dict[str, npt.NDArray[Any]]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    name: str = ""
    keys: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Show the variant as it is unless told otherwise."""
        self.name = self.name or self.variant

    @property
    def settings(self) -> dict[str, Any]:
        """Of its runs, which differ in their seeds alone; empty without a result."""
        return next((result.settings for result in self.results.values()), {})

    @property
    def sessions(self) -> npt.NDArray[Any]:
        """Ids of the test rows, sorted."""
        return np.sort(next(iter(self.ranks.values()))["session"])

    @property
    def unfinished(self) -> list[int]:
        """Seeds of the runs whose best epoch is the last that they were allowed."""
        return sorted(seed for seed, result in self.results.items() if result.unfinished)

    def scores(self, metric: str) -> list[float]:
        """A metric of the test by seed, in percent where it is a share."""
        return [shown_by(metric) * float(result.test_result.get(metric.lower(), np.nan)) for result in self.results.values()]

    def mean(self, metric: str) -> str:
        """The mean of `scores`, and of several seeds their standard deviation, as it is read."""
        scores = self.scores(metric)
        said = f"{np.mean(scores):.2f}"
        return said if len(scores) < 2 else f"{said} ± {np.std(scores, ddof=1):.2f}"

    def by_seed(self, metric: str, seeds: Sequence[int]) -> npt.NDArray[np.float64]:
        """A metric of each test row, in the order of the session ids, for each seed, [seeds, R]."""
        values = []
        for seed in seeds:
            rows = self.ranks[seed]
            order = np.argsort(rows["session"], kind="stable")
            values.append(session_metric(rows["rank"][order], metric))
        return np.array(values)


def metrics_of(lines: Sequence[Line]) -> list[str]:
    """Names of the metrics that all lines have, as Hit@5, in the order of the paper's tables."""
    names = [result.metric_names() for line in lines for result in line.results.values()]
    return [name for name in names[0] if all(name in other for other in names)]


def main_metrics(lines: Sequence[Line]) -> list[str]:
    """The first two metrics at their largest cut-off, as Hit@20 and MRR@20; those that have a value per session come first."""
    names = metrics_of(lines)
    largest = max((int(name.partition("@")[2]) for name in names if "@" in name), default=0)
    whole = [name for name in names if name.endswith(f"@{largest}")] or names
    return sorted(whole, key=lambda name: not is_per_session(name))[:2]


@dataclass
class Block:
    """All that was run on one dataset with one split.

    Attributes:
        dataset, split: which.
        lines: in the order of the grid.
        commands: what was typed.
        machines: where.
        searches: what `tune` found.
    """

    dataset: str
    split: str
    lines: list[Line] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    machines: list[str] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the Markdown file."""
        return report_name(self.dataset, self.split)

    @property
    def title(self) -> str:
        """Of the section."""
        return f"{self.dataset}, {self.split} split"

    @property
    def groups(self) -> list[str]:
        """Titles of the groups that have a result."""
        return list(dict.fromkeys(line.group for line in self.lines if line.results))

    def of(self, group: str) -> list[Line]:
        """The lines of a group that have a result."""
        return [line for line in self.lines if line.group == group and line.results]

    @property
    def valid_metrics(self) -> list[str]:
        """The metrics that select epochs, the one of most runs first."""
        results = [result for line in self.lines for result in line.results.values()]
        results += [search.best.result for search in self.searches if search.best is not None]
        return [metric for metric, _ in Counter(result.valid_metric for result in results).most_common()]

    def any_result(self) -> RunResult:
        """A result, for what all have in common; one that used intents where there is one."""
        results = [result for line in self.lines for result in line.results.values()]
        results += [search.best.result for search in self.searches if search.best is not None]
        return max(results, key=lambda result: result.infer is not None)

    def pairs(self, group: str) -> list[tuple[Line, Line]]:
        """What is tested against what: every variant against the model's reference; LLM4SBR against its controls, against the plain model
        with text, and with one LLM against the first one; a switch against the same switch of the plain model; an ensemble against as
        many of the plain models there.
        """
        found: dict[frozenset[int], tuple[Line, Line]] = {}  # each pair once, whichever of the two comes first
        for line in self.of(group):
            others = [each for each in self.of(group) if each.model == line.model]
            if line.variant.startswith(ENSEMBLE):
                control = control_of_ensemble(line.variant, [each.variant for each in others])
                references = [each for each in others if each.variant == control]
            else:
                others = [each for each in others if not each.variant.startswith(ENSEMBLE)]
                references = [_reference(others)]
                references += _compared(line, others)
            for reference in references:
                if reference is not line and not (line.keys and line.keys == reference.keys):  # the very same runs
                    found.setdefault(frozenset((id(line), id(reference))), (line, reference))
        return list(found.values())


def _compared(line: Line, others: Sequence[Line]) -> list[Line]:
    """What a line is tested against beside the reference, as `Block.pairs` says."""
    match = is_llm4sbr(line.variant)
    if match is None:
        return [each for each in others if each.variant == _LIKE.get(line.variant)]
    llm = match[1] or ""
    first = [each for each in others if each.variant.startswith("llm4sbr+llm=")][:1] if llm else []
    controls = (
        each
        for each in others
        if each.variant in CONTROLS or each.variant.removesuffix(llm) in CONTROLS or is_plain_with_text(each.variant)
    )
    return [*controls, *first]


def is_llm4sbr(variant: str) -> re.Match[str] | None:
    """A match where a variant is LLM4SBR as the grid has it, of one LLM or of several: `llm4sbr+llm=NAME`, whose suffix is the group 1."""
    return re.fullmatch(r"llm4sbr(\+llm=[^+]+)?", variant)


def is_plain_with_text(variant: str) -> bool:
    """Whether a variant is by its name the plain model whose item table starts from text.

    >>> [is_plain_with_text(each) for each in ("plain-text-init", "plain+item_init=text", "LLM2Seq", "plain", "text-init")]
    [True, True, True, False, False]
    """
    changed = variant.startswith("plain+") and re.search(r"\+item_init=(text|pca)\b", variant)
    return variant.partition("+")[0] in ("plain-text-init", "LLM2Seq") or bool(changed)


def main_lines(block: Block) -> list[Line]:
    """What is looked at most closely: the first group of those with the most seeds."""
    return max((block.of(group) for group in block.groups), key=lambda lines: max(len(line.results) for line in lines))


def _reference(lines: Sequence[Line]) -> Line:
    """What the variants of a model are tested against: the first of `REFERENCES` that is there, as it is or with changed settings."""
    for name in REFERENCES:
        if found := reference_of((line.variant for line in lines), name):
            return next(line for line in lines if line.variant == found)
    return lines[0]


def buckets_of(lines: Sequence[Line]) -> dict[str, npt.NDArray[np.bool_]]:
    """Parts of the test sessions, in the order of the session ids."""
    rows = next(iter(lines[0].ranks.values()))
    order = np.argsort(rows["session"], kind="stable")
    head, length = rows["head"][order], rows["length"][order]
    low, high = np.quantile(length, [1 / 3, 2 / 3]).astype(int)
    buckets = {
        "head targets": head,
        "tail targets": ~head,
        **_cold_buckets(lines[0], rows, order),
        f"up to {low} clicks": length <= low,
        f"{low + 1} to {high} clicks": (length > low) & (length <= high),
        f"over {high} clicks": length > high,
    }
    for line in lines:
        own, settings = next(iter(line.ranks.values())), next(iter(line.results.values())).settings
        if settings["intent_source"] in ("shuffled", "random"):
            continue
        if own["intent"].any() and not own["intent"].all():
            intent = own["intent"][np.argsort(own["session"], kind="stable")]
            buckets |= {"with intents": intent, "without an intent": ~intent}
            break
    return buckets


def _cold_buckets(
    line: Line, rows: dict[str, npt.NDArray[Any]], order: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[np.bool_]]:
    """Where cold items are ranked: the sessions whose target has training clicks, and the others."""
    if "clicks" not in rows or not next(iter(line.results.values())).settings.get("cold_items"):
        return {}
    clicks = rows["clicks"][order]
    return {"targets with training clicks": clicks > 0, "targets without": clicks == 0}


def common_settings(block: Block, group: str | None = None) -> dict[str, Any]:
    """Settings that all runs of a block, or of one group of it, share."""
    first, *others = [result.settings for result in _all_results(block, group)]
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


def deciding_settings(block: Block, group: str | None = None) -> set[str]:
    """The names of the settings on which some run of a block, or of one group of it, depends; of ensembles, whose members differ, all."""
    unsaid = {key: setting.default for key, setting in schema().items()}  # by runs of versions that did not have them
    found: set[str] = set()
    for result in _all_results(block, group):
        settings = unsaid | result.settings
        found |= set(settings) if result.members else set(deciding_keys(settings, "prepared", *artefacts_of(settings)))
    return found


def _all_results(block: Block, group: str | None) -> list[RunResult]:
    lines = block.lines if group is None else block.of(group)
    found = [result for line in lines for result in line.results.values()]
    if group is None:
        found += [search.best.result for search in block.searches if search.best is not None]
    return found
