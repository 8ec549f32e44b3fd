"""A folder for what a grid needs while it runs, used by no other run."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from recbole_llm4sbr.base.files import OWNER, owned

_PREFIX = "work-"


@contextmanager
def own_folder(out: Path) -> Iterator[Path]:
    """A new folder in `out`, removed at the end; folders that killed grids left are removed at the start.

    Folders of grids that still run, and whatever else stands in `out`, are left alone.
    """
    for left in out.glob(f"{_PREFIX}*"):
        if _was_killed(left):
            shutil.rmtree(left, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f".new-{_PREFIX}", dir=out))
    lock = FileLock(new / OWNER)
    lock.acquire()
    folder = new.rename(out / new.name.removeprefix(".new-"))  # other grids see it when it is locked
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _was_killed(folder: Path) -> bool:
    """Whether a grid made the folder and its process lives no longer, on this host or on another that shares the file system."""
    if not (folder / OWNER).is_file():
        return False
    if lock := owned(folder):
        lock.release()
    return lock is not None
