"""How training grows: seconds per thousand rows and peak memory of SR-GNN on more rows, and on more items.

    python benchmarks/growth.py [--rows 10000,100000,1000000] [--items 3000,10000,100000] [--json FILE]

Synthetic click logs, every prefix a row (up to ten clicks), batch size 100, one epoch without intents, each in a process of its own.
The sizes of `--rows` have the first catalogue of `--items`; the sizes of `--items` have the first number of `--rows`. A step costs
a + b x items: b is the scores, their softmax and Adam's way over the item table, so that from a / b items on they are more than half.
"""

import argparse
import json
import logging
import multiprocessing
import random
import tempfile
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from scale import in_a_process

LENGTH = 11  # clicks of each user, ten prefixes
BATCH = 100


def write_log(folder: str, rows: int, items: int) -> None:
    """A click log of which prepare makes about `rows` training rows (eight of ten), and every item clicked at least once."""
    rng = random.Random(1)
    home = Path(folder, "synthetic")
    home.mkdir()
    users = max(rows * 10 // 8 // (LENGTH - 1), 2 * items // LENGTH)  # the first of them click every item once
    stream = chain(rng.sample(range(items), items), iter(lambda: rng.randrange(items), None))
    with open(home / "synthetic.inter", "w", encoding="utf-8") as handle:
        handle.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user in range(users):
            clicks = list(islice(stream, LENGTH))
            handle.writelines(f"{user}\t{item}\t{user * 100 + place}\n" for place, item in enumerate(clicks))
    (home / "synthetic.item").write_text(
        "item_id:token\ttitle:token_seq\n" + "".join(f"{item}\tword {item}\n" for item in range(items))
    )


def train_on(rows: int, items: int, threads: int) -> dict[str, Any]:
    """One epoch, in this process."""
    import torch

    from recbole_llm4sbr.base.settings import load_settings
    from recbole_llm4sbr.data.prepare import prepare
    from recbole_llm4sbr.training.run import train

    logging.disable(logging.INFO)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        write_log(folder, rows, items)
        given = {
            "data_path": folder, "atomic_path": f"{folder}/atomic", "checkpoint_dir": f"{folder}/saved", "session_rule": "user",
            "session_targets": "all", "min_item_count": 1, "llm4sbr": False, "epochs": 1, "train_batch_size": BATCH,
            "show_progress": False, "gpu_id": "",
        }  # fmt: skip
        settings = load_settings("SRGNN", "synthetic", overrides=given)
        counts = prepare(settings).counts
        result = train(settings, saved=False)
    trained = counts["prefixes"]["train"]
    return {
        "rows": trained,
        "items": counts["catalogue"],
        "seconds_per_thousand_rows": round(1000 * result.seconds_per_epoch[0] / trained, 3),
        "peak_mb": round(result.peak_memory_mb),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--items", default="3000,10000,100000")
    parser.add_argument("--threads", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    rows, items = ([int(each) for each in given.split(",")] for given in (options.rows, options.items))

    def measure(row: int, item: int) -> dict[str, Any]:
        found: dict[str, Any] = in_a_process(train_on, row, item, options.threads)
        print(
            f"{found['rows']:>9,} rows {found['items']:>8,} items {found['seconds_per_thousand_rows']:8.3f} s per thousand rows "
            f"{found['peak_mb']:>6,} MB",
            flush=True,
        )
        return found

    by_rows = [measure(each, items[0]) for each in rows]
    by_items = [by_rows[0], *(measure(rows[0], each) for each in items[1:])]
    few, many = by_rows[0], by_rows[-1]
    if many is not few:
        slower = many["seconds_per_thousand_rows"] / few["seconds_per_thousand_rows"]
        bytes_per_row = (many["peak_mb"] - few["peak_mb"]) * 2**20 / (many["rows"] - few["rows"])
        print(
            f"{many['rows'] / few['rows']:.0f} x the rows: {slower:.2f} x the seconds per row, {bytes_per_row:.0f} bytes per row"
        )
    steps = [each["seconds_per_thousand_rows"] * BATCH for each in by_items]  # milliseconds per step
    per_item, fixed = np.polyfit([each["items"] for each in by_items], steps, 1)
    print(
        f"a step takes {fixed:.1f} ms + {1000 * per_item:.2f} ms per thousand items: from {fixed / per_item:,.0f} items on, the "
        f"catalogue is more than half of it"
    )
    if options.json:
        result = {
            "options": vars(options),
            "by_rows": by_rows,
            "by_items": by_items,
            "ms_fixed": fixed,
            "ms_per_item": per_item,
        }
        Path(options.json).write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
