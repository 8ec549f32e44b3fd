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

_PREFIX = "work-"


@contextmanager
def own_folder(out: Path, keys: Collection[str] = ()) -> Iterator[Path]:
    """A new folder in `out`, removed at the end but for the states of runs that did not come to theirs.

    Of folders that killed grids left, the states of this grid's cells move into the new one, those of other cells stay, and the rest
    is removed. Folders of grids that still run, and whatever else stands in `out`, are left alone.

    Args:
        out: folder of the grid.
        keys: of the grid's cells, which train in `<folder>/<key>/<run>`.
    """
    new = Path(tempfile.mkdtemp(prefix=f".new-{_PREFIX}", dir=out))
    lock = FileLock(new / OWNER)
    lock.acquire()
    folder = new.rename(out / new.name.removeprefix(".new-"))  # other grids see it when it is locked
    try:
        for left in sorted(out.glob(f"{_PREFIX}*")):
            if left != folder:
                _take_over(left, folder, keys)
        if there := sum(1 for _ in folder.glob("*/")):
            log.info("cells that go on where they were interrupted: %s", there)
        yield folder
    finally:
        _remove_all_but_states(folder)
        lock.release()


def _take_over(left: Path, folder: Path, keys: Collection[str]) -> None:
    """Move the cells of a killed grid into `folder`; nothing, where no grid made `left` or its process lives, here or on another host."""
    if not (left / OWNER).is_file() or not (lock := owned(left)):
        return
    try:
        _remove_all_but_states(left)
        for cell in [each for each in left.glob("*/") if each.name in keys]:
            if not (folder / cell.name).exists():
                cell.rename(folder / cell.name)
            shutil.rmtree(cell, ignore_errors=True)
        _remove_all_but_states(left)
    finally:
        lock.release()


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
