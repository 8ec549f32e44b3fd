"""The log of a training run: a file of its own under `log/`, as RecBole names it, and the screen where nobody else shows it.

The file holds all that RecBole says, and our own lines; the screen shows what `base/screen.py` lets through.

RecBole's `init_logger` calls `logging.basicConfig`, which does nothing where the root logger is configured already: the log files of
command-line runs stayed empty. Here handlers are added for the time of a run and taken away after it; no other handler is touched.
"""

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole_llm4sbr.base.files import make_folder
from recbole_llm4sbr.base.screen import Screen, WithoutColours

_LEVELS = {"info": logging.INFO, "debug": logging.DEBUG, "error": logging.ERROR, "warning": logging.WARNING}
_LEVELS["critical"] = logging.CRITICAL


def least_level(state: Any) -> int:
    """The level from which on a run is logged; `state` is RecBole's key, info by default."""
    return _LEVELS.get(str(state or "info").lower(), logging.INFO)


@contextmanager
def run_log(config: Any) -> Iterator[Path]:
    """Log a run into a file of its own, and on the screen where the root logger has no handler.

    Args:
        config: reads `model`, `dataset` and `state`, the least level (RecBole's key; info by default).

    Yields:
        The file; it is made with its first line.
    """
    root = logging.getLogger()
    level = least_level(config["state"])
    folder = make_folder(Path("log") / str(config["model"]))
    # RecBole ends the name with a hash of the settings, which two runs in one second may share.
    unique = f"{time.strftime('%b-%d-%Y_%H-%M-%S')}-{uuid.uuid4().hex[:8]}"
    path = folder / f"{config['model']}-{config['dataset']}-{unique}.log"
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(WithoutColours("%(asctime)-15s %(levelname)s  %(message)s", "%a %d %b %Y %H:%M:%S"))
    added: list[logging.Handler] = [handler]
    if not root.handlers:
        added.append(Screen())
    before = root.level
    try:
        for each in added:
            each.setLevel(level)
            root.addHandler(each)
        root.setLevel(min(before, level))  # a root logger that lets more through keeps doing so
        yield path
    finally:
        root.setLevel(before)
        for each in added:
            root.removeHandler(each)
            each.close()
