"""What `compare`, `ablate` and `tune` left in their folders, read for the report: `grid.json`, `cells.jsonl`, `ranks/*.npz`."""

import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import read_json
from recbole_llm4sbr.base.metrics import is_per_session, session_metric
from recbole_llm4sbr.base.names import ENSEMBLE, control_of_ensemble
from recbole_llm4sbr.base.records import GridEntry, RunResult, Search, read_cell_results
from recbole_llm4sbr.base.schema import schema

CONTROLS = ("session_text", "shuffled", "random", "none")
REFERENCES = ("plain", "w/o LLM", "llm4sbr")  # what the variants of a group are tested against: the first of these that it has


@dataclass
class Line:
    """One variant of one model in one group of a grid, over its seeds.

    Attributes:
        group, model, variant, about: its place, and what the variant is.
        results: of the runs, by seed.
        ranks: test rows by seed: session, rank, length, head, intent, and clicks but in files of versions that did not count them.
        reasons: why a seed's run failed.
    """

    group: str
    model: str
    variant: str
    about: str
    results: dict[int, RunResult] = field(default_factory=dict)
    ranks: dict[int, dict[str, npt.NDArray[Any]]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)

    @property
    def sessions(self) -> npt.NDArray[Any]:
        """Ids of the test rows, sorted."""
        return np.sort(next(iter(self.ranks.values()))["session"])

    @property
    def unfinished(self) -> list[int]:
        """Seeds of the runs whose best epoch is the last that they were allowed."""
        return sorted(seed for seed, result in self.results.items() if result.unfinished)

    def scores(self, metric: str) -> list[float]:
        """A metric of the test in percent, by seed."""
        return [100 * float(result.test_result.get(metric.lower(), np.nan)) for result in self.results.values()]

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
    largest = max((int(name.partition("@")[2]) for name in names), default=0)
    whole = [name for name in names if name.endswith(f"@{largest}")]
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

    def any_result(self) -> RunResult:
        """A result, for what all have in common; one that used intents where there is one."""
        results = [result for line in self.lines for result in line.results.values()]
        results += [search.best.result for search in self.searches if search.best is not None]
        return max(results, key=lambda result: result.infer is not None)

    def pairs(self, group: str) -> list[tuple[Line, Line]]:
        """What is tested against what: every variant against the model's reference, LLM4SBR against its controls and with one LLM against
        the first one, and an ensemble against as many plain models."""
        found: dict[frozenset[int], tuple[Line, Line]] = {}  # each pair once, whichever of the two comes first
        for line in self.of(group):
            others = [each for each in self.of(group) if each.model == line.model]
            if line.variant.startswith(ENSEMBLE):
                references = [each for each in others if each.variant == control_of_ensemble(line.variant)]
            else:
                others = [each for each in others if not each.variant.startswith(ENSEMBLE)]
                references = [_reference(others)]
                references += _compared(line, others)
            for reference in references:
                if reference is not line:
                    found.setdefault(frozenset((id(line), id(reference))), (line, reference))
        return list(found.values())


def _compared(line: Line, others: Sequence[Line]) -> list[Line]:
    """What LLM4SBR is tested against beside the reference: its controls, and the same with the intents of the first LLM; else nothing."""
    match = re.fullmatch(r"llm4sbr(\+llm=[^+]+)?", line.variant)
    if match is None:
        return []
    llm = match[1] or ""
    first = [each for each in others if each.variant.startswith("llm4sbr+llm=")][:1] if llm else []
    return [each for each in others if each.variant in CONTROLS or each.variant.removesuffix(llm) in CONTROLS] + first


def _reference(lines: Sequence[Line]) -> Line:
    """What the variants of a model are tested against: the first of `REFERENCES` that is there, as it is or with changed settings."""
    for name in REFERENCES:
        named = [line for line in lines if line.variant.partition("+")[0] == name]
        if named:
            return min(named, key=lambda line: len(line.variant))
    return lines[0]


