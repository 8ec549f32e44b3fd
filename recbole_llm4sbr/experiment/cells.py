"""The cells of a grid, and how they are run: in this process, in processes side by side, or on a Ray cluster."""

import logging
import multiprocessing
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from recbole_llm4sbr.base.cluster import connect
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.grids import CellResult
from recbole_llm4sbr.base.results import RunResult
from recbole_llm4sbr.experiment.work import own_folder
from recbole_llm4sbr.training.ensemble import Weights, run_ensemble
from recbole_llm4sbr.training.fit import TestRows
from recbole_llm4sbr.training.gpus import gpus
from recbole_llm4sbr.training.run import train


@dataclass(frozen=True)
class Cell:
    """One training run of a grid.

    Attributes:
        group: title of the report's table that it stands in.
        model, variant, dataset, seed: its place there.
        settings: all settings of the run.
        about: what the report says of the variant.
        base: a hash of what all cells of the dataset share; cells of another one do not stand in the same table.
        key: names its result.
        members: of an ensemble, which is not trained: cells of their own. Empty for a model.
        weights: of an ensemble.
        trained: the members' checkpoints and results, when they are there.
    """

    group: str
    dataset: str
    model: str
    variant: str
    seed: int
    about: str
    settings: dict[str, Any]
    base: str = ""
    key: str = ""
    members: tuple["Cell", ...] = ()
    weights: Weights = "equal"
    trained: tuple[tuple[Path, RunResult], ...] = ()

    @property
    def label(self) -> str:
        """The cell in words."""
        return f"{self.model} {self.variant}, {self.dataset}, seed {self.seed}"


Outcome = tuple[Cell, CellResult, TestRows | None]


OnEpoch = Callable[[Cell, int, float], None]  # called with a cell, its epoch and that one's score on validation


def run_cell(
    settings: Mapping[str, Any], on_epoch: Callable[[int, float], None] | None = None
) -> tuple[CellResult, TestRows | None]:
    """Train and test one cell. What goes wrong is the result's reason."""
    return _recorded(lambda on_test: train(settings, on_epoch=on_epoch, on_test=on_test), settings["checkpoint_dir"])


def run_ensemble_cell(cell: Cell, settings: Mapping[str, Any]) -> tuple[CellResult, TestRows | None]:
    """Validate and test an ensemble of members that are trained."""
    if len(cell.trained) < len(cell.members):
        return CellResult("failed", reason="a member has no result; its own reason stands in cells.jsonl"), None
    checkpoints, results = [path for path, _ in cell.trained], [result for _, result in cell.trained]
    here = {key: settings[key] for key in ("atomic_path", "checkpoint_dir", "show_progress", "gpu_id") if key in settings}
    classes = [each.settings["model"] for each in cell.members]
    names = [f"{each.model} {each.variant}, seed {each.seed}" for each in cell.members]
    return _recorded(
        lambda on_test: run_ensemble(checkpoints, cell.weights, results, names, on_test, classes, **here),
        settings["checkpoint_dir"],
    )


def _recorded(run: Callable[[Callable[[TestRows], None]], RunResult], folder: str) -> tuple[CellResult, TestRows | None]:
    """The result of a run and its test rows; what goes wrong is the result's reason.

    A run that failed for want of memory or for a file goes on from its state the next time, as one that was killed does; after another
    error its `folder` is removed, and it starts anew.
    """
    tested: list[TestRows] = []
    try:
        return CellResult("ok", run(tested.append)), tested[0] if tested else None
    except Exception as error:
        if not isinstance(error, OSError | MemoryError | torch.OutOfMemoryError):
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, UserError):
            return CellResult("failed", reason=str(error)), None
        where = traceback.format_exc(limit=-3)
        return CellResult("failed", reason=f"{type(error).__name__}: {error}", traceback=where), None


def _run(
    cell: Cell, settings: Mapping[str, Any], on_epoch: Callable[[int, float], None] | None = None
) -> tuple[CellResult, TestRows | None]:
    return run_ensemble_cell(cell, settings) if cell.members else run_cell(settings, on_epoch)


def run_cells(
    cells: Sequence[Cell],
    workers: int,
    out: Path,
    kept: Mapping[str, Path] | None = None,
    on_epoch: OnEpoch = lambda cell, epoch, score: None,
    done: Collection[str] = (),
) -> Generator[Outcome, None, None]:
    """Run cells, `workers` at a time, each in a fresh process: its peak memory is its own, and when it is killed the rest go on.

    A cell that a killed process left in the middle of its training goes on from its last state.

    Args:
        cells: distinct ones.
        workers: 0 runs them one after the other in this process; where they name a `ray_address`, a cluster runs them instead.
        out: folder of the grid; checkpoints and states go into a folder of this run's own in it (`own_folder`).
        kept: where the checkpoints of some cells go instead, by key.
        on_epoch: called for every epoch of every cell, but for those of a cluster.
        done: keys of cells that have a result; states that killed grids left of them are removed.
    """
    with own_folder(out, {cell.key for cell in cells}, done) as folder:
        settings_of = {cell.key: {**cell.settings, "checkpoint_dir": str(folder / cell.key)} for cell in cells}
        if cells and cells[0].settings["ray_address"]:
            outcomes = _on_ray(cells, settings_of)
        elif workers:
            outcomes = _side_by_side(cells, settings_of, workers, on_epoch)
        else:
            outcomes = ((cell, *_run(cell, settings_of[cell.key], partial(on_epoch, cell))) for cell in cells)
        with closing(outcomes):  # ends the cells' processes before their folder is removed
            for cell, result, rows in outcomes:
                if result.result is not None:
                    checkpoint = (kept or {}).get(cell.key)
                    if checkpoint and result.result.checkpoint:
                        Path(result.result.checkpoint).replace(checkpoint)
                    shutil.rmtree(folder / cell.key, ignore_errors=True)
                    result = replace(result, result=replace(result.result, checkpoint=str(checkpoint) if checkpoint else None))
                yield cell, result, rows


