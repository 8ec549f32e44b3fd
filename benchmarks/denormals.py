"""What numbers below a float's normal range cost in training: seconds per epoch with them, and with them flushed to zero as shipped.

    python benchmarks/denormals.py [--model GCEGNN] [--dataset ml-100k] [--data_path FOLDER] [--epochs 52]

The plain model under the recipe `strong`, whose weight decay makes such numbers, trained twice from one seed in processes of their own,
one after the other. Prints the median seconds of the first ten and of the last ten epochs and those of the last one, the best validation
score, and the ratios at the end.
"""

import argparse
import multiprocessing as mp
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def train(flushed: bool, options: argparse.Namespace, folder: Path) -> tuple[list[float], list[float]]:
    """Seconds and validation score of every epoch."""
    import torch

    from recbole_llm4sbr.base.settings import load_settings
    from recbole_llm4sbr.data.prepare import prepare
    from recbole_llm4sbr.intent.infer import infer
    from recbole_llm4sbr.training.run import train

    torch.set_flush_denormal(flushed)  # before torch starts threads, which inherit it
    given: dict[str, Any] = {"atomic_path": str(folder / "data"), "checkpoint_dir": str(folder), "show_progress": False}
    given |= {"epochs": options.epochs, "stopping_step": options.epochs, "llm4sbr": False, "data_path": options.data_path}
    given |= {"intent_source": "session_text"}
    settings = load_settings(options.model, options.dataset, ["strong"], given)
    prepare(settings)
    infer(settings)
    ends, scores = [time.perf_counter()], []

    def look(epoch: int, score: float) -> None:
        ends.append(time.perf_counter())
        scores.append(score)

    train(settings, on_epoch=look)
    return [after - before for before, after in zip(ends, ends[1:])], scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="GCEGNN")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--epochs", type=int, default=52)
    options = parser.parse_args()
    last = {}
    with tempfile.TemporaryDirectory() as folder:
        for flushed in (True, False):
            with ProcessPoolExecutor(1, mp.get_context("spawn")) as process:
                seconds, scores = process.submit(train, flushed, options, Path(folder)).result()
            last[flushed] = statistics.median(seconds[-10:]), seconds[-1]
            name = "flushed to zero" if flushed else "kept"
            print(
                f"{name:16} first ten epochs {statistics.median(seconds[1:11]):6.2f} s, last ten {last[flushed][0]:6.2f} s, "
                f"the last {last[flushed][1]:6.2f} s; best score {max(scores):.4f}"
            )
    ratios = [kept / flushed for kept, flushed in zip(last[False], last[True])]
    print(f"kept / flushed: last ten epochs {ratios[0]:.1f} x, the last {ratios[1]:.1f} x")


if __name__ == "__main__":
    main()