def read_grids(folders: Sequence[str | Path]) -> list[Block]:
    """The blocks of grids, in the order of the folders.

    Raises:
        UserError: as `report`.
    """
    blocks: dict[tuple[str, str], Block] = {}
    folder_of: dict[tuple[str, str, str], Path] = {}
    for folder in map(Path, folders):
        search = _read_search(folder)
        if search is not None:
            block = blocks.setdefault((search.dataset, search.split), Block(search.dataset, search.split))
            block.searches.append(search)
            _add(block.commands, search.command)
            _add(block.machines, search.machine)
        if (folder / "grid.json").is_file():
            _read_grid(folder, blocks, folder_of)
        elif search is None:
            raise UserError(
                f"{str(folder)!r} holds nothing to report (no grid.json, no search.json of a finished search); run `compare`, `ablate` "
                f"or `tune` with --out={folder} first"
            )
    for block in blocks.values():
        _same_sessions(block)
    ready = [block for block in blocks.values() if block.searches or any(line.results for line in block.lines)]
    if not ready:
        raise UserError(f"no cell of {', '.join(map(str, folders))} has a result yet; run the grid first")
    return ready


def _read_search(folder: Path) -> Search | None:
    """The finished search in a folder, None where there is none."""
    path = folder / "search.json"
    if not path.is_file() or "best" not in (value := read_json(path)) or value["best"] is None:
        return None
    try:
        found = Search.from_json(value)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{str(path)!r} is not the result of a search ({type(error).__name__}: {error})") from None
    schema()["dataset"].check(found.dataset)  # it names a file of the report
    return found


def _read_grid(folder: Path, blocks: dict[tuple[str, str], Block], folder_of: dict[tuple[str, str, str], Path]) -> None:
    """Add the cells of a folder to the blocks.

    Args:
        folder: of the grid.
        blocks: by dataset and split.
        folder_of: where the table of each dataset, split and title comes from; two folders may hold tables of one title.
    """
    grid = read_json(folder / "grid.json")
    cells = read_cell_results(folder / "cells.jsonl")
    try:
        entries, commands = [GridEntry.from_json(each) for each in grid["cells"]], list(map(str, grid["commands"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{str(folder / 'grid.json')!r} is not a grid ({type(error).__name__}: {error})") from None
    for entry in entries:
        schema()["dataset"].check(entry.dataset)  # it names a file of the report
        block = blocks.setdefault((entry.dataset, entry.split), Block(entry.dataset, entry.split))
        group = entry.group
        if folder_of.setdefault((block.dataset, block.split, group), folder) != folder:
            group = f"{group} ({folder})"
        place = (group, entry.model, entry.variant)
        line = next((each for each in block.lines if (each.group, each.model, each.variant) == place), None)
        if line is None:
            line = Line(*place, entry.about)
            block.lines.append(line)
        cell = cells.get(entry.key)
        if cell is None:
            line.reasons[entry.seed] = "not run yet"
            continue
        for command in commands:
            _add(block.commands, command)
        _add(block.machines, cell.machine)
        if cell.result is None:
            line.reasons[entry.seed] = cell.reason
            continue
        line.results[entry.seed] = cell.result
        ranks = folder / "ranks" / f"{entry.key}.npz"
        if ranks.is_file():
            line.ranks[entry.seed] = _read_ranks(ranks)


def _read_ranks(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = ("session", "rank", "length", "head", "intent", *(["clicks"] if "clicks" in arrays else []))
            return {name: arrays[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{str(path)!r} is damaged ({type(error).__name__}); delete it and run the grid again with the same --out"
        ) from None


def _add(texts: list[str], text: str) -> None:
    """Append what is not there yet."""
    if text not in texts:
        texts.append(text)


def _same_sessions(block: Block) -> None:
    """Take out what was tested on other sessions than the first line of its group: it cannot be compared with it."""
    for group in block.groups:
        lines = [line for line in block.of(group) if line.ranks]
        first = lines[0].sessions if lines else np.zeros(0)
        for line in lines:
            for seed in list(line.ranks):
                if not np.array_equal(np.sort(line.ranks[seed]["session"]), first):
                    del line.ranks[seed], line.results[seed]
                    line.reasons[seed] = f"was tested on other sessions than {lines[0].model} {lines[0].variant}"


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
    lines = block.lines if group is None else block.of(group)
    found = [result.settings for line in lines for result in line.results.values()]
    if group is None:
        found += [search.best.result.settings for search in block.searches if search.best is not None]
    first, *others = found
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
