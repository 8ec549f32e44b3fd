"""Prepared session files in memory: rows of item tokens as numbers, and the catalogue's texts."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_llm4sbr.data.atomic import read_table, unquoted


@dataclass(frozen=True)
class SessionRows:
    """Rows of prepared parts, R of them, as numbers: a million prefixes take some 100 MB.

    Attributes:
        tokens: item tokens; what `clicks` and `targets` are places in.
        ids: session id of each row.
        clicks: the prefixes in click order, one row's after the other's, [N].
        starts: where each row's prefix begins in `clicks`, and the end of the last, [R + 1].
        targets: [R].
        lengths: clicks of each row's session before its target; more than the row holds where the oldest were left out, [R].
    """

    tokens: Sequence[str]
    ids: Sequence[str]
    clicks: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]

    def take(self, chosen: Sequence[int]) -> "SessionRows":
        """Some of the rows, in this order."""
        at = np.array(chosen, np.int64)
        sizes = self.starts[at + 1] - self.starts[at]
        clicks, ids = self.clicks[ranges(self.starts[at], sizes)], [self.ids[row] for row in chosen]
        return SessionRows(self.tokens, ids, clicks, np.r_[0, sizes.cumsum()], self.targets[at], self.lengths[at])

    def prefix(self, row: int) -> list[str]:
        """Item tokens of one row's prefix, in click order."""
        return [self.tokens[item] for item in self.clicks[self.starts[row] : self.starts[row + 1]]]

    def places_in(self, tokens: Sequence[str]) -> npt.NDArray[np.int64]:
        """Where each of these tokens stands in others, which hold them all, [len(self.tokens)]."""
        place = {token: position for position, token in enumerate(tokens)}
        return np.array([place[token] for token in self.tokens], np.int64)

    def clicks_in(self, tokens: Sequence[str]) -> npt.NDArray[np.int64]:
        """`clicks` as places in other tokens, which hold all items of these, [N]."""
        if tokens is self.tokens:
            return self.clicks.astype(np.int64)
        return self.places_in(tokens)[self.clicks]


def read_sessions(folder: Path, dataset: str, *parts: str, longest: int | None = None) -> SessionRows:
    """Read session files of a prepared dataset, one after the other.

    Args:
        folder, dataset: where they are.
        parts: their `part_file` names.
        longest: newest clicks of a row to keep; None: all that it holds.
    """
    newest = slice(None if longest is None else -longest, None)
    number: dict[str, int] = {}
    ids: list[str] = []
    clicks, starts, targets = array("i"), array("q", [0]), array("i")
    for part in parts:
        with open(folder / f"{dataset}.{part}.inter", encoding="utf-8") as lines:
            next(lines)
            for line in lines:
                name, prefix, target = line.rstrip("\n").split("\t")
                ids.append(name)
                clicks.extend([number.setdefault(token, len(number)) for token in prefix.split(" ")[newest]])
                starts.append(len(clicks))
                targets.append(number.setdefault(target, len(number)))
    lengths = np.array([int(name.rpartition(".")[2]) for name in ids], np.int64)
    return SessionRows(
        list(number), ids, np.array(clicks, np.int32), np.array(starts, np.int64), np.array(targets, np.int32), lengths
    )


def session_of(row: str) -> str:
    """The session of a row; `prepare` calls the rows of one `name.1`, `name.2`, ...: by the clicks before the target.

    >>> session_of("7_1.3")
    '7_1'
    """
    return row.rpartition(".")[0]


def beginnings(rows: SessionRows) -> SessionRows:
    """The same rows with the clicks of the longest beginning of their session, up to themselves, whose length is a power of two.

    Where a row does not hold its session's oldest clicks, that beginning is another row's.
    """
    lengths = 1 << np.frexp(rows.lengths.astype(float))[1].astype(np.int64) - 1
    held = np.diff(rows.starts)
    whole = rows.lengths == held
    there = {name: row for row, name in enumerate(rows.ids)} if not whole.all() else {}
    shown = rows.take(
        [
            row if whole[row] else there.get(f"{session_of(name)}.{length}", row)
            for row, (name, length) in enumerate(zip(rows.ids, lengths.tolist()))
        ]
    )
    kept = np.where(whole, lengths, np.diff(shown.starts))
    clicks = shown.clicks[ranges(shown.starts[:-1], kept)]
    return replace(rows, clicks=clicks, starts=np.r_[0, kept.cumsum()], lengths=lengths)


def ranges(starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The numbers from each start on, `sizes` of them, one range after the other.

    >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    offsets = np.cumsum(sizes) - sizes
    flat: npt.NDArray[np.int64] = np.repeat(starts - offsets, sizes) + np.arange(np.sum(sizes))
    return flat


def read_items(path: Path) -> pd.DataFrame:
    """A prepared `.item` file as text columns named without their types; empty cells are empty strings."""
    return read_table(path).apply(unquoted)
