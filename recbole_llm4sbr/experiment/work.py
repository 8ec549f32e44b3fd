"""A folder for what a grid needs while it runs, used by no other run; where a killed grid's cells were, the next one's go on."""

import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path

from filelock import FileLock

from recbole_llm4sbr.base.files import OWNER, owned
from recbole_llm4sbr.training.resuming import has_state

log = getLogger(__name__)

_PREFIX, _MARK = "work-", ".grid"  # of its name; a file in it, since some versions of filelock remove theirs


@contextmanager
def own_folder(out: Path, keys: Collection[str] = (), done: Collection[str] = ()) -> Iterator[Path]:
    """A new folder in `out`, removed at the end but for the states of runs that did not come to theirs.

    Of folders that killed grids left, the states of this grid's cells move into the new one, those of other cells without a result
    stay, and the rest is removed. Folders of grids that still run, and whatever else stands in `out`, are left alone.

    Args:
        out: folder of the grid.
        keys: of the grid's cells, which train in `<folder>/<key>/<run>`.
        done: of cells that have a result.
    """
    new = Path(tempfile.mkdtemp(prefix=f".new-{_PREFIX}", dir=out))
    (new / _MARK).touch()
    lock = FileLock(new / OWNER)
    lock.acquire()
    folder = new.rename(out / new.name.removeprefix(".new-"))  # other grids see it when it is locked
    try:
        for left in sorted(out.glob(f"{_PREFIX}*/"), key=_last_state, reverse=True):
            if left != folder:
                _take_over(left, folder, keys, done)
        if there := sum(1 for _ in folder.glob("*/")):
            log.info("interrupted cells with a state to go on from: %s", there)
        yield folder
    finally:
        _remove_all_but_states(folder)
        lock.release()


def _take_over(left: Path, folder: Path, keys: Collection[str], done: Collection[str]) -> None:
    """Move the cells of a killed grid into `folder`; nothing, where no grid made `left` or its process lives, here or on another host."""
    if not any((left / name).is_file() for name in (_MARK, OWNER)) or not (lock := owned(left)):
        return
    try:
        _remove_all_but_states(left)
        for cell in left.glob("*/"):
            if cell.name in keys and not (folder / cell.name).exists():
                cell.rename(folder / cell.name)
            elif cell.name in keys or cell.name in done:
                shutil.rmtree(cell, ignore_errors=True)
        _remove_all_but_states(left)
        if left.is_dir():
            log.info("%s keeps the states of interrupted cells that are not among these; they may be deleted", left)
    finally:
        lock.release()


def _last_state(folder: Path) -> float:
    """When the last state in a folder was written."""
    try:
        return max((path.stat().st_mtime for path in folder.glob("*/*/*.pth")), default=0.0)
    except OSError:  # a grid that runs has just replaced a file
        return 0.0


def _remove_all_but_states(folder: Path) -> None:
    """Remove the runs that cannot go on, and the folder where there is no other."""
    runs = [run for run in folder.glob("*/*/") if has_state(run)]
    if not runs:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for cell in folder.glob("*/"):
        for path in cell.iterdir():
            if path not in runs:
                shutil.rmtree(path, ignore_errors=True)
        if not any(cell.iterdir()):
            cell.rmdir()
