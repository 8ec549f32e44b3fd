"""`compare` and `ablate`: a grid of datasets, models, variants and seeds; every cell trains as `train` does and is kept as it comes.

A grid lives in a folder: `grid.json` says what was asked for, `cells.jsonl` gets a line per finished cell, `ranks/<key>.npz` what became
of every test session. The key of a cell is a hash of all that its result depends on, so that a second run does only what is missing.
"""

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from recbole_llm4sbr._version import __version__
from recbole_llm4sbr.experiment.cells import Cell, run_cells
from recbole_llm4sbr.training.config import check_runnable
from recbole_llm4sbr.data.prepare import prepare
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import PROPERTIES, append_json_line, make_folder, read_json, read_json_lines, write_json, write_whole
from recbole_llm4sbr.intent.infer import check_items, deciding
from recbole_llm4sbr.model import model_class
from recbole_llm4sbr.quick_start import make_features
from recbole_llm4sbr.base.settings import (
    BEFORE_TRAINING,
    intent_files,
    load_settings,
    parse_value,
    read_yaml,
    uses_intents,
    uses_item_texts,
)

log = logging.getLogger(__name__)

# The paper's tables and figures by name: variants of one backbone.
ABLATIONS: dict[str, tuple[str, list[str]]] = {
    "components": ("Parts of LLM4SBR (the paper's Table 4)", ["llm4sbr", "w/o SBR", "w/o LLM", "w/o AU"]),
    "baselines": ("Other ways to use a language model (Figure 5)", ["plain", "LLMInfer", "LLMSeqSim", "LLM2Seq", "llm4sbr"]),
    "views": ("Views (Figure 6)", ["llm4sbr", "w/o Long", "w/o Short", "Normal"]),
    "k": ("Items per intent, k (Figure 7)", [f"llm4sbr+intent_k={k}" for k in (0, 1, 3, 5)]),
    "lambda": ("Weight of alignment and uniformity", [f"llm4sbr+intent_lambda={each}" for each in (0.0, 0.05, 0.1, 0.3, 1.0)]),
    "controls": ("Controls: other vectors for the intents", ["plain", "llm4sbr", "session_text", "shuffled", "random", "none"]),
    "switches": (
        "Switches, for plain and enhanced",
        ["plain", "plain-text-init", "plain-cosine", "llm4sbr", "text-init", "cosine", "residual", "concat"],
    ),
}
# Settings on which no result depends.
_AIMLESS = {
    "data_path", "atomic_path", "checkpoint_dir", "result_file", "rebuild", "dry_run", "show_progress", "llm_refresh", "llm_batch_tokens",
    "llm_device", "llm_concurrency", "llm_timeout", "llm_retries", "llm_prices", "max_failure_rate", "encoder_batch_size",
    "eval_batch_size", "gpu_id", "use_gpu", "state", "ray_address", "ray_workers", "ray_cpus_per_worker",
}  # fmt: skip
# Settings on which the result of a model without intents, and of one without item texts, does not depend.
_OF_INTENTS = {
    "llm", "llm_backend", "llm_url", "llm_max_new_tokens", "llm_extra", "llm_name", "ray_backend", "views", "views_in_one_call", "prompt",
    "item_name", "item_name_length", "control_of", "fusion", "max_sessions", "faiss_index", "intent_refresh", "intent_source",
    "intent_k_max", "intent_k", "intent_weighting", "intent_lambda",
}  # fmt: skip
_OF_TEXTS = {"item_text", "article_last", "missing_item_text", "encoder"}


