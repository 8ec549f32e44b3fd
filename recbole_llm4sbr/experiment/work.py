"""A folder for what a grid needs while it runs, used by no other run."""

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_PREFIX = "work-"
_MARK = "owner.json"  # process and host of the grid that made the folder


@contextmanager
def own_folder(out: Path) -> Iterator[Path]:
    """A new folder in `out`, removed at the end; folders of grids on this host that were killed are removed at the start.

    Folders of grids that still run, here or on another host, and whatever else stands in `out` are left alone.
    """
    for left in out.glob(f"{_PREFIX}*"):
        if _was_killed(left):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=out))
    try:
        mine = {"pid": os.getpid(), "started": psutil.Process().create_time(), "host": socket.gethostname()}
        (folder / _MARK).write_text(json.dumps(mine), encoding="utf-8")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _was_killed(folder: Path) -> bool:
    """Whether a grid on this host made the folder, and its process lives no longer."""
    try:
        owner = json.loads((folder / _MARK).read_text(encoding="utf-8"))
        if owner["host"] != socket.gethostname():
            return False
        return bool(psutil.Process(int(owner["pid"])).create_time() != owner["started"])
    except psutil.NoSuchProcess:
        return True
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return False
