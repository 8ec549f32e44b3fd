"""What of the log reaches the screen: our own lines, and of RecBole its warnings alone, unless all was asked for (`--verbose`).

RecBole logs whatever it does through the root logger. Its lines go whole into the log file of a run (`training/logs.py`).
"""

import functools
import importlib.util
import logging
import os
import re

RECBOLE = "recbole"  # the logger of what we say in RecBole's manner: its config, dataset and model
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_REQUESTS = ("httpx", "httpx2", "httpcore", "openai", "urllib3")


class WithoutColours(logging.Formatter):
    """RecBole colours what it logs; in a file, and beside lines without colours, the codes are noise."""

    def format(self, record: logging.LogRecord) -> str:
        """The line without colour codes."""
        return _COLOUR.sub("", super().format(record))


class Screen(logging.StreamHandler):  # type: ignore[type-arg]
    """Log lines on stderr, without colours.

    Args:
        verbose: whether RecBole's lines are shown too.
    """

    def __init__(self, verbose: bool = False) -> None:
        super().__init__()
        self.verbose = verbose
        self.setFormatter(WithoutColours("%(message)s"))
        if not verbose:
            self.addFilter(lambda record: record.levelno >= logging.WARNING or not _is_of_recbole(record))


def is_verbose() -> bool:
    """Whether the screen of this process shows RecBole's lines; worker processes are told so."""
    return any(isinstance(handler, Screen) and handler.verbose for handler in logging.getLogger().handlers)


def hide_requests() -> None:
    """Log no line for each HTTP request, unless the host has set the level of the HTTP client's logger itself."""
    for name in _REQUESTS:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)


def _is_of_recbole(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] == RECBOLE or (record.name == "root" and record.pathname.startswith(_recboles_files()))


@functools.cache
def _recboles_files() -> tuple[str, ...]:
    """Where RecBole's modules lie."""
    spec = importlib.util.find_spec("recbole")
    return tuple(f"{folder}{os.sep}" for folder in (spec.submodule_search_locations or ())) if spec else ()
