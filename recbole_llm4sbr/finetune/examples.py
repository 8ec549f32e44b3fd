"""Examples of the training part: what a session's prompt is, and the item that comes next."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.data.rows import SessionRows, read_sessions
from recbole_llm4sbr.data.sessions import PARTS

Numbers = npt.NDArray[np.int64]

_HELD_OUT = 10  # one session of so many is held out


@dataclass(frozen=True)
class Pairs:
    """Beginnings of sessions of the training part, each with the item that follows it.

    Attributes:
        rows: the training part.
        row: the row of each pair, [N].
        shown: clicks of the beginning, [N].
        target: the item that follows, a place in `rows.tokens`, [N].
        held_out: whether the pair is held out, for early stopping, [N].
    """

    rows: SessionRows
    row: Numbers
    shown: Numbers
    target: Numbers
    held_out: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.row)

    def clicks(self, pair: int) -> list[int]:
        """The clicks that are shown, as places in `rows.tokens`, in click order."""
        start = self.rows.starts[self.row[pair]]
        return [int(click) for click in self.rows.clicks[start : start + self.shown[pair]]]

    def session(self, pair: int) -> list[int]:
        """All clicks of the pair's row, as places in `rows.tokens`."""
        start, end = self.rows.starts[self.row[pair] : self.row[pair] + 2]
        return [int(click) for click in self.rows.clicks[start:end]]


def training_pairs(settings: Mapping[str, Any], most: int, most_held_out: int, seed: int) -> Pairs:
    """The pairs of the training part, or a random sample of them.

    `intent_refresh=powers` asks about beginnings of 1, 2, 4, ... clicks only: such a beginning is shown, and the click behind it is the
    target. A tenth of the sessions is held out, all rows of a session on the same side.

    Args:
        settings: of the run; the dataset is prepared.
        most: pairs to tune on; 0 for all.
        most_held_out: pairs that are held out.
        seed: of the sample.

    Raises:
        UserError: the training part is too small to hold anything out.
    """
    rows = read_sessions(dataset_folder(settings), settings["dataset"], PARTS[0])
    lengths = np.diff(rows.starts)
    shown = lengths.copy()
    if settings["intent_refresh"] == "powers":
        shown = 1 << np.frexp(lengths.astype(float))[1].astype(np.int64) - 1
    whole = shown == lengths
    behind = rows.clicks[np.minimum(rows.starts[:-1] + shown, max(len(rows.clicks) - 1, 0))] if len(rows.ids) else shown
    target = np.where(whole, rows.targets, behind).astype(np.int64)
    row = _distinct(rows, shown)
    held_out = held_out_sessions(rows.ids)[row]
    rng = np.random.default_rng(seed)
    tuned_on, kept_back = (_sample(row[side], most, rng) for side, most in ((~held_out, most), (held_out, most_held_out)))
    if not len(tuned_on) or not len(kept_back):
        raise UserError(
            f"{settings['dataset']!r} has {len(row):,} training rows, too few to tune on with a tenth of the sessions held out; it needs "
            f"some dozens, better thousands"
        )
    chosen = np.concatenate([tuned_on, kept_back])
    return Pairs(rows, chosen, shown[chosen], target[chosen], np.arange(len(chosen)) >= len(tuned_on))


def _distinct(rows: SessionRows, shown: Numbers) -> Numbers:
    """One row of each session beginning that is shown; under `every` those are all rows."""
    if np.array_equal(shown, np.diff(rows.starts)):
        return np.arange(len(shown))
    sessions = [_session(name) for name in rows.ids]
    _, first = np.unique([f"{name} {length}" for name, length in zip(sessions, shown.tolist())], return_index=True)
    found: Numbers = np.sort(first)
    return found


def held_out_sessions(ids: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which rows are held out: those of a tenth of the sessions, by a checksum of the session's name, so that it is always the same tenth.

    >>> bool(held_out_sessions(["7_1.2"])[0] == held_out_sessions(["7_1.3"])[0])
    True
    """
    digests = (hashlib.blake2b(_session(name).encode("utf-8", "surrogatepass"), digest_size=4).digest() for name in ids)
    return np.array([int.from_bytes(each) % _HELD_OUT == 0 for each in digests], bool)


def _session(name: str) -> str:
    """The session of a row: `prepare` calls the rows of one session `name.1`, `name.2`, ..."""
    return re.sub(r"\.\d+$", "", name)


def _sample(row: Numbers, most: int, rng: np.random.Generator) -> Numbers:
    """At most so many of them (0: all), in a random order."""
    found: Numbers = rng.permutation(row)[: most or None]
    return found
