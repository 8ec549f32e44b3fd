"""What a training run says of itself: a line at its head, and a line for each epoch."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from recbole_llm4sbr.base.facts import engine, intents_of, llm_name, reads_intents, tower_said
from recbole_llm4sbr.base.settings import class_name
from recbole_llm4sbr.training.logs import least_level

log = logging.getLogger(__name__)


def describe_model(settings: Any) -> str:
    """The model of a run, whether it is enhanced and by whose intents: `SRGNN + session_text`, `SRGNN, plain`."""
    name = class_name(settings["model"])
    named = f"{name} + {_intents(settings)}" if reads_intents(settings) else f"{name}, plain"
    start = "" if settings["item_init"] == "random" else f", item table started from text ({settings['item_init']})"
    return named + (tower_said(settings) or start)


def _intents(settings: Any) -> str:
    source = settings["intent_source"]
    if source in ("none", "random"):
        return "no intents" if source == "none" else "random vectors"
    llm = "echo (not a language model)" if engine(settings) == "echo" else llm_name(settings)
    whose = llm if intents_of(settings) == "llm" else intents_of(settings)
    return f"{whose}, exchanged between sessions" if source == "shuffled" else whose


def say_head(config: Any, settings: Mapping[str, Any], train_data: Any) -> None:
    """Log what is trained, on what and where, in one line.

    Args:
        config: RecBole's config of the run.
        settings: of the run.
        train_data: RecBole's dataloader of the training part.
    """
    if least_level(config["state"]) > logging.INFO:
        return
    dataset, processes = train_data.dataset, settings["nproc"]
    where = config["device"].type if processes == 1 else f"{processes} processes on {config['device'].type}"
    log.info(
        "%s on %s: %s training rows, %s items, %s",
        describe_model(settings),
        settings["dataset"],
        f"{train_data.targets:,}",
        f"{dataset.item_num - 1:,}",
        where,
    )


class EpochLines:
    """A line for each epoch: its number, the seconds of its training steps, its losses by name, validation where there is one.

    Args:
        config: reads `state`, under which a run may be silent, `valid_metric` and `loss_decimal_place`.
        names: of the model's losses, in the order in which it returns them; further ones are numbered.
    """

    def __init__(self, config: Any, names: Sequence[str]) -> None:
        self._shown = least_level(config["state"]) <= logging.INFO
        self._metric, self._names = config["valid_metric"], names
        self._digits = config["loss_decimal_place"] or 4
        self._trained = ""

    def trained(self, epoch: int, seconds: float, losses: float | Sequence[float], steps: int) -> None:
        """Keep what the steps of an epoch came to.

        Args:
            epoch: its number, from 0 on as in RecBole's log and in `best_epoch`.
            seconds: that its steps took.
            losses: sums over the steps, as RecBole's trainer has them.
            steps: how many; the line has means.
        """
        parts = losses if isinstance(losses, tuple | list) else [losses]
        names = [*self._names, *(f"loss {number}" for number in range(len(self._names) + 1, len(parts) + 1))]
        means = (f"{name} {part / max(steps, 1):.{self._digits}f}" for name, part in zip(names, parts))
        self._trained = f"epoch {epoch}: {seconds:.2f} s, {', '.join(means)}"

    def say(self, score: float | None = None, best: bool = False) -> None:
        """Log the line.

        Args:
            score: of validation; None where the epoch is not validated.
            best: whether it is the best so far.
        """
        valid = f", {self._metric} {score:.4f} on validation" if score is not None else ""
        if self._shown:
            log.info("%s%s%s", self._trained, valid, " (best so far)" if best else "")
