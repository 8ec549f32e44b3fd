"""Examples of the training part: what a session's prompt is, and the item that comes next."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.data.folders import asked_targets, dataset_folder, part_file
from recbole_llm4sbr.data.rows import SessionRows, read_sessions, session_of
from recbole_llm4sbr.data.sessions import PARTS

Numbers = npt.NDArray[np.int64]

_HELD_OUT = 10  # one session of so many is held out


@dataclass(frozen=True)
class Pairs:
    """Beginnings of sessions of the training part, each with the item that follows it.

    Attributes:
        rows: the training part.
        row: the row of each pair, [N].
        target: the item that follows, a place in `rows.tokens`, [N].
        held_out: whether the pair is held out, for early stopping, [N].
    """

    rows: SessionRows
    row: Numbers
    target: Numbers
    held_out: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.row)

    def clicks(self, pair: int) -> list[int]:
        """The clicks of the pair's row, as places in `rows.tokens`, in click order."""
        start, end = self.rows.starts[self.row[pair] : self.row[pair] + 2]
        return [int(click) for click in self.rows.clicks[start:end]]


def training_pairs(settings: Mapping[str, Any], most: int, most_held_out: int, seed: int) -> Pairs:
    """The pairs of the training part, or a random sample of them.

    They are those that `intent_refresh` asks about: each session's last prefix, every prefix, or those of 1, 2, 4, ... clicks. A tenth of
    the sessions is held out, all rows of a session on the same side.

    Args:
        settings: of the run; the dataset is prepared.
        most: pairs to tune on; 0 for all.
        most_held_out: pairs that are held out.
        seed: of the sample.

    Raises:
        UserError: the training part is too small to hold anything out.
    """
    file = part_file(PARTS[0], asked_targets(settings))
    rows = read_sessions(dataset_folder(settings), settings["dataset"], file, longest=settings["MAX_ITEM_LIST_LENGTH"])
    power = (rows.lengths & (rows.lengths - 1)) == 0
    row = np.flatnonzero(power) if settings["intent_refresh"] == "powers" else np.arange(len(rows.ids))
    held_out = held_out_sessions(rows.ids)[row]
    rng = np.random.default_rng(seed)
    tuned_on, kept_back = (_sample(row[side], most, rng) for side, most in ((~held_out, most), (held_out, most_held_out)))
    if not len(tuned_on) or not len(kept_back):
        raise UserError(
            f"{settings['dataset']!r} has {len(row):,} training rows, too few to tune on with a tenth of the sessions held out; it needs "
            f"some dozens, better thousands"
        )
    chosen = np.concatenate([tuned_on, kept_back])
    target = rows.targets[chosen].astype(np.int64)
    return Pairs(rows, chosen, target, np.arange(len(chosen)) >= len(tuned_on))


def held_out_sessions(ids: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which rows are held out: those of a tenth of the sessions, by a checksum of the session's name, so that it is always the same tenth.

    >>> bool(held_out_sessions(["7_1.2"])[0] == held_out_sessions(["7_1.3"])[0])
    True
    """
    digests = (hashlib.blake2b(session_of(name).encode("utf-8", "surrogatepass"), digest_size=4).digest() for name in ids)
    return np.array([int.from_bytes(each) % _HELD_OUT == 0 for each in digests], bool)


def _sample(row: Numbers, most: int, rng: np.random.Generator) -> Numbers:
    """At most so many of them (0: all), in a random order."""
    found: Numbers = rng.permutation(row)[: most or None]
    return found
