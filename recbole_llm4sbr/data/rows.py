"""Prepared session files in memory: rows of item tokens as numbers, and the catalogue's texts."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
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
    """

    tokens: Sequence[str]
    ids: Sequence[str]
    clicks: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int32]

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


def read_sessions(folder: Path, dataset: str, *parts: str) -> SessionRows:
    """Read parts (`train`, `valid`, `test`) of a prepared dataset, one after the other."""
    number: dict[str, int] = {}
    ids: list[str] = []
    clicks, starts, targets = array("i"), array("q", [0]), array("i")
    for part in parts:
        with open(folder / f"{dataset}.{part}.inter", encoding="utf-8") as lines:
            next(lines)
            for line in lines:
                name, prefix, target = line.rstrip("\n").split("\t")
                ids.append(name)
                clicks.extend([number.setdefault(token, len(number)) for token in prefix.split(" ")])
                starts.append(len(clicks))
                targets.append(number.setdefault(target, len(number)))
    return SessionRows(list(number), ids, np.array(clicks, np.int32), np.array(starts, np.int64), np.array(targets, np.int32))


def read_items(path: Path) -> pd.DataFrame:
    """A prepared `.item` file as text columns named without their types; empty cells are empty strings."""
    return read_table(path).apply(unquoted)
