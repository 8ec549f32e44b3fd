"""Seconds to prepare a dataset and to load its files for training, beside the obvious Python loop over clicks, in one run.

    python benchmarks/prepare.py [--dataset ml-100k] [--data_path FOLDER] [--atomic_path FOLDER] [--json FILE]

With --atomic_path the folder's feature files are loaded too, if `infer` has made them (it must have been prepared with defaults).
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any


def sessions_by_loop(path: Path, settings: dict[str, Any]) -> int:
    """Sessions of a click log as a person would write it down: dictionaries and lists; without filter, split and files."""
    users = defaultdict(list)
    with open(path, encoding="utf-8") as lines:
        names = [cell.split(":")[0] for cell in next(lines).rstrip("\n").split("\t")]
        columns = [names.index(settings[f"{column}_column"]) for column in ("user", "item", "time")]
        for line in lines:
            cells = line.rstrip("\n").split("\t")
            user, item, seconds = (cells[column] for column in columns)
            users[user].append((float(seconds), item))
    sessions = []
    for clicks in users.values():
        before = None
        for seconds, item in sorted(clicks, key=lambda click: click[0]):
            window = seconds // settings["session_gap"] if settings["session_rule"] == "bucket" else 0
            if window != before:
                sessions.append([])
                before = window
            sessions[-1].append(item)
    return len(sessions)


def load(settings: dict[str, Any]) -> tuple[float, int]:
    """Seconds to load what a training run loads, and the process's peak memory in MB."""
    from recbole_llm4sbr.data.checks import check_run_files
    from recbole_llm4sbr.model import SessionIntents
    from recbole_llm4sbr.training.run import load_data

    check_run_files(settings)  # says what is missing; RecBole would try to download it
    started = time.perf_counter()
    config, dataset, _ = load_data(settings)
    if settings["llm4sbr"]:
        SessionIntents.from_dataset(config, dataset)
    return round(time.perf_counter() - started, 2), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--atomic_path", help="also load what is prepared here, with its feature files")
    parser.add_argument("--llm_backend", default="transformers", help="the one the feature files were made with")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()

    from recbole_llm4sbr.base.settings import load_settings
    from recbole_llm4sbr.data.prepare import prepare
    from recbole_llm4sbr.data.raw import locate

    result: dict[str, Any] = {"dataset": options.dataset}
    with tempfile.TemporaryDirectory() as folder:
        given = {"data_path": options.data_path, "atomic_path": folder, "llm_backend": options.llm_backend}
        settings = load_settings(dataset=options.dataset, overrides=given)
        started = time.perf_counter()
        result["counts"] = prepare(settings).counts
        result["prepare_s"] = round(time.perf_counter() - started, 2)
        started = time.perf_counter()
        sessions_by_loop(locate(settings) / f"{options.dataset}.inter", settings)
        result["loop_sessions_only_s"] = round(time.perf_counter() - started, 2)
        result["ratio_to_loop"] = round(result["prepare_s"] / result["loop_sessions_only_s"], 2)
        for name, changed in (
            ("load_sessions", {"llm4sbr": False}),
            ("load_with_features", {"atomic_path": options.atomic_path}),
        ):
            if changed.get("atomic_path", True) is not None:
                with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process of its own has a peak of its own
                    result[f"{name}_s"], result[f"{name}_peak_mb"] = pool.apply(load, (settings | changed,))
    for key, value in result.items():
        print(f"{key:24} {value}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as handle:
            json.dump(result, handle, indent=2)


if __name__ == "__main__":
    main()
