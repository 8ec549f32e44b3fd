"""The whole line as functions: prepare -> infer -> train -> test, and loading a trained model again."""

import gc
import importlib.metadata
import logging
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy
import torch
from torch.multiprocessing.spawn import spawn

from recbole_llm4sbr import compat
from recbole_llm4sbr._version import __version__

compat.apply()

from recbole.data.utils import data_preparation  # noqa: E402  (numpy must be mended first)
from recbole.utils import init_logger, init_seed  # noqa: E402

from recbole_llm4sbr.config import SessionConfig, check_runnable  # noqa: E402
from recbole_llm4sbr.data.atomic import check_prepared, prepare  # noqa: E402
from recbole_llm4sbr.dataset import SessionDataset  # noqa: E402
from recbole_llm4sbr.errors import UserError  # noqa: E402
from recbole_llm4sbr.files import make_folder  # noqa: E402
from recbole_llm4sbr.intent.infer import check_inferred, check_items, encode_items, infer  # noqa: E402
from recbole_llm4sbr.model import SessionIntents, build_model  # noqa: E402
from recbole_llm4sbr.model.graphs import training_sessions  # noqa: E402
from recbole_llm4sbr.settings import load_settings, uses_intents, uses_item_texts  # noqa: E402
from recbole_llm4sbr.trainer import plain, read_checkpoint, session_trainer  # noqa: E402

HEAD = 0.2  # share of the catalogue, by clicks in the training part, that counts as its head
_LIBRARIES = ("recbole", "torch", "transformers", "numpy", "pandas", "faiss-cpu")


@dataclass(frozen=True)
class Loaded:
    """A trained model with what it was trained on: RecBole's config, dataset and dataloaders."""

    config: SessionConfig
    model: torch.nn.Module
    dataset: SessionDataset
    train_data: Any
    valid_data: Any
    test_data: Any


