"""The loop that tunes a model: steps, checks on held-out pairs, early stopping, and going on after a kill."""

import ctypes
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import torch
from tqdm import tqdm

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import append_json_line, make_folder, read_json, write_json, write_whole
from recbole_llm4sbr.data.manifest import setting_differences

log = logging.getLogger(__name__)

HISTORY = "history.jsonl"
PLAN = "plan.json"
_STATE = "state.pt"
_SAVE_EVERY = 120.0  # seconds between two saved states: what a kill costs at most
_GIVE_BACK = 8  # steps between two times that free memory goes back to the system, where there is plenty of it
_SCARCE = 75.0  # percent of the machine's memory in use above which it goes back after every step, a sixth slower
_CHUNK = 64  # batches whose pairs are sorted by length together


@dataclass(frozen=True)
class Step:
    """What a step came to: its mean loss, and the tokens that it read."""

    loss: float
    tokens: int


class Tunable(Protocol):
    """A model that is tuned.

    Attributes:
        lengths: what each pair to tune on costs, in tokens.
        what: the loss, in words.
    """

    lengths: list[int]
    what: str

    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained, always in the same order."""
        ...

    def step(self, pairs: Sequence[int]) -> Step:
        """Add the gradients of a batch's mean loss; pairs are places in `lengths`."""
        ...

    def held_out_loss(self) -> float:
        """The mean loss of the held-out pairs."""
        ...


@dataclass(frozen=True)
class Pace:
    """How long and how fast, as a user asks for it.

    Attributes:
        epochs: times that each pair is seen at most.
        batch: pairs of a step.
        learning_rate: the highest; it rises over the first 5 % of the steps and falls to 0 along a cosine.
        checks: held-out checks per epoch.
        patience: checks without a better held-out loss before the end.
        seed: of the order and of dropout.
    """

    epochs: int
    batch: int
    learning_rate: float
    checks: int
    patience: int
    seed: int


