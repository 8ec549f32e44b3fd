"""How much of a leave-one-out test is of clicks that have the time of the click before, as in data with dates but no hours.

    python benchmarks/same_time.py GRID RAW.inter

GRID is a folder of `compare` with split=leave_one_out and session_rule=user, RAW.inter the file that `prepare` read. Where two clicks
have one time, the order of the file decides which of them is the last, so it is that order which a model is tested on. Prints how often
that is so, how often the item's id is then the larger one, and Recall@10 and NDCG@10 of every cell on both kinds of test clicks.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_llm4sbr.base.grids import read_cell_results
from recbole_llm4sbr.base.metrics import session_metric


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("raw", type=Path)
    options = parser.parse_args()
    clicks = pd.read_csv(options.raw, sep="\t", dtype={"user_id:token": str, "item_id:token": str})
    clicks.columns = [name.split(":")[0] for name in clicks.columns]
    clicks = clicks.sort_values(["user_id", "timestamp"], kind="stable")
    before = clicks.groupby("user_id").shift()
    tied = clicks["timestamp"] == before["timestamp"]
    larger = (clicks["item_id"] > before["item_id"])[tied].mean()
    last = tied.groupby(clicks["user_id"]).last()
    print(f"{tied.mean():.1%} of the clicks and {last.mean():.1%} of the last ones have the time of the click before; "
          f"{larger:.1%} of these have the larger id")  # fmt: skip
    for key, cell in read_cell_results(options.grid / "cells.jsonl").items():
        if cell.result is None:
            continue
        with np.load(options.grid / "ranks" / f"{key}.npz", allow_pickle=False) as arrays:
            rank, users = arrays["rank"], [each.rpartition(".")[0] for each in arrays["session"].tolist()]
        same = last.reindex(users).to_numpy(bool)
        for name, rows in (("all", np.full(len(rank), True)), ("the time of the click before", same), ("another time", ~same)):
            recall, ndcg = (100 * session_metric(rank[rows], metric).mean() for metric in ("Hit@10", "NDCG@10"))
            settings = cell.result.settings
            print(
                f"{settings['model']} {settings['seed']}, {name}: {rows.sum():,} rows, Recall@10 {recall:.2f}, NDCG@10 {ndcg:.2f}"
            )


if __name__ == "__main__":
    main()
