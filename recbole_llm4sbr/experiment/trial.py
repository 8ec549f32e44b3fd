"""One trial of a search, as it runs in a worker of Ray: RecBole's own `Trainer.fit`, which never sees the test part."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import psutil
import torch

from recbole_llm4sbr.base.facts import uses_intents, uses_item_texts
from recbole_llm4sbr.experiment.shared_data import SharedData, dataloaders, share
from recbole_llm4sbr.experiment.space import Dimension
from recbole_llm4sbr.intent import NO_MODELS
from recbole_llm4sbr.model import IntentFiles
from recbole_llm4sbr.training.config import SessionConfig
from recbole_llm4sbr.training.environment import peak_memory_mb
from recbole_llm4sbr.training.fit import fit
from recbole_llm4sbr.training.loaders import session_loaders
from recbole_llm4sbr.training.run import load_dataset

_REPORTED = ("best_epoch", "epochs", "seconds_training", "parameters", "best_valid_result", "valid_scores")


def trial(setting: Mapping[str, Any], settings: Mapping[str, Any], shared: SharedData, threads: int) -> None:
    """One trial, in a worker of Ray: train, report the best validation so far after every epoch.

    Args:
        setting: what the search drew.
        settings: of every trial.
        shared: data and intents; in the memory of all workers of a machine.
        threads: of torch.
    """
    from ray import tune

    os.environ[NO_MODELS] = "in a trial of tune"
    torch.set_num_threads(threads)
    logging.disable(logging.WARNING)
    config = SessionConfig({**settings, **setting, "checkpoint_dir": ".", "show_progress": False, "state": "error"})
    train_data, valid_data = dataloaders(config, shared)
    bigger = config["valid_metric_bigger"]
    scores: list[float] = []

    def report(epoch: int, score: float) -> None:
        scores.append(score)
        tune.report({"score": (max if bigger else min)(scores), "valid_score": score, "epoch": epoch})

    _, fitted = fit(config, train_data, valid_data, saved=False, on_epoch=report)
    memory = {"private_mb": psutil.Process().memory_full_info().uss / 2**20, "peak_mb": peak_memory_mb(config["device"])}
    found = {key: getattr(fitted, key) for key in _REPORTED}
    tune.report({"score": fitted.best_valid_score, **found, **memory})


def load_shared(settings: Mapping[str, Any], space: Mapping[str, Dimension]) -> SharedData:
    """Data and feature files of all trials, read once."""
    config, dataset = load_dataset({**settings, "show_progress": False, "state": "error"})
    train, valid, test = dataset.build()
    if not {"model", "llm4sbr", "loss_type"} & set(space):  # all trials have the same rows
        train = session_loaders(config, [train, valid, test])[0].dataset
    if not uses_item_texts(settings):
        return share(train, valid, None)
    values = space["intent_k"].values if "intent_k" in space else (settings["intent_k"],)
    most = settings["intent_k_max"] if "intent_k" in space and space["intent_k"].kind != "choice" else max(values)
    views: list[str] = settings["views"]
    if "views" in space:
        views = list(dict.fromkeys(view for each in space["views"].values for view in each))
    config = SessionConfig(settings)
    if not uses_intents(settings):
        return share(train, valid, IntentFiles.read(config, dataset, [], 0))
    return share(train, valid, IntentFiles.read(config, dataset, views, int(most), with_answers=0 in values))
