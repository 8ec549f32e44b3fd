"""Seconds per epoch and peak memory of every backbone, plain and enhanced, and the ratio to RecBole's own model, in one run.

    python benchmarks/backbones.py [--dataset ml-100k] [--data_path FOLDER] [--models SRGNN,TAGNN,...] [--epochs 2]
        [--train_batch_size 100] [--enable_amp] [--json FILE] [--markdown FILE]

Each cell is trained by RecBole's Trainer in a process of its own, on the same prepared files, batch size, threads and number type; the
fastest epoch counts. Intents are those of `session_text`, which need no LLM: what a step costs does not depend on who made them. The
metrics are those of so few epochs: they show that a model trains, not how good it is.

RecBole's own model is trained twice, with its optimizer as it is: as RecBole ships, where importing its sequential models switches
autograd's anomaly detection on, which is what its users have; and with that switch off, which is what the code is worth.
"""

import argparse
import json
import logging
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

MODELS = "SRGNN,TAGNN,GCEGNN,DHCN,GRU4Rec,SASRec,NARM,STAMP"
RECBOLES = {"SRGNN", "GRU4Rec", "SASRec", "NARM", "STAMP"}  # where ours has a peer in RecBole
SHIPPED, OFF = "RecBole as shipped", "RecBole, switch off"


def train_one(model: str, kind: str, dataset: str, given: dict[str, Any]) -> dict[str, Any]:
    """The result of a training run, all in this process."""
    import torch

    from recbole_llm4sbr.base.settings import load_settings
    from recbole_llm4sbr.training.run import train
    from recbole_llm4sbr.training.trainer import _SessionTrainer

    logging.disable(logging.INFO)
    torch.set_num_threads(given["threads"])
    if kind in (SHIPPED, OFF):
        model, given = f"recbole.model.sequential_recommender:{model}", given | {"llm4sbr": False}
        del _SessionTrainer._build_optimizer
        torch.autograd.set_detect_anomaly(kind == SHIPPED)
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
        "| model | kind | s per epoch | to plain | RecBole as shipped, times plain | with the switch off | to plain SRGNN "
        "| peak MB | to plain | test Hit@20 | MRR@20 |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for cell in cells:
        plain, first = of[cell["model"], "plain"], of.get(("SRGNN", "plain"))
        seconds, is_plain = cell["seconds"], cell["kind"] == "plain"
        peers = [of.get((cell["model"], kind)) if is_plain else None for kind in (SHIPPED, OFF)]
        columns = [
            cell["model"], cell["kind"], f"{seconds:.2f}",
            f"{seconds / plain['seconds']:.2f}" if cell["kind"] == "enhanced" else "",
            *(f"{peer['seconds'] / seconds:.2f}" if peer else "" for peer in peers),
            f"{seconds / first['seconds']:.2f}" if first and is_plain else "",
            f"{cell['peak_mb']:.0f}", f"{cell['peak_mb'] / plain['peak_mb']:.2f}" if cell["kind"] == "enhanced" else "",
            f"{100 * cell['test']['hit@20']:.2f}", f"{100 * cell['test']['mrr@20']:.2f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(columns)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train_batch_size", type=int, default=100)
    parser.add_argument("--threads", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--no_peer", action="store_true", help="leave RecBole's own models out, which are slow")
    parser.add_argument("--enable_amp", action="store_true", help="bfloat16 products where autocast has them (RecBole's key)")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--markdown", help="also write the table to this file")
    options = parser.parse_args()

    cells = []
    with tempfile.TemporaryDirectory() as folder:
        given = {
            "data_path": options.data_path, "atomic_path": f"{folder}/atomic", "checkpoint_dir": f"{folder}/saved",
            "intent_source": "session_text", "epochs": options.epochs, "train_batch_size": options.train_batch_size,
            "show_progress": False, "threads": options.threads, "enable_amp": options.enable_amp,
        }  # fmt: skip
        counts = in_a_process(make_files, options.dataset, given)
        for model in options.models.split(","):
            for kind in ("plain", "enhanced", *((SHIPPED, OFF) if model in RECBOLES and not options.no_peer else ())):
                changed = {"llm4sbr": kind == "enhanced"}
                cells.append(
                    {"model": model, "kind": kind, **in_a_process(train_one, model, kind, options.dataset, given | changed)}
                )
                print(f"{model:8} {kind:20} {cells[-1]['seconds']:8.2f} s per epoch {cells[-1]['peak_mb']:8.0f} MB", flush=True)
    rows = counts["rows"] | {"train": counts["prefixes"]["train"]}
    head = (
        f"{options.dataset}: {rows['train']:,} / {rows['valid']:,} / {rows['test']:,} rows, {counts['catalogue']:,} items ranked; batch "
        f"size {options.train_batch_size}, {options.epochs} epochs (the fastest counts), {options.threads} threads"
        + (", bfloat16 autocast" if options.enable_amp else "")
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