def compare(
    groups: Mapping[str, Sequence[str]],
    models: Sequence[str],
    datasets: Sequence[str],
    seeds: int | Sequence[int],
    given: Mapping[str, Any],
    out: str | Path,
    workers: int = 1,
    config_files: Sequence[str] = (),
    command: str = "",
) -> list[dict[str, Any]]:
    """Run what is missing of a grid.

    Args:
        groups: names of variants by title.
        models: names of models.
        datasets: names of datasets.
        seeds: how many, from the setting `seed` on, or which.
        given: settings for every cell.
        out: folder of the grid; grids of several commands may share it.
        workers: cells trained at once, each in a process of its own; 0: one after the other in this process, whose peak memory
            then stands for each. With the setting `ray_address` a Ray cluster runs them instead.
        config_files: settings files for every cell.
        command: what was typed, for the report.

    Returns:
        The rows of `cells.jsonl` that belong to the grid.

    Raises:
        UserError: an unknown model, variant, dataset or setting; files that were made otherwise. A cell that cannot run is recorded with
            its reason, and ends nothing.
    """
    cells = list(_cells(groups, models, datasets, seeds, given, config_files))
    _check(cells)
    out = make_folder(out)
    cells = _with_keys(cells)
    if any(cell.settings["dry_run"] for cell in cells):
        return []
    _ask(out / "grid.json", cells, command)
    make_folder(out / "ranks")
    done = {row["key"]: row for row in read_json_lines(out / "cells.jsonl")}
    missing = {cell.key: cell for cell in cells if done.get(cell.key, {}).get("status") != "ok"}
    log.info(
        "%s cells, %s of them distinct, %s to run; results in %s", len(cells), len({c.key for c in cells}), len(missing), out
    )
    started = time.perf_counter()
    for number, (cell, row, ranks) in enumerate(run_cells(list(missing.values()), workers, out / "work"), 1):
        if ranks:
            with write_whole(out / "ranks" / f"{cell.key}.npz", "wb") as handle:
                np.savez_compressed(handle, **ranks)
        done[cell.key] = {"key": cell.key, "machine": machine(), **row}
        append_json_line(out / "cells.jsonl", done[cell.key])
        left = (time.perf_counter() - started) / number * (len(missing) - number)
        log.info("[%s/%s] %s: %s; %s left", number, len(missing), cell.label, _outcome(row), duration(left))
    return [done[key] for key in dict.fromkeys(cell.key for cell in cells)]


def read_variants() -> dict[str, dict[str, Any]]:
    """The shipped variants: name -> `about` and `set`."""
    return read_yaml(PROPERTIES / "variants.yaml")


def machine() -> str:
    """This machine in words: cores, memory, GPU."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores ({platform.machine()}), {psutil.virtual_memory().total / 2**30:.0f} GB, {gpu}"


def _cells(
    groups: Mapping[str, Sequence[str]],
    models: Sequence[str],
    datasets: Sequence[str],
    seeds: int | Sequence[int],
    given: Mapping[str, Any],
    config_files: Sequence[str],
) -> Iterator[Cell]:
    """The cells, the first seed's first, so that a run that is cut short has whole comparisons."""
    variants = read_variants()
    for dataset in datasets:
        base = load_settings(dataset=dataset, config_files=config_files, overrides=given)
        first = int(base.get("seed", 2020))
        control = {"control_of": "session_text"} if base["intent_source"] == "session_text" else {}
        for seed in range(first, first + seeds) if isinstance(seeds, int) else seeds:
            for title, names in groups.items():
                for model in models:
                    for name in names:
                        about, changed = _variant(name, variants, model)
                        quiet = {"model": model, "seed": seed, "show_progress": False, "state": "error"}
                        settings = load_settings(None, dataset, config_files, {**control, **given, **quiet, **changed})
                        shared = {key: value for key, value in base.items() if key not in ("seed", "model")}
                        yield Cell(title, dataset, model, name, seed, about, settings, base=_hash(shared | control, _AIMLESS))


def _variant(name: str, variants: Mapping[str, Any], model: str) -> tuple[str, dict[str, Any]]:
    """What the report says of a variant, and its settings.

    Raises:
        UserError: there is no such variant.
    """
    shipped, *changes = name.split("+")
    if shipped not in variants:
        raise UserError(f"variant {shipped!r} is unknown; choose from {', '.join(variants)}")
    changed = {
        key: value.format(model=model) if isinstance(value, str) else value for key, value in variants[shipped]["set"].items()
    }
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"variant {name!r}: {change!r} is not understood; write it as {shipped}+key=value")
        if key in BEFORE_TRAINING:
            raise UserError(
                f"variant {name!r}: {key!r} is decided before training, for all cells; run the grid once for each value, with --{key} "
                f"and an --atomic_path and --out of its own"
            )
        changed[key] = parse_value(value, key)
    return ", ".join([variants[shipped]["about"], *changes]), changed


