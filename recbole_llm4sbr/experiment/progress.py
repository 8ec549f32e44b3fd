"""What the cells of a grid that train are at: a line that is rewritten on a terminal, else a line of the log every few minutes."""

import logging
import sys
import time
from typing import Any

from tqdm import tqdm

from recbole_llm4sbr.base.wording import duration
from recbole_llm4sbr.experiment.cells import Cell

log = logging.getLogger(__name__)

_BETWEEN = 300.0  # seconds from one line of the log to the next


class GridProgress:
    """The epochs of the cells that train, as they end.

    Args:
        shown: whether progress is wanted at all.
        between: seconds from one line of the log to the next, where stderr is no terminal.
    """

    def __init__(self, shown: bool = True, between: float = _BETWEEN) -> None:
        self._shown, self._between = shown, between
        self._at: dict[str, str] = {}
        self._started: dict[str, tuple[float, int]] = {}  # when each was first told of, and its epoch then
        self._logged = time.monotonic()
        terminal = shown and sys.stderr.isatty()
        self._line: Any = tqdm(bar_format="{desc}", leave=False, dynamic_ncols=True) if terminal else None

    def epoch(self, cell: Cell, number: int, score: float) -> None:
        """An epoch of a cell is trained and validated.

        Args:
            cell: the cell.
            number: of the epoch, from 0 on.
            score: by `valid_metric`, on validation.
        """
        now = time.monotonic()
        since, first = self._started.setdefault(cell.key, (now, number))
        seconds = (now - since) / (number - first) if number > first else 0.0
        rate = f", {duration(seconds) if seconds >= 10 else f'{seconds:.1f} s'} per epoch" if seconds else ""
        metric = cell.settings["valid_metric"]
        self._at[cell.key] = f"{cell.label}: epoch {number}, {metric} {score:.4f} on validation{rate}"
        if self._line is not None:
            self._line.set_description_str("; ".join(self._at.values()))
        elif self._shown and now - self._logged >= self._between:
            self._logged = now
            for text in self._at.values():
                log.info("at %s", text)

    def done(self, cell: Cell) -> None:
        """A cell has a result; a line of the log may follow."""
        self._at.pop(cell.key, None)
        self._logged = time.monotonic()
        if self._line is not None:
            self._line.set_description_str("; ".join(self._at.values()), refresh=False)
            self._line.clear()

    def close(self) -> None:
        """Remove the line."""
        if self._line is not None:
            self._line.close()
