"""A training run on prepared files: train, select the epoch on validation, test once; in one process or in several."""

import gc
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.recbole import init_seed
from recbole_llm4sbr.base.records import IntentCounts, PreparedCounts
from recbole_llm4sbr.base.results import RunResult, Tested
from recbole_llm4sbr.base.screen import RECBOLE, Screen, is_verbose
from recbole_llm4sbr.base.settings import class_name
from recbole_llm4sbr.data.checks import RunFiles, check_run_files, run_checksums, settled
from recbole_llm4sbr.data.folders import PREPARED, dataset_folder
from recbole_llm4sbr.data.manifest import Manifest
from recbole_llm4sbr.data.prepare import warn_of_misses
from recbole_llm4sbr.training.config import SessionConfig, check_runnable
from recbole_llm4sbr.training.dataset import SessionDataset
from recbole_llm4sbr.training.environment import peak_memory_mb, versions
from recbole_llm4sbr.training.epochs import say_head
from recbole_llm4sbr.training.fit import TestRows, fit, look_at_test, shows_progress
from recbole_llm4sbr.training.gpus import gpus
from recbole_llm4sbr.training.keys import result_key, short_hash
from recbole_llm4sbr.training.loaders import session_loaders
from recbole_llm4sbr.training.logs import run_log
from recbole_llm4sbr.training.resuming import TrainingState, run_folder
from recbole_llm4sbr.training.trainer import plain

OnEpoch = Callable[[int, float], None]
OnTest = Callable[[TestRows], None]


def load_data(settings: Mapping[str, Any]) -> tuple[SessionConfig, SessionDataset, tuple[Any, Any, Any]]:
    """RecBole's config, dataset and train, valid and test dataloaders over the prepared files."""
    config, dataset = load_dataset(settings)
    return config, dataset, session_loaders(config, dataset.build())


def load_dataset(settings: Mapping[str, Any]) -> tuple[SessionConfig, SessionDataset]:
    """RecBole's config and dataset over the prepared files.

    The config's `trained_on` (the checksums of the files, and the items in the order of their numbers) goes into checkpoints.
    """
    prepared = Manifest.read(dataset_folder(settings) / PREPARED)
    config = SessionConfig(settled(settings, prepared) if prepared else settings)
    init_seed(config["seed"], config["reproducibility"])
    dataset = SessionDataset(config)
    items = dataset.field2id_token[dataset.iid_field].tolist()
    config.final_config_dict["trained_on"] = {"files": run_checksums(settings), "items": items}
    return config, dataset


def train(
    settings: Mapping[str, Any],
    files: RunFiles | None = None,
    counts: IntentCounts | None = None,
    saved: bool = True,
    on_epoch: OnEpoch | None = None,
    on_test: OnTest | None = None,
) -> RunResult:
    """Train with RecBole's Trainer, select the epoch on validation, test once.

    Args:
        settings: what `load_settings` returned.
        files: the run's files, when they are checked already.
        counts: of the `infer` step before, for the report.
        saved: whether checkpoints are written; without them the last epoch is tested instead of the best.
        on_epoch: called with the epoch and its validation score.
        on_test: called with the test rows (`test_rows`), from the one test that there is.

    Raises:
        UserError: a model that cannot run so, or files that are missing, were made otherwise or have changed.
    """
    check_runnable(settings)
    files = files or check_run_files(settings)
    settings = settled(settings, files.prepared)
    warn_of_misses(settings, PreparedCounts.from_json(files.prepared.counts))
    if files.intents is not None and counts is None:
        counts = IntentCounts.from_json(files.intents.counts)
        counts = replace(IntentCounts.from_json(counts.of_files()), reused=counts.distinct_prompts)
    run_name = (
        f"{class_name(settings['model'])}-{settings['dataset']}-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}"
    )
    with run_folder(Path(settings["checkpoint_dir"]), run_name, _key(settings, files) if saved else "") as (folder, state):
        here = {**settings, "checkpoint_dir": str(folder)}
        alone = settings["nproc"] == 1
        tested = _train_here(here, saved, on_epoch, on_test, state) if alone else _train_on_many(here, saved)
    counted = PreparedCounts.from_json(files.prepared.counts)
    return RunResult(
        **vars(tested),
        prepare=replace(counted, rows=counted.of_targets(settings["train_targets"], settings["eval_targets"])),
        infer=counts if files.intents is not None else None,
        settings=plain(dict(settings)),
        versions=versions(),
    )


def _key(settings: Mapping[str, Any], files: RunFiles) -> str:
    """Of all that the bits of a run depend on, so that it may go on with what a killed one left; "" for one that never goes on.

    That is one of several processes, and one of a model class of the user's own, whose code may have changed meanwhile.
    """
    if settings["nproc"] > 1 or ":" in settings["model"]:
        return ""
    return short_hash([result_key(settings, files), torch.__version__, bool(gpus(settings))])


def _train_here(
    settings: Mapping[str, Any],
    saved: bool,
    on_epoch: OnEpoch | None = None,
    on_test: OnTest | None = None,
    state: TrainingState | None = None,
) -> Tested:
    """Train and test in this process."""
    named = {key: settings.get(key) for key in ("dataset", "state")}
    with run_log({"model": class_name(settings["model"]), **named}):
        config, dataset, (train_data, valid_data, test_data) = load_data(settings)
        for each in (config, dataset):
            getLogger(RECBOLE).info(each)
        say_head(config, settings, train_data)
        trainer, fitted = fit(config, train_data, valid_data, saved, on_epoch, state)
        if not config["single_spec"]:
            torch.distributed.barrier()  # the first process writes the checkpoint that all of them read next
        test = trainer.evaluate(test_data, load_best_model=saved, show_progress=shows_progress(config))
    return Tested(
        **vars(fitted),
        test_result={key: float(value) for key, value in test.items()},
        peak_memory_mb=peak_memory_mb(config["device"]),
        checkpoint=str(trainer.saved_model_file) if saved else None,
        by_clicks=look_at_test(trainer, config, train_data.dataset, test_data.dataset, on_test),
    )


def _train_on_many(settings: Mapping[str, Any], saved: bool) -> Tested:
    """Train with `nproc` processes, one per GPU (gloo on CPUs), as RecBole does: each takes its share of every epoch."""
    processes, found = settings["nproc"], gpus(settings)
    if found and len(found) < processes:
        raise UserError(f"nproc={processes} needs as many GPUs; there are {len(found)}, or gpu_id names no more")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    spawn(_one_of_many, (dict(settings), saved, address, queue, is_verbose()), nprocs=processes)  # type: ignore[no-untyped-call]
    result: Tested = queue.get()
    return result


def _one_of_many(rank: int, settings: dict[str, Any], saved: bool, address: str, queue: Any, verbose: bool) -> None:
    if verbose and rank == 0:
        getLogger().addHandler(Screen(verbose=True))
    found = gpus(settings)
    if found:
        torch.cuda.set_device(found[rank])  # for what the processes say to each other
    torch.distributed.init_process_group("nccl" if found else "gloo", address, rank=rank, world_size=settings["nproc"])
    quiet = {} if rank == 0 else {"state": "error", "show_progress": False}
    many = {"local_rank": rank, "world_size": settings["nproc"], "offset": 0, **quiet}
    result = _train_here(settings | many, saved)
    if rank == 0:
        queue.put(result)
    gc.collect()  # the wrapped model holds threads of the group, in cycles of references
    torch.distributed.barrier()  # a process that leaves early takes the others' connections away
    torch.distributed.destroy_process_group()
