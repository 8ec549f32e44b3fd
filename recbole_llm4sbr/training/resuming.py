"""A training run that was killed goes on where it was, to the bit: its state between two epochs is kept in its folder while it trains."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy
import torch

from recbole_llm4sbr.base.files import OWNER, make_folder, owned, write_whole
from recbole_llm4sbr.training.trainer import other_parameters

log = getLogger(__name__)

_PAUSE = 30.0  # seconds between two states at least
_SHARE = 0.05  # of the time may go into writing them


@dataclass(frozen=True)
class Past:
    """What a run did before it was killed.

    Attributes:
        scores: of validation, by epoch.
        seconds: of training.
    """

    scores: dict[int, float]
    seconds: float


class TrainingState:
    """The state of a run between two epochs: parameters, optimizer, random numbers, and what early stopping has seen.

    Args:
        path: its file; there already where a killed run left it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._next = path, time.monotonic() + _PAUSE

    def restore(self, trainer: Any, train_data: Any) -> Past:
        """Put a trainer that has not trained yet where the killed one was; nothing without a file."""
        if not self.path.is_file():
            return Past({}, 0.0)
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        trainer.model.load_state_dict(state["model"])
        trainer.model.load_other_parameter(state["other_parameter"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.start_epoch = state["epoch"] + 1
        trainer.cur_step, trainer.best_valid_score = state["cur_step"], state["best_valid_score"]
        trainer.best_valid_result = state["best_valid_result"]
        trainer.train_loss_dict, trainer.epoch_seconds = state["train_losses"], state["epoch_seconds"]
        train_data.generator.set_state(state["sampler"])
        _set_random_numbers(state["random"], trainer.device)
        log.info("going on with %s, which was interrupted, at epoch %s", self.path.parent, trainer.start_epoch)
        return Past(state["scores"], state["seconds"])

    def keep(self, trainer: Any, train_data: Any, epoch: int, past: Past) -> None:
        """Write the state behind an epoch that was validated, unless the last one was written a moment ago, or training ends here."""
        if time.monotonic() < self._next or trainer.cur_step > trainer.stopping_step:
            return
        started = time.monotonic()
        state = {
            "model": trainer.model.state_dict(),
            "other_parameter": other_parameters(trainer.model),
            "optimizer": trainer.optimizer.state_dict(),
            "epoch": epoch,
            "cur_step": int(trainer.cur_step),
            "best_valid_score": float(trainer.best_valid_score),
            "best_valid_result": {name: float(value) for name, value in (trainer.best_valid_result or {}).items()},
            "train_losses": {each: float(loss) for each, loss in trainer.train_loss_dict.items()},
            "epoch_seconds": list(trainer.epoch_seconds),
            "sampler": train_data.generator.get_state(),
            "random": _random_numbers(trainer.device),
            "scores": dict(past.scores),
            "seconds": past.seconds,
        }
        with write_whole(self.path, "wb") as handle:
            torch.save(state, handle)
        ended = time.monotonic()
        self._next = ended + max(_PAUSE, (ended - started) / _SHARE)


@contextmanager
def run_folder(parent: Path, name: str, key: str) -> Iterator[tuple[Path, TrainingState | None]]:
    """The folder of a run, and where its state is kept: those of a killed run with the same key, else new ones.

    The state is removed at the end, unless that is an error.

    Args:
        parent: folder of runs.
        name: of a new folder.
        key: of all that decides the run; "" for one that cannot go on, which has no state.
    """
    if not key:
        yield make_folder(parent / name), None
        return
    for left in sorted(parent.glob(f"*/{_name(key)}")):
        if lock := owned(left.parent):
            break
    else:
        left = make_folder(parent / name) / _name(key)
        lock = owned(left.parent)
    try:
        yield left.parent, TrainingState(left) if lock else None
        left.unlink(missing_ok=True)
        (left.parent / OWNER).unlink(missing_ok=True)
    finally:
        if lock:
            lock.release()


def has_state(folder: Path) -> bool:
    """Whether the run of a folder was killed and can go on."""
    return any(folder.glob(_name("*")))


def _name(key: str) -> str:
    return f"training-{key}.pth"


def _random_numbers(device: torch.device) -> dict[str, Any]:
    """The states of all generators that training draws from, as plain types."""
    kind, keys, *rest = numpy.random.get_state()
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [str(kind), [int(each) for each in keys], *(float(each) for each in rest)],
        "python": [version, list(numbers), gauss],
    }


def _set_random_numbers(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["device"], device)
    kind, keys, place, has_gauss, gauss = state["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, numpy.uint32), int(place), int(has_gauss), gauss))
    version, numbers, drawn = state["python"]
    random.setstate((version, tuple(numbers), drawn))
