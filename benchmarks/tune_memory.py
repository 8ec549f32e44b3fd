"""Memory of parallel trials of `tune`: data and intents shared through Ray's object store, against every trial loading its own.

    python benchmarks/tune_memory.py [--trials 1,2,4] [--sessions 400000] [--items 5000]

A dataset of random sessions and intents, so large that its memory shows, is shared as `tune` shares it; N trials at once then each build
the model over it and train a step. Printed is what a process holds for itself alone (MB, unique set size), beyond an empty one with
everything imported; the same with a copy of the data in every process; and the ratio of all N together, the shared arrays counted once.
"""

import argparse
import json
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def make_dataset(folder: Path, sessions: int, items: int, length: int) -> dict[str, Any]:
    """Session and feature files of random sessions, written as prepare and infer write them; the settings to read them."""
    from recbole_llm4sbr.base.settings import load_settings
    from recbole_llm4sbr.data.features import vector_lines

    rng = np.random.default_rng(0)
    home = folder / "random"
    home.mkdir(parents=True)
    clicks = rng.integers(0, items, (sessions, length))
    tokens = [f"m{number}" for number in range(items)]
    bounds = {
        "train": (0, sessions * 8 // 10),
        "valid": (sessions * 8 // 10, sessions * 9 // 10),
        "test": (sessions * 9 // 10, sessions),
    }
    with open(home / "random.sessemb", "w") as features:
        features.write("sid:token\tlong_items:token_seq\tlong_sims:float_seq\tshort_items:token_seq\tshort_sims:float_seq\n")
        for part, (start, end) in bounds.items():
            with open(home / f"random.{part}.inter", "w") as handle:
                handle.write("session_id:token\titem_id_list:token_seq\titem_id:token\n")
                for row in range(start, end):
                    names = [tokens[item] for item in clicks[row]]
                    handle.write(f"s{row}\t{' '.join(names[:-1])}\t{names[-1]}\n")
                    cell = " ".join(names[:10]) + "\t" + " ".join(["0.5"] * 10)
                    features.write(f"s{row}\t{cell}\t{cell}\n")
    with open(home / "random.itememb", "w") as handle:
        handle.writelines(vector_lines("iid:token\titem_emb:float_seq", tokens, rng.random((items, 384), np.float32)))
    return load_settings(
        "SRGNN",
        "random",
        overrides={"atomic_path": str(folder), "show_progress": False, "state": "error", "gpu_id": ""} | {"repeatable": True},
    )


def measure(shared: Any, settings: dict[str, Any], how: str) -> float:
    """In a worker: what the process holds for itself alone, in MB.

    Args:
        shared: the data.
        settings: of a trial.
        how: `empty` (everything imported, nothing built), `shared` (a step trained over the shared arrays), `copied` (over a copy).
    """
    import psutil
    import torch

    from recbole_llm4sbr.experiment.shared_data import dataloaders
    from recbole_llm4sbr.model import build_model
    from recbole_llm4sbr.training.config import SessionConfig

    torch.set_num_threads(1)
    if how != "empty":
        data = pickle.loads(pickle.dumps(shared)) if how == "copied" else shared
        train_data, _ = dataloaders(SessionConfig(settings), data)
        model = build_model(train_data.dataset.config, train_data.dataset)
        sum(model.calculate_loss(next(iter(train_data)))).backward()
    return float(psutil.Process().memory_full_info().uss / 2**20)


def main() -> None:
    import ray

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="1,2,4")
    parser.add_argument("--sessions", type=int, default=400_000)
    parser.add_argument("--items", type=int, default=5_000)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--json")
    options = parser.parse_args()

    from recbole_llm4sbr.base.cluster import connect
    from recbole_llm4sbr.experiment.shared_data import share
    from recbole_llm4sbr.model import IntentFiles
    from recbole_llm4sbr.training.config import SessionConfig
    from recbole_llm4sbr.training.run import load_data

    with tempfile.TemporaryDirectory() as folder:
        settings = make_dataset(Path(folder), options.sessions, options.items, options.length)
        _, dataset, (train_data, valid_data, _) = load_data(settings)
        files = IntentFiles.read(SessionConfig(settings), dataset, ["long", "short"], 10)
        shared = share(train_data, valid_data, files)
        print(f"{options.sessions:,} sessions, {options.items:,} items: {shared.megabytes:.0f} MB of arrays")
        connect(None, num_cpus=max(map(int, options.trials.split(","))), object_store_memory=int(4e9))
        stored = ray.put(shared)
        work = ray.remote(max_calls=1)(measure)
        rows = []
        print(
            f"{'trials':>7} {'empty process':>14} {'shared: more than that':>23} {'copied: more than that':>23}"
            f" {'copied to shared, all':>22}"
        )
        for count in map(int, options.trials.split(",")):
            mean = {
                how: float(np.mean(ray.get([work.remote(stored, settings, how) for _ in range(count)])))
                for how in ("empty", "shared", "copied")
            }
            more = {how: mean[how] - mean["empty"] for how in ("shared", "copied")}
            ratio = count * more["copied"] / (count * more["shared"] + shared.megabytes)
            rows.append({"trials": count, **mean})
            print(f"{count:7} {mean['empty']:14.0f} {more['shared']:23.0f} {more['copied']:23.0f} {ratio:22.2f}", flush=True)
        ray.shutdown()
    if options.json:
        with open(options.json, "w", encoding="utf-8") as handle:
            json.dump(
                {"options": vars(options), "cpus": os.cpu_count(), "megabytes": shared.megabytes, "rows": rows},
                handle,
                indent=2,
            )


if __name__ == "__main__":
    main()
