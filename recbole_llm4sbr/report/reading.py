"""What `compare`, `ablate` and `tune` left in their folders, read for the report: `grid.json`, `cells.jsonl`, `ranks/*.npz`."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import read_json
from recbole_llm4sbr.base.grids import GridEntry, Search, read_cell_results
from recbole_llm4sbr.base.names import short_name
from recbole_llm4sbr.base.schema import schema
from recbole_llm4sbr.report.block import Block, Line


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
        _name_lines(block)
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
        line.keys.add(entry.key)
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


def _name_lines(block: Block) -> None:
    """Give variants short names, each one of its own."""
    same: dict[str, list[str]] = {}  # variants by short name
    for variant in dict.fromkeys(line.variant for line in block.lines):
        same.setdefault(short_name(variant), []).append(variant)
    for line in block.lines:
        short = short_name(line.variant)
        place = same[short].index(line.variant)
        line.name = f"{short} ({place + 1})" if place else short


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