@dataclass(frozen=True)
class Plan(Pace):
    """The pace of a run with so many pairs to tune on."""

    pairs: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; the last one may be smaller."""
        return math.ceil(self.pairs / self.batch)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.epochs * self.steps_per_epoch

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = max(1, round(0.05 * self.steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))

    def checked(self, done: int) -> bool:
        """Whether the held-out loss is looked at behind so many steps: `checks` times an epoch, and at the end."""
        inside = done % self.steps_per_epoch or self.steps_per_epoch
        before = (inside - 1) * self.checks // self.steps_per_epoch
        return inside * self.checks // self.steps_per_epoch > before

    def batches(self, epoch: int, lengths: Sequence[int]) -> list[list[int]]:
        """The pairs of each step of an epoch: a random order, in which pairs of like length stand together.

        Args:
            epoch: from 0.
            lengths: of the pairs, in tokens.
        """
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.pairs)
        length = np.asarray(lengths)
        chunk = _CHUNK * self.batch
        parts = [order[first : first + chunk] for first in range(0, self.pairs, chunk)]
        order = np.concatenate([part[np.argsort(length[part], kind="stable")] for part in parts])
        batches = [order[first : first + self.batch].tolist() for first in range(0, self.pairs, self.batch)]
        last = batches.pop() if len(batches[-1]) < self.batch else None
        mixed = [batches[place] for place in rng.permutation(len(batches))]
        return mixed if last is None else [*mixed, last]


@dataclass
class State:
    """Where a run is.

    Attributes:
        done: steps that are done.
        best: lowest held-out loss so far; before the first step that of the untuned model.
        best_step: after how many steps it was.
        bad: checks since then.
        first: held-out loss of the untuned model.
        seconds: computed so far, killed runs included.
        tokens: read so far.
        ended: whether nothing is left to do.
    """

    done: int = 0
    best: float = math.inf
    best_step: int = 0
    bad: int = 0
    first: float = math.inf
    seconds: float = 0.0
    tokens: int = 0
    ended: bool = False
    weights: list[torch.Tensor] = field(default_factory=list, repr=False)
    optimizer: dict[str, Any] = field(default_factory=dict, repr=False)
    best_weights: list[torch.Tensor] = field(default_factory=list, repr=False)


def tune(model: Tunable, plan: Plan, made_of: Mapping[str, Any], folder: Path) -> State:
    """Tune a model, or go on with a run that was killed; afterwards the model has its best weights.

    A state is saved every two minutes and at every check, so that a killed run loses two minutes at most. Every step draws its random
    numbers from the seed and its own number: a run that was killed ends with the numbers of one that was not.

    Args:
        model: what is tuned.
        plan: how long and how fast.
        made_of: all that decides the result; a state of another run is refused.
        folder: for the state and `history.jsonl`.

    Raises:
        UserError: the folder holds the state of a run with other settings; the loss is no number.
    """
    _claim(folder, {**made_of, "plan": asdict(plan)})
    parameters = model.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=0.0, fused=True)
    state = _resumed(folder, parameters, optimizer)
    if not state.done and math.isinf(state.first):
        state.first = state.best = model.held_out_loss()
        log.info("held-out %s before tuning: %.4f", model.what, state.first)
    started = saved = time.perf_counter()
    spent, batches, epoch = state.seconds, list[list[int]](), -1
    with tqdm(total=plan.steps, initial=state.done, desc="tuning", unit="step", mininterval=1.0, smoothing=0.1) as bar:
        while not state.ended and state.done < plan.steps:
            if epoch != state.done // plan.steps_per_epoch:
                epoch = state.done // plan.steps_per_epoch
                batches = plan.batches(epoch, model.lengths)
            for group in optimizer.param_groups:
                group["lr"] = plan.rate(state.done)
            torch.manual_seed(plan.seed * 1_000_003 + state.done)
            step = model.step(batches[state.done % plan.steps_per_epoch])
            if not math.isfinite(step.loss):
                raise UserError(
                    f"the loss is {step.loss} at step {state.done:,}; lower --learning_rate ({plan.learning_rate:g}), and remove "
                    f"{str(folder)!r} before the next run"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state.done += 1
            state.tokens += step.tokens
            state.seconds = spent + time.perf_counter() - started
            bar.set_postfix_str(f"loss {step.loss:.3f}, {state.tokens / max(state.seconds, 1e-9):,.0f} tokens/s", refresh=False)
            bar.update()
            if state.done % _GIVE_BACK == 0 or psutil.virtual_memory().percent > _SCARCE:
                _give_memory_back()
            if plan.checked(state.done):
                _check(model, state, plan, step.loss, folder)
                bar.write(_said(model, state))
            if plan.checked(state.done) or time.perf_counter() - saved > _SAVE_EVERY:
                _save(folder, state, parameters, optimizer)
                saved = time.perf_counter()
    with torch.no_grad():
        for parameter, best in zip(parameters, state.best_weights, strict=True):
            parameter.copy_(best)
    return state


def _give_memory_back() -> None:
    """Give free memory back to the system: glibc keeps it in pieces too small for the next batch, gigabytes of them in an hour."""
    with suppress(OSError, AttributeError, TypeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)


def _check(model: Tunable, state: State, plan: Plan, loss: float, folder: Path) -> None:
    """Look at the held-out pairs: keep the weights if they are the best, end the run if they have not been for long."""
    held_out = model.held_out_loss()
    if held_out < state.best:
        state.best, state.best_step, state.bad = held_out, state.done, 0
        state.best_weights = [parameter.detach().clone() for parameter in model.parameters()]
    else:
        state.bad += 1
    state.ended = state.bad >= plan.patience or state.done >= plan.steps
    row = {"step": state.done, "of": plan.steps, "loss": round(loss, 4), "held_out": round(held_out, 4)}
    append_json_line(folder / HISTORY, row | {"seconds": round(state.seconds), "tokens": state.tokens})


def _said(model: Tunable, state: State) -> str:
    """A line about the newest check."""
    best = "best so far" if not state.bad else f"best {state.best:.4f} after {state.best_step:,} steps"
    return f"after {state.done:,} steps: held-out {model.what} {best if state.bad else f'{state.best:.4f}, {best}'}"


def _claim(folder: Path, made_of: Mapping[str, Any]) -> None:
    """Take the folder for a run of these settings.

    Raises:
        UserError: a run of others has begun there.
    """
    make_folder(folder)
    path = folder / PLAN
    if not path.is_file():
        write_json(path, made_of)
    elif changed := setting_differences(read_json(path), json.loads(json.dumps(made_of))):
        raise UserError(
            f"{str(folder)!r} holds a run that was interrupted and had other settings: {'; '.join(changed)}; go on with those, or delete "
            f"the folder"
        )


def _resumed(folder: Path, parameters: Sequence[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> State:
    """The state of a run that was interrupted, with its weights in place; else a new one."""
    path = folder / _STATE
    if not path.is_file():
        return State(best_weights=[parameter.detach().clone() for parameter in parameters])
    state = State(**torch.load(path, weights_only=True, map_location=parameters[0].device))
    with torch.no_grad():
        for parameter, weight in zip(parameters, state.weights, strict=True):
            parameter.copy_(weight)
    optimizer.load_state_dict(state.optimizer)
    state.weights, state.optimizer = [], {}
    log.info("going on after %s steps", f"{state.done:,}")
    return state


def _save(folder: Path, state: State, parameters: Sequence[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    values = {each: getattr(state, each) for each in State.__dataclass_fields__}
    values |= {"weights": [parameter.detach() for parameter in parameters], "optimizer": optimizer.state_dict()}
    with write_whole(folder / _STATE, "wb") as handle:
        torch.save(values, handle)
