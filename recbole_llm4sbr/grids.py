"""What `compare`, `ablate` and `tune` left in their folders, read for the report: `grid.json`, `cells.jsonl`, `ranks/*.npz`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.errors import UserError
from recbole_llm4sbr.files import read_json, read_json_lines
from recbole_llm4sbr.statistics import PER_SESSION, session_metric

REFERENCES = ("plain", "w/o LLM", "llm4sbr")  # what the variants of a group are tested against: the first of these that it has


@dataclass
class Line:
    """One variant of one model in one group of a grid, over its seeds.

    Attributes:
        group, model, variant, about: its place, and what the variant is.
        results: what `train` returned, by seed.
        ranks: test rows by seed: session, rank, length, head, intent.
        reasons: why a seed's run failed.
    """

    group: str
    model: str
    variant: str
    about: str
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    ranks: dict[int, dict[str, npt.NDArray[Any]]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)

    def scores(self, metric: str) -> list[float]:
        """A metric of the test in percent, by seed."""
        return [100 * float(result["test_result"].get(metric.lower(), np.nan)) for result in self.results.values()]

    def per_session(self, metric: str, seeds: Sequence[int], where: npt.NDArray[Any] | None = None) -> npt.NDArray[np.float64]:
        """A metric of each test session, in the order of the session ids, averaged over seeds, [R]."""
        values = []
        for seed in seeds:
            rows = self.ranks[seed]
            order = np.argsort(rows["session"], kind="stable")
            values.append(session_metric(rows["rank"][order], metric))
        mean: npt.NDArray[np.float64] = np.mean(values, axis=0)
        return mean if where is None else mean[where]


@dataclass
class Block:
    """All that was run on one dataset with one split.

    Attributes:
        dataset, split: which.
        lines: in the order of the grid.
        commands: what was typed.
        machines: where.
        searches: what `tune` found, its `search.json` each.
    """

    dataset: str
    split: str
    lines: list[Line] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    machines: list[str] = field(default_factory=list)
    searches: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the Markdown file."""
        return self.dataset if self.split == "temporal" else f"{self.dataset}-{self.split}"

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

    def any_result(self) -> dict[str, Any]:
        """A result, for what all have in common; one that used intents where there is one."""
        results = [result for line in self.lines for result in line.results.values()]
        results += [search["best"]["result"] for search in self.searches]
        return max(results, key=lambda result: result["infer"] is not None)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, as Hit@5, in the order of the paper's tables."""
        settings = self.any_result()["settings"]
        cutoffs = settings["topk"] if isinstance(settings["topk"], list) else [settings["topk"]]
        return [f"{metric}@{cutoff}" for metric in settings["metrics"] for cutoff in cutoffs]

    @property
    def main_metrics(self) -> list[str]:
        """The first two metrics at their largest cut-off, as Hit@20 and MRR@20, of those that have a value per session."""
        largest = max(int(metric.partition("@")[2]) for metric in self.metrics)
        whole = [metric for metric in self.metrics if metric.endswith(f"@{largest}")]
        return ([metric for metric in whole if metric.lower().partition("@")[0] in PER_SESSION] or whole)[:2]

    def reference(self, line: Line) -> Line | None:
        """What a line is tested against."""
        others = [each for each in self.of(line.group) if each.model == line.model]
        found = [each for name in REFERENCES for each in others if each.variant == name]
        return found[0] if found else others[0]