def run_recbole_llm4sbr(
    model: str | None = None,
    dataset: str | None = None,
    config_file_list: Iterable[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
) -> dict[str, Any]:
    """Walk the whole line; every step whose result is already there, made with the same settings, is skipped.

    Args:
        model: a native backbone, a sequential model of RecBole, or `package.module:Class`.
        dataset: name of a RecBole atomic dataset.
        config_file_list: YAML files of settings.
        config_dict: settings that win over the files.
        saved: whether checkpoints are written.

    Returns:
        RecBole's `best_valid_score`, `valid_score_bigger`, `best_valid_result`, `test_result`, and what `train` adds.

    Raises:
        UserError: a mistake in the input, before long work starts.
    """
    settings = load_settings(model, dataset, config_file_list or (), config_dict)
    check_runnable(settings)
    prepare(settings)
    return train(settings, make_features(settings), saved)


def make_features(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Write the feature files that a run needs, unless they are there; the counts of `infer` where intents are needed."""
    if uses_intents(settings):
        return infer(settings)
    if uses_item_texts(settings):
        encode_items(settings)
    return None


def load_data(settings: Mapping[str, Any]) -> tuple[SessionConfig, SessionDataset, tuple[Any, Any, Any]]:
    """RecBole's config, dataset and train, valid and test dataloaders over the prepared files."""
    config = SessionConfig(settings)
    init_seed(config["seed"], config["reproducibility"])
    dataset = SessionDataset(config)
    return config, dataset, data_preparation(config, dataset)


def train(
    settings: Mapping[str, Any],
    stage1: Mapping[str, Any] | None = None,
    saved: bool = True,
    on_epoch: Callable[[int, float], None] | None = None,
    on_test: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train with RecBole's Trainer, select the epoch on validation, test once.

    Args:
        settings: what `load_settings` returned.
        stage1: counts of the `infer` step before, for the report.
        saved: whether checkpoints are written; without them the last epoch is tested instead of the best.
        on_epoch: called with the epoch and its validation score.
        on_test: called with the test rows (`test_rows`), from the one test that there is.

    Returns:
        RecBole's four results, and settings, versions, counts, seconds per epoch, best epoch, memory, checkpoint.
    """
    check_runnable(settings)
    manifest = check_prepared(settings)
    if uses_intents(settings):
        inferred = check_inferred(settings)
        stage1 = stage1 or inferred["counts"] | {"calls": 0, "reused": inferred["counts"]["distinct_prompts"], "shipped": 0}
    elif uses_item_texts(settings):
        check_items(settings)
    model_name = settings["model"].rpartition(":")[2]
    run_name = f"{model_name}-{settings['dataset']}-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}"
    folder = make_folder(Path(settings["checkpoint_dir"]) / run_name)
    here = {**settings, "checkpoint_dir": str(folder)}
    result = _train_here(here, saved, on_epoch, on_test) if settings["nproc"] == 1 else _train_on_many(here, saved)
    return result | {
        "prepare": manifest["counts"],
        "infer": dict(stage1) if stage1 else None,
        "settings": plain(dict(settings)),
        "versions": versions(),
    }


def _train_here(
    settings: Mapping[str, Any],
    saved: bool,
    on_epoch: Callable[[int, float], None] | None = None,
    on_test: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train and test in this process."""
    config, dataset, (train_data, valid_data, test_data) = load_data(settings)
    _log_to_file(config)
    getLogger().info(dataset)
    trainer, result = fit(config, train_data, valid_data, saved, on_epoch)
    if not config["single_spec"]:
        torch.distributed.barrier()  # the first process writes the checkpoint that all of them read next
    test = trainer.evaluate(test_data, load_best_model=saved, show_progress=_shows(config))
    if on_test and (found := trainer.ranks()):
        sessions, ranks = found
        on_test(test_rows(sessions, ranks, config, trainer.model, train_data.dataset, test_data.dataset))
    return result | {
        "test_result": {key: float(value) for key, value in test.items()},
        "peak_memory_mb": peak_memory_mb(config["device"]),
        "checkpoint": str(trainer.saved_model_file) if saved else None,
    }


def fit(
    config: SessionConfig, train_data: Any, valid_data: Any, saved: bool, on_epoch: Callable[[int, float], None] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Build the model and train it with RecBole's Trainer; the test part is not seen.

    Args:
        config: of the run.
        train_data, valid_data: RecBole's dataloaders.
        saved: whether checkpoints are written.
        on_epoch: called with the epoch and its validation score.

    Returns:
        The trainer, and what training found: validation, seconds, losses and the number of parameters.
    """
    logger = getLogger()
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    model = build_model(config, train_data.dataset).to(config["device"])
    logger.info(model)
    trainer = session_trainer(config, model)
    scores: dict[int, float] = {}

    def remember(epoch: int, score: float) -> None:
        scores[epoch] = float(score)
        if on_epoch:
            on_epoch(epoch, float(score))

    started = time.perf_counter()
    best_score, best_valid = trainer.fit(
        train_data, valid_data, saved=saved, show_progress=_shows(config), callback_fn=remember
    )
    seconds = time.perf_counter() - started
    bigger = config["valid_metric_bigger"]
    return trainer, {
        "best_valid_score": float(best_score),
        "valid_score_bigger": bigger,
        "best_valid_result": {key: float(value) for key, value in (best_valid or {}).items()},
        "valid_metric": config["valid_metric"],
        # of equal scores the last, which is the one that RecBole keeps
        "best_epoch": (max if bigger else min)(reversed(scores), key=lambda epoch: scores[epoch]) if scores else None,
        "epochs": len(trainer.epoch_seconds),
        "valid_scores": list(scores.values()),
        "train_losses": [float(loss) for loss in trainer.train_loss_dict.values()],
        "seconds_training": round(seconds, 3),
        "seconds_per_epoch": [round(each, 4) for each in trainer.epoch_seconds],
        "parameters": sum(each.numel() for each in model.parameters() if each.requires_grad),
    }


def _shows(config: SessionConfig) -> bool:
    """Whether progress bars are wanted, and someone looks."""
    return bool(config["show_progress"]) and sys.stderr.isatty()


def test_rows(
    session: torch.Tensor, rank: torch.Tensor, config: SessionConfig, model: torch.nn.Module, trained: Any, tested: Any
) -> dict[str, Any]:
    """What the comparison of models needs of every test row, joined by session id; arrays of [R].

    Args:
        session: RecBole's session id of each row.
        rank: of its target, 0 beyond the largest `topk`.
        config: RecBole's config.
        model: the tested model.
        trained, tested: RecBole's datasets of the training and the test part.

    Returns:
        `session` (its token), `rank`, `length` (clicks before the target), `head` (the target is among the 20 % of items that the
        training part clicks most) and `intent` (the model reads intents and has all of this session's).
    """
    feat = tested.inter_feat
    place = {int(number): row for row, number in enumerate(feat[tested.uid_field])}
    order = torch.tensor([place[int(number)] for number in session])
    clicks = numpy.bincount(numpy.concatenate(training_sessions(config, trained)), minlength=tested.item_num)
    head = numpy.zeros(tested.item_num, bool)
    head[numpy.argsort(-clicks[1:], kind="stable")[: round(HEAD * (tested.item_num - 1))] + 1] = True
    intents = next((module for module in model.modules() if isinstance(module, SessionIntents)), None)
    known = intents.known(session.to(intents.nearest.device)).cpu() if intents else torch.zeros(len(session))
    return {
        "session": numpy.asarray(tested.field2id_token[tested.uid_field][session.numpy()], dtype=str),
        "rank": rank.numpy().astype(numpy.int32),
        "length": feat[tested.item_list_length_field][order].numpy().astype(numpy.int32),
        "head": head[feat[tested.iid_field][order].numpy()],
        "intent": known.numpy().astype(bool),
    }


def _train_on_many(settings: Mapping[str, Any], saved: bool) -> dict[str, Any]:
    """Train with `nproc` processes, one per GPU (gloo on CPUs), as RecBole does: each takes its share of every epoch."""
    processes = settings["nproc"]
    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        raise UserError(f"nproc={processes} needs as many GPUs; {torch.cuda.device_count()} are there")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    spawn(_one_of_many, (dict(settings), saved, address, queue), nprocs=processes)  # type: ignore[no-untyped-call]
    result: dict[str, Any] = queue.get()
    return result


def _one_of_many(rank: int, settings: dict[str, Any], saved: bool, address: str, queue: Any) -> None:
    cuda = torch.cuda.is_available()
    torch.distributed.init_process_group("nccl" if cuda else "gloo", address, rank=rank, world_size=settings["nproc"])
    quiet = {} if rank == 0 else {"state": "error", "show_progress": False}
    many = {"local_rank": rank, "world_size": settings["nproc"], "offset": 0, **quiet}
    result = _train_here(settings | many, saved)
    if rank == 0:
        queue.put(result)
    gc.collect()  # the wrapped model holds threads of the group, in cycles of references
    torch.distributed.barrier()  # a process that leaves early takes the others' connections away
    torch.distributed.destroy_process_group()


def load_model(checkpoint: str | Path, **changed: Any) -> Loaded:
    """Load a checkpoint with its data, ready to score; it gives the scores it gave when it was saved.

    Args:
        checkpoint: the file that `train` named.
        changed: settings that differ now, for instance `atomic_path` when the files were moved.

    Raises:
        UserError: not a checkpoint, or the prepared or feature files have changed since.
    """
    state = read_checkpoint(checkpoint)
    settings = state["config"]["given"] | changed
    check_prepared(settings)
    if uses_intents(settings):
        check_inferred(settings)
    elif uses_item_texts(settings):
        check_items(settings)
    config, dataset, (train_data, valid_data, test_data) = load_data(settings)
    model = build_model(config, train_data.dataset).to(config["device"])
    model.load_state_dict(state["state_dict"])
    model.load_other_parameter(state.get("other_parameter"))  # type: ignore[operator]
    return Loaded(config, model.eval(), dataset, train_data, valid_data, test_data)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this process so far in MB: of the GPU where one trains, else resident memory."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return round(float(psutil.Process().memory_info().peak_wset) / 2**20, 1)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that results depend on."""
    found = {"recbole_llm4sbr": __version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _log_to_file(config: SessionConfig) -> None:
    """RecBole's log file and screen log, once per process; handlers of an earlier run are closed."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler) or getattr(handler, "of_this_package", False):
            root.removeHandler(handler)
            handler.close()
    make_folder(Path("log") / config["model"])  # several processes start at once, and RecBole does not expect that
    init_logger(config)
