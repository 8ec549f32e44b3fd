"""Copy a grid of `compare` into a form that may be passed on: what `report` reads, and nothing of the dataset.

    python benchmarks/share_grid.py GRID OUT
    recbole-llm4sbr report OUT [further grids] --html=report.html

Ids of sessions, which in some datasets are those of persons, become hashes; paths of checkpoints and tracebacks are left out. The report
says the same of the copy, and grids tested on the same sessions stay comparable.
"""

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from recbole_llm4sbr.base.files import read_json, write_json, write_whole
from recbole_llm4sbr.base.grids import CellResult, read_cell_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    grid = read_json(options.grid / "grid.json")
    cells = read_cell_results(options.grid / "cells.jsonl")
    keys = list(dict.fromkeys(entry["key"] for entry in grid["cells"] if entry["key"] in cells))
    (options.out / "ranks").mkdir(parents=True, exist_ok=True)
    for key in keys:
        ranks = options.grid / "ranks" / f"{key}.npz"
        if ranks.is_file():
            with (
                np.load(ranks, allow_pickle=False) as arrays,
                write_whole(options.out / "ranks" / f"{key}.npz", "wb") as handle,
            ):
                np.savez_compressed(handle, **{**arrays, "session": hashed(arrays["session"])})
    with write_whole(options.out / "cells.jsonl") as handle:
        handle.writelines(json.dumps(shared(cells[key]).to_json()) + "\n" for key in keys)
    write_json(options.out / "grid.json", grid)
    print(f"{options.out}: {len(keys)} cells")


def hashed(ids: np.ndarray) -> np.ndarray:
    """Ids of test rows, `<session>.<row>`, with the session's place in order, which the report's random draws depend on, and its hash.

    An id without a row is the session's.
    """
    parts = [(head if dot else row, dot and dot + row) for head, dot, row in (each.rpartition(".") for each in ids.tolist())]
    _, places = np.unique([session for session, _ in parts], return_inverse=True)
    digits = [hashlib.sha256(session.encode()).hexdigest()[:12] for session, _ in parts]
    return np.array([f"{place:07d}-{name}{row}" for place, name, (_, row) in zip(places, digits, parts)])


def shared(cell: CellResult) -> CellResult:
    """The cell without what is of its machine's folders."""
    result = cell.result
    if result is not None:
        members = [replace(each, checkpoint="") for each in result.members]
        settings = {**result.settings, "checkpoint_dir": "saved"}
        result = replace(result, checkpoint=None, members=members, settings=settings)
    return replace(cell, result=result, traceback="")


if __name__ == "__main__":
    main()