def read_grids(folders: Sequence[str | Path]) -> list[Block]:
    """The blocks of grids, in the order of the folders.

    Raises:
        UserError: as `report`.
    """
    blocks: dict[tuple[str, str], Block] = {}
    for folder in map(Path, folders):
        found = read_json(folder / "search.json") if (folder / "search.json").is_file() else {}
        if "best" in found:
            block = blocks.setdefault((found["dataset"], found["split"]), Block(found["dataset"], found["split"]))
            block.searches.append(found)
            block.commands = list(dict.fromkeys([*block.commands, found["command"]]))
            block.machines = list(dict.fromkeys([*block.machines, found["machine"]]))
        elif not (folder / "grid.json").is_file():
            raise UserError(
                f"{str(folder)!r} holds nothing to report (no grid.json, no search.json of a finished search); run `compare`, `ablate` "
                f"or `tune` with --out={folder} first"
            )
        if not (folder / "grid.json").is_file():
            continue
        grid = read_json(folder / "grid.json")
        rows = {row["key"]: row for row in read_json_lines(folder / "cells.jsonl")}
        for entry in grid["cells"]:
            block = blocks.setdefault((entry["dataset"], entry["split"]), Block(entry["dataset"], entry["split"]))
            place = (entry["group"], entry["model"], entry["variant"])
            line = next((each for each in block.lines if (each.group, each.model, each.variant) == place), None)
            if line is None:
                line = Line(*place, entry["about"])
                block.lines.append(line)
            row = rows.get(entry["key"])
            if row is None:
                line.reasons[entry["seed"]] = "not run yet"
                continue
            block.commands = list(dict.fromkeys([*block.commands, *grid["commands"]]))
            block.machines = list(dict.fromkeys([*block.machines, row["machine"]]))
            if row["status"] != "ok":
                line.reasons[entry["seed"]] = row["reason"]
                continue
            line.results[entry["seed"]] = row["result"]
            ranks = folder / "ranks" / f"{entry['key']}.npz"
            if ranks.is_file():
                with np.load(ranks, allow_pickle=False) as arrays:
                    line.ranks[entry["seed"]] = {name: arrays[name] for name in arrays.files}
    ready = [block for block in blocks.values() if block.searches or any(line.results for line in block.lines)]
    if not ready:
        raise UserError(f"no cell of {', '.join(map(str, folders))} has a result yet; run the grid first")
    return ready


def by_two(search: Mapping[str, Any]) -> tuple[str, str, list[Any], list[Any], npt.NDArray[np.float64]] | None:
    """Validation of a search over a grid of two settings.

    Returns:
        The settings, their values and the best score in percent for each pair, nan where no trial ended; None for another search.
    """
    keys = list(search["trials"][0]["setting"])
    if len(keys) != 2:
        return None
    rows, columns = (sorted({trial["setting"][key] for trial in search["trials"]}, key=_order) for key in keys)
    if len(rows) * len(columns) > 4 * len(search["trials"]):
        return None  # drawn at random: hardly any pair twice
    scores = np.full((len(rows), len(columns)), np.nan)
    for trial in search["trials"]:
        if trial["score"] is not None:
            place = rows.index(trial["setting"][keys[0]]), columns.index(trial["setting"][keys[1]])
            scores[place] = np.nanmax([scores[place], 100 * trial["score"]])
    return keys[0], keys[1], rows, columns, scores


def _order(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value if isinstance(value, int | float | str) else str(value)


def buckets_of(lines: Sequence[Line]) -> dict[str, npt.NDArray[np.bool_]]:
    """Parts of the test sessions, in the order of the session ids."""
    rows = next(iter(lines[0].ranks.values()))
    order = np.argsort(rows["session"], kind="stable")
    head, length = rows["head"][order], rows["length"][order]
    low, high = np.quantile(length, [1 / 3, 2 / 3]).astype(int)
    buckets = {
        "head targets": head,
        "tail targets": ~head,
        f"up to {low} clicks": length <= low,
        f"{low + 1} to {high} clicks": (length > low) & (length <= high),
        f"over {high} clicks": length > high,
    }
    for line in lines:
        own = next(iter(line.ranks.values()))
        if own["intent"].any() and not own["intent"].all():
            intent = own["intent"][np.argsort(own["session"], kind="stable")]
            buckets |= {"with intents": intent, "without an intent": ~intent}
            break
    return buckets


def common_settings(block: Block) -> dict[str, Any]:
    """Settings that all runs of a block share."""
    all_settings = [result["settings"] for line in block.lines for result in line.results.values()]
    all_settings += [search["best"]["result"]["settings"] for search in block.searches]
    first, *others = all_settings
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
