"""Seconds per epoch and peak memory of every backbone, plain and enhanced, and the ratio to RecBole's own model, in one run.

    python benchmarks/backbones.py [--dataset ml-100k] [--data_path FOLDER] [--models SRGNN,TAGNN,...] [--epochs 2]
        [--train_batch_size 100] [--json FILE] [--markdown FILE]

Each cell is trained by RecBole's Trainer in a process of its own, on the same prepared files, batch size, threads and number type; the
fastest epoch counts. Intents are those of `session_text`, which need no LLM: what a step costs does not depend on who made them. The
metrics are those of so few epochs: they show that a model trains, not how good it is.
"""

import argparse
import json
import logging
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

SIX = "SRGNN,TAGNN,GCEGNN,DHCN,GRU4Rec,SASRec"
RECBOLES = {"SRGNN": "recbole.model.sequential_recommender.srgnn:SRGNN"}  # where ours has a peer in RecBole


def train_one(model: str, dataset: str, given: dict[str, Any]) -> dict[str, Any]:
    """The result of a training run, all in this process."""
    import torch

    from recbole_llm4sbr.base.settings import load_settings
    from recbole_llm4sbr.training.run import train

    logging.disable(logging.INFO)
    torch.set_num_threads(given["threads"])
    settings = load_settings(model, dataset, overrides={key: given[key] for key in given if key != "threads"})
    result = train(settings, saved=False)
    return {
        "seconds": min(result.seconds_per_epoch),
        "peak_mb": result.peak_memory_mb,
        "parameters": result.parameters,
        "test": result.test_result,
    }


def make_files(dataset: str, given: dict[str, Any]) -> dict[str, Any]:
    from recbole_llm4sbr.base.settings import load_settings
    from recbole_llm4sbr.data.prepare import prepare
    from recbole_llm4sbr.intent.infer import infer

    settings = load_settings("SRGNN", dataset, overrides={key: given[key] for key in given if key != "threads"})
    counts: dict[str, Any] = prepare(settings).counts
    infer(settings)
    return counts


def in_a_process(function: Any, *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def table(cells: list[dict[str, Any]]) -> list[str]:
    """The cells as a Markdown table."""
    of = {(cell["model"], cell["kind"]): cell for cell in cells}
    lines = [
        "| model | kind | s per epoch | to plain | to RecBole's | peak MB | to plain | test Hit@20 | MRR@20 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        plain, peer = of.get((cell["model"], "plain"), cell), of.get((cell["model"], "RecBole's"))
        ratios = (
            f"{cell['seconds'] / plain['seconds']:.2f}" if cell["kind"] == "enhanced" else "",
            f"{cell['seconds'] / peer['seconds']:.2f}" if peer and cell is not peer else "",
            f"{cell['peak_mb'] / plain['peak_mb']:.2f}" if cell["kind"] == "enhanced" else "",
        )
        test = cell["test"]
        lines.append(
            f"| {cell['model']} | {cell['kind']} | {cell['seconds']:.2f} | {ratios[0]} | {ratios[1]} | {cell['peak_mb']:.0f} | {ratios[2]} "
            f"| {100 * test['hit@20']:.2f} | {100 * test['mrr@20']:.2f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--models", default=SIX)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train_batch_size", type=int, default=100)
    parser.add_argument("--threads", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--no_peer", action="store_true", help="leave RecBole's own SRGNN out, which is slow")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--markdown", help="also write the table to this file")
    options = parser.parse_args()

    cells = []
    with tempfile.TemporaryDirectory() as folder:
        given = {
            "data_path": options.data_path, "atomic_path": f"{folder}/atomic", "checkpoint_dir": f"{folder}/saved",
            "intent_source": "session_text", "epochs": options.epochs, "train_batch_size": options.train_batch_size,
            "show_progress": False, "threads": options.threads,
        }  # fmt: skip
        counts = in_a_process(make_files, options.dataset, given)
        for model in options.models.split(","):
            kinds = [("plain", model, {"llm4sbr": False}), ("enhanced", model, {})]
            if model in RECBOLES and not options.no_peer:
                kinds.append(("RecBole's", RECBOLES[model], {"llm4sbr": False}))
            for kind, name, changed in kinds:
                cells.append({"model": model, "kind": kind, **in_a_process(train_one, name, options.dataset, given | changed)})
                print(f"{model:8} {kind:10} {cells[-1]['seconds']:8.2f} s per epoch {cells[-1]['peak_mb']:8.0f} MB", flush=True)
    rows = counts["rows"]
    head = (
        f"{options.dataset}: {rows['train']:,} / {rows['valid']:,} / {rows['test']:,} rows, {counts['catalogue']:,} items ranked; batch "
        f"size {options.train_batch_size}, {options.epochs} epochs (the fastest counts), {options.threads} threads"
    )
    lines = [head, "", *table(cells)]
    print("\n" + "\n".join(lines))
    if options.markdown:
        Path(options.markdown).parent.mkdir(parents=True, exist_ok=True)
        Path(options.markdown).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as handle:
            json.dump({"options": vars(options), "counts": counts, "cells": cells}, handle, indent=2)


if __name__ == "__main__":
    main()