def _on_ray(cells: Sequence[Cell], settings_of: Mapping[str, Mapping[str, Any]]) -> Generator[Outcome, None, None]:
    """Run cells as tasks of a Ray cluster, as many at once as it carries; its nodes see the files under the same paths."""
    connect(cells[0].settings["ray_address"])
    import ray

    resources = ray.cluster_resources()
    needs = {"num_cpus": cells[0].settings["ray_cpus_per_worker"], "num_gpus": 1 if resources.get("GPU") else 0}
    if needs["num_cpus"] > resources.get("CPU", 0):
        raise UserError(
            f"a cell of {needs['num_cpus']} CPUs does not fit Ray's {resources.get('CPU', 0):.0f}; lower --ray_cpus_per_worker"
        )
    remote = ray.remote(max_retries=0, max_calls=1, **needs)(_ray_cell)
    waiting = {}
    try:
        for cell in cells:
            paths = {
                key: str(Path(settings_of[cell.key][key]).resolve()) for key in ("data_path", "atomic_path", "checkpoint_dir")
            }
            there = replace(cell, trained=tuple((path.resolve(), result) for path, result in cell.trained))
            there = replace(there, settings={**cell.settings, **paths})
            waiting[remote.remote(there, {**settings_of[cell.key], **paths}, needs["num_cpus"])] = cell
        while waiting:
            (ready,), _ = ray.wait(list(waiting))
            cell = waiting.pop(ready)
            try:
                result, rows = ray.get(ready)
            except ray.exceptions.RayError as error:
                result = CellResult("failed", reason=f"lost on the cluster: {' '.join(str(error).split())[:300]}")
                rows = None
            yield cell, result, rows
    finally:
        for task in waiting:
            ray.cancel(task, force=True)


def _ray_cell(cell: Cell, settings: Mapping[str, Any], threads: int) -> tuple[CellResult, TestRows | None]:
    torch.set_num_threads(threads)
    logging.disable(logging.INFO)
    return _run(cell, settings)


def _side_by_side(
    cells: Sequence[Cell], settings_of: Mapping[str, Mapping[str, Any]], workers: int, on_epoch: OnEpoch
) -> Generator[Outcome, None, None]:
    # a server with everything imported forks the processes: they start at once
    context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    if sys.platform != "win32":
        context.set_forkserver_preload(["recbole_llm4sbr.experiment.cells"])
    threads = max(1, torch.get_num_threads() // workers)  # as OMP_NUM_THREADS says, where it does
    waiting, slots = list(cells), list(range(workers))
    running: dict[Connection, tuple[Cell, Any, int]] = {}
    try:
        while waiting or running:
            while waiting and slots:
                cell, slot = waiting.pop(0), slots.pop(0)
                ours, theirs = context.Pipe()
                process = context.Process(target=_child, args=(theirs, cell, settings_of[cell.key], threads, slot), daemon=True)
                process.start()
                theirs.close()
                running[ours] = cell, process, slot
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                cell, process, slot = running[ready]
                try:
                    message = ready.recv()
                    if isinstance(message, _Epoch):
                        on_epoch(cell, message.number, message.score)
                        continue
                    result, rows = message
                except (EOFError, OSError):
                    process.join()
                    code = process.exitcode
                    result, rows = CellResult("failed", reason=f"its process ended with {code}" + _KILLED * (code == -9)), None
                del running[ready]
                ready.close()
                process.join()
                slots.append(slot)
                yield cell, result, rows
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()


_PATIENCE = 10  # seconds for a process that was told to end
_KILLED = " (killed; is there enough memory for so many workers?)"


@dataclass(frozen=True)
class _Epoch:
    """What a cell's process says before it has a result."""

    number: int
    score: float


def _child(parent: Connection, cell: Cell, settings: dict[str, Any], threads: int, slot: int) -> None:
    def leave_with_parent() -> None:
        try:
            parent.recv()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if found := gpus(settings):
        settings = {**settings, "gpu_id": str(found[slot % len(found)])}
    logging.disable(logging.INFO)
    parent.send(_run(cell, settings, lambda number, score: parent.send(_Epoch(number, score))))
