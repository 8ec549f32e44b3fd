"""What `infer` itself costs at scale, and what its files cost: memory per prefix, prefixes per second, size and loading time.

    python benchmarks/scale.py [--prefixes 20000,200000] [--answers 1] [--ray_workers 0] [--features 5000] [--json FILE]

Part one runs prepare and `infer` with the echo backend (no language model) on synthetic click logs of both sizes, each in a process of
its own; the difference of their peaks, per prefix, is what a prefix costs. `--prefixes 100000,1000000` is the full size (minutes),
`--answers 5` asks for five titles per view, of which the echo backend gives as many as the session has items; `--ray_workers 2` has the
echo backend run by so many workers of Ray, and the memory is then that of the process that hands out the questions.
Part two loads the feature files of the same sessions through RecBole's own dataset, beside a file of dense rows of 768 numbers per
view, as a plain dump of encoder vectors would be.
"""

import argparse
import json
import logging
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ITEMS, LENGTH = 3_000, 11  # items of the catalogue; clicks of each session, ten prefixes


def settings_of(folder: str, **changed: Any) -> dict[str, Any]:
    from recbole_llm4sbr.base.settings import load_settings

    given = {
        "data_path": folder, "atomic_path": f"{folder}/atomic", "session_rule": "user", "session_targets": "all",
        "intent_refresh": "every",
        "llm_backend": "echo", "min_item_count": 1, "show_progress": False, "gpu_id": "",
    }  # fmt: skip
    return load_settings("GRU4Rec", "synthetic", overrides=given | changed)


def write_log(folder: str, prefixes: int) -> None:
    """A click log of sessions of `LENGTH` clicks, and titles."""
    rng = random.Random(1)
    home = Path(folder, "synthetic")
    home.mkdir()
    words = [f"word{number}" for number in range(200)]
    with open(home / "synthetic.item", "w", encoding="utf-8") as handle:
        handle.write("item_id:token\ttitle:token_seq\n")
        handle.writelines(f"{item}\t{' '.join(rng.choices(words, k=4))} {item}\n" for item in range(ITEMS))
    with open(home / "synthetic.inter", "w", encoding="utf-8") as handle:
        handle.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user in range(prefixes // (LENGTH - 1)):
            handle.writelines(f"{user}\t{rng.randrange(ITEMS)}\t{user * 100 + click}\n" for click in range(LENGTH))


def run_infer(prefixes: int, answers: int, workers: int) -> dict[str, Any]:
    """Seconds and peak memory of `infer`, after prepare in a process of its own."""
    from recbole_llm4sbr.intent.infer import infer

    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        write_log(folder, prefixes)
        in_a_process(run_prepare, folder)
        started, cpu = time.perf_counter(), time.process_time()
        ray = {"llm_backend": "ray", "ray_backend": "echo", "ray_workers": workers, "ray_cpus_per_worker": 1} if workers else {}
        counts = infer(settings_of(folder, intent_answers=answers, **ray)).counts
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "prefixes": counts.sessions, "prompts": counts.prompts, "calls": counts.calls, "seconds": round(seconds, 1),
        "prefixes_per_second": round(counts.sessions / seconds), "prefixes_per_cpu_second": round(counts.sessions / cpu),
        "peak_mb": round(peak),
    }  # fmt: skip


def run_prepare(folder: str) -> None:
    from recbole_llm4sbr.data.prepare import prepare

    prepare(settings_of(folder))


def make_features(folder: str, prefixes: int) -> None:
    from recbole_llm4sbr.intent.infer import infer

    logging.disable(logging.INFO)
    write_log(folder, prefixes)
    run_prepare(folder)
    infer(settings_of(folder))
    home = Path(folder, "atomic", "synthetic")
    shutil.copy(home / "echo" / "synthetic.sessemb", home)  # where RecBole looks for it