def _check(cells: Sequence[Cell]) -> None:
    """Refuse, before anything is made, what no cell could mend."""
    for cell in cells:
        if cell.settings["model"] == cell.model or ":" not in cell.settings["model"]:
            model_class(cell.settings["model"])
        if cell.settings["nproc"] > 1:
            raise UserError("nproc is for one training run; cells train side by side with --workers")
    one_call = {
        tuple(cell.settings["views"]) for cell in cells if cell.settings["views_in_one_call"] and uses_intents(cell.settings)
    }
    if len(one_call) > 1:
        raise UserError(
            "views_in_one_call=true asks for all views together, so that variants with other views cannot share its answers"
        )


def _with_keys(cells: list[Cell]) -> list[Cell]:
    """Prepare every dataset, make the feature files that any cell needs, and name the cells."""
    files: dict[str, Any] = {}
    for cell in cells:
        if cell.dataset not in files:
            wanting = [each.settings for each in cells if each.dataset == cell.dataset]
            # prepare checks the text columns when its settings need them
            files[cell.dataset] = prepare(next(filter(uses_item_texts, wanting), cell.settings))["files"]
            for settings in _sources(wanting):
                make_features(settings)
    return [
        replace(cell, key=_key(cell.settings, files[cell.dataset]), base=_hash([cell.base, files[cell.dataset]]))
        for cell in cells
    ]


def _sources(wanting: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Settings to make feature files with: one for each source of intents, with all views that any cell reads."""
    found: dict[str, dict[str, Any]] = {}
    for settings in wanting:
        try:
            check_runnable(settings)
        except UserError:
            continue  # will be recorded as a cell that cannot run
        if not uses_item_texts(settings):
            continue
        source = intent_files(settings) if uses_intents(settings) else "items"
        first = found.setdefault(source, {**settings, "views": []})
        if uses_intents(settings):
            first["views"] = list(dict.fromkeys([*first["views"], *settings["views"]]))
            first["intent_k"] = max(first["intent_k"], settings["intent_k"])
    yield from found.values()


def _key(settings: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Of all that a result depends on: settings, session files, item vectors, the prompts' wording, this package's version."""
    left_out = _AIMLESS | (set() if settings["llm4sbr"] or uses_intents(settings) else _OF_INTENTS)
    left_out |= set() if uses_item_texts(settings) else _OF_TEXTS
    texts = check_items(settings)["files"] if uses_item_texts(settings) and not settings["dry_run"] else {}
    asked = deciding(settings) if uses_intents(settings) else {}
    return _hash([{key: value for key, value in settings.items() if key not in left_out}, files, texts, asked, __version__])


def _hash(value: Any, left_out: Iterable[str] = ()) -> str:
    """Sixteen hexadecimal digits of a value."""
    if isinstance(value, dict):
        value = {key: each for key, each in value.items() if key not in left_out}
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _ask(path: Path, cells: Sequence[Cell], command: str) -> None:
    """Add the cells to what the folder's grid holds. Earlier ones with other settings or files do not stay in the same table."""
    grid = read_json(path) if path.is_file() else {"commands": [], "cells": []}
    bases = {(cell.group, cell.dataset, cell.settings["split"]): cell.base for cell in cells}
    kept = [
        entry
        for entry in grid["cells"]
        if bases.get((entry["group"], entry["dataset"], entry["split"]), entry.get("base")) == entry.get("base")
    ]
    if len(kept) < len(grid["cells"]):
        log.warning(
            "%s earlier cells of this title were run with other settings and leave its table; give the grids different --title or "
            "--out to keep both",
            len(grid["cells"]) - len(kept),
        )
    places = {_place(entry): entry for entry in kept}
    for cell in cells:
        entry = {
            "group": cell.group, "dataset": cell.dataset, "split": cell.settings["split"], "model": cell.model, "variant": cell.variant,
            "seed": cell.seed, "about": cell.about, "key": cell.key, "base": cell.base,
        }  # fmt: skip
        places[_place(entry)] = entry
    commands = grid["commands"] + ([command] if command and command not in grid["commands"] else [])
    write_json(path, {"commands": commands, "cells": list(places.values())})


def _place(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry[name] for name in ("group", "dataset", "split", "model", "variant", "seed"))


def _outcome(row: Mapping[str, Any]) -> str:
    if row["status"] != "ok":
        return f"failed ({row['reason']})"
    result = row["result"]
    metric = result["valid_metric"]
    return (
        f"{metric} {100 * result['test_result'].get(metric.lower(), float('nan')):.2f} on test, best epoch {result['best_epoch']}, "
        f"{duration(result['seconds_training'])}"
    )


def duration(seconds: float) -> str:
    """Seconds in words."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