def load(folder: str, suffix: str) -> dict[str, Any]:
    """Size of a file of one row per session, and seconds and memory of RecBole's own dataset with it."""
    import yaml

    import recbole_llm4sbr.base.recbole  # noqa: F401  (gives numpy the names that RecBole reads)
    from recbole_llm4sbr.base.files import PROPERTIES

    sys.argv = sys.argv[:1]  # RecBole reads it
    from recbole.config import Config
    from recbole.data import create_dataset
    from recbole.model.sequential_recommender import GRU4Rec

    class StockConfig(Config):
        """RecBole's, without its repair of numpy 1 names (see base/recbole.py)."""

        def compatibility_settings(self) -> None: ...

    with open(PROPERTIES / "stock_recbole.yaml", encoding="utf-8") as handle:
        given = yaml.safe_load(handle) | {"data_path": f"{folder}/atomic", "gpu_id": "", "state": "ERROR"}
    if suffix:
        columns = {
            "sessemb": [f"{view}_{part}" for view in ("long", "short") for part in ("items", "sims")],
            "dense": ["long", "short"],
        }
        given |= {"additional_feat_suffix": [suffix], "alias_of_user_id": ["sid"]}
        given["alias_of_item_id"] = ["item_id_list", "long_items", "short_items"] if suffix == "sessemb" else ["item_id_list"]
        given["load_col"] = {**given["load_col"], suffix: ["sid", *columns[suffix]]}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    dataset = create_dataset(StockConfig(model=GRU4Rec, dataset="synthetic", config_dict=given))
    dataset.build()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = Path(folder, "atomic", "synthetic", f"synthetic.{suffix}").stat().st_size if suffix else 0
    return {"mb": round(size / 2**20, 2), "seconds": round(seconds, 2), "memory_mb": round((peak - before) / 1024)}


def write_dense(folder: str) -> None:
    """`.dense`: the same session ids with a vector of 768 numbers for each of two views."""
    home = Path(folder, "atomic", "synthetic")
    with open(home / "synthetic.sessemb", encoding="utf-8") as lines:
        next(lines)
        ids = [line.split("\t", 1)[0] for line in lines]
    rng = np.random.default_rng(0)
    with open(home / "synthetic.dense", "w", encoding="utf-8") as handle:
        handle.write("sid:token\tlong:float_seq\tshort:float_seq\n")
        for name in ids:
            cells = (" ".join(f"{number:.6g}" for number in rng.normal(size=768) / 28) for _ in range(2))
            handle.write("\t".join([name, *cells]) + "\n")


def in_a_process(function: Any, *arguments: Any) -> Any:
    """The function's result, from a process of its own, whose peak of memory is its own too."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefixes", default="20000,200000")
    parser.add_argument("--answers", type=int, default=1, help="titles per view in part one")
    parser.add_argument("--ray_workers", type=int, default=0, help="workers of Ray in part one; 0: no Ray")
    parser.add_argument("--features", type=int, default=5_000, help="prefixes of part two")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()

    small, large = (
        in_a_process(run_infer, int(number), options.answers, options.ray_workers) for number in options.prefixes.split(",")
    )
    for each in (small, large):
        print(
            f"infer, echo backend, {options.answers} answers, {options.ray_workers} workers of Ray: "
            f"{each['prefixes']:>9,} prefixes, {each['calls']:>9,} calls, "
            f"{each['seconds']:7.1f} s, "
            f"{each['prefixes_per_second']:>7,} prefixes/s ({each['prefixes_per_cpu_second']:,} per second of CPU), "
            f"peak {each['peak_mb']:,} MB"
        )
    growth = (large["peak_mb"] - small["peak_mb"]) * 2**20 / (large["prefixes"] - small["prefixes"])
    print(f"memory per prefix: {growth:.0f} bytes")
    files: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        in_a_process(make_features, folder, options.features)
        write_dense(folder)
        for name, suffix in (("session files alone", ""), (".sessemb", "sessemb"), ("dense rows", "dense")):
            files[name] = in_a_process(load, folder, suffix)
            size, seconds, memory = files[name].values()
            print(f"RecBole loads {name:20} {size:8.2f} MB {seconds:7.2f} s {memory:6,} MB of memory")
    ratio = files["dense rows"]["mb"] / files[".sessemb"]["mb"]
    print(f"dense rows are {ratio:.1f} x as large")
    if options.json:
        result = {
            "answers": options.answers,
            "ray_workers": options.ray_workers,
            "small": small,
            "large": large,
            "bytes_per_prefix": round(growth),
            "files": files,
            "dense_ratio": round(ratio, 1),
        }
        with open(options.json, "w", encoding="utf-8") as handle:
            json.dump(result, handle, indent=2)


if __name__ == "__main__":
    main()
