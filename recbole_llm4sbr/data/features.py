"""The form of the feature files: vectors by id (`.itememb`, `.intentemb`), and sessions' nearest items by view (`.sessemb`)."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.base.wording import printable

Vectors = npt.NDArray[np.float32]  # [N, D]
_LONGEST = 500  # characters of a text in a cell
_CHUNK = 20_000  # sessions whose cells are in memory at once


def vector_lines(head: str, ids: Sequence[str], vectors: Vectors) -> Iterable[str]:
    """Lines of an atomic file of one vector per id, six significant digits; an id may be several cells."""
    yield head + "\n"
    form = " ".join(["%.6g"] * vectors.shape[1])
    for token, vector in zip(ids, vectors.tolist()):
        yield f"{token}\t{form % tuple(vector)}\n"


def text_cell(text: str) -> str:
    """A text as a cell of an atomic file: on one line, without what a reader of tables takes for the end or the beginning of a cell.

    >>> text_cell('Say\\t"Anything"')
    "Say 'Anything'"
    """
    return printable(text[:_LONGEST]).replace('"', "'")


def read_vectors(path: Path) -> tuple[list[str], Vectors]:
    """Ids and vectors of such a file, its first and its last column, [N] and [N, D]."""
    with open(path, encoding="utf-8") as lines:
        next(lines)
        cells = [line.rstrip("\n").split("\t") for line in lines]
    numbers = np.concatenate([np.fromstring(text, np.float32, sep=" ") for *_, text in cells])
    return [token for token, *_ in cells], numbers.reshape(len(cells), -1)


@dataclass(frozen=True)
class Localized:
    """The items nearest to intents.

    Attributes:
        items: places in the catalogue, [N, K].
        sims: similarities, [N, K].
        places: by view each session's row of the two, -1 without an intent, [S].
    """

    items: npt.NDArray[np.int64] | npt.NDArray[np.int32]
    sims: Vectors
    places: Mapping[str, npt.NDArray[np.int32]]


def read_localized(path: Path, sessions: Sequence[str]) -> dict[str, dict[str, str]]:
    """The cells of some sessions in a `.sessemb` by session and column (without its type)."""
    wanted, found = set(sessions), dict[str, dict[str, str]]()
    with open(path, encoding="utf-8") as lines:
        names = [cell.partition(":")[0] for cell in next(lines).rstrip("\n").split("\t")]
        for line in lines:
            session = line[: line.find("\t")]
            if session in wanted:
                found[session] = dict(zip(names, line.rstrip("\n").split("\t")))
    return found


class SessionLines:
    """The lines of a `.sessemb`: per view the nearest items, their similarities and the intent's id; empty cells without an intent.

    Args:
        ids: session ids, [S].
        intents: by view the number of each session's intent, -1 without one, [S].
        tokens: item tokens, [M].
        found: the nearest items of the sessions; similarities are written with four decimals.
        sets: of intents of up to n titles: the titles' numbers, -1 behind the last of a set, by the intents' numbers, [C, n].
    """

    def __init__(
        self,
        ids: Sequence[str],
        intents: Mapping[str, npt.NDArray[np.int32]],
        tokens: Sequence[str],
        found: Localized,
        sets: npt.NDArray[np.int32] | None = None,
    ) -> None:
        self._ids, self._intents, self._tokens, self._found, self._sets = ids, intents, tokens, found, sets
        self._form = " ".join(["%.4f"] * (found.sims.shape[1] if len(found.sims) else 0))

    def __iter__(self) -> Iterator[str]:
        """The head, then a line per session."""
        kind = "token" if self._sets is None else "token_seq"
        columns = (f"{view}_items:token_seq\t{view}_sims:float_seq\t{view}_intent:{kind}" for view in self._intents)
        yield "\t".join(["sid:token", *columns]) + "\n"
        cells = [cell for view in self._intents for cell in (self._cells(view), self._titles(view))]
        for token in self._ids:
            yield "\t".join([token, *map(next, cells)]) + "\n"

    def checksums(self, names: Sequence[str]) -> dict[str, str]:
        """A SHA-256 of each view's intents by session id.

        Of what an LLM said, not of the similarities that were found for it: their last digit depends on which intents are compared at
        once, so that it may change when a view is added.

        Args:
            names: of the intents, by their numbers; empty where they have none, and follow from the sessions and the items alone.
        """
        found = {}
        for view in self._intents:
            digest = hashlib.sha256()
            for token, cell in zip(self._ids, self._titles(view, [text.encode().hex() for text in names])):
                digest.update(f"{token}\t{cell if names else bool(cell)}\n".encode())
            found[view] = digest.hexdigest()
        return found

    def _titles(self, view: str, names: Sequence[str] = ()) -> Iterator[str]:
        """The ids of each session's intent, or their names where there are some, as text."""
        column = self._intents[view]
        for first in range(0, len(column), _CHUNK):
            numbers = column[first : first + _CHUNK]
            if self._sets is None:
                yield from (_id(number, names) if number >= 0 else "" for number in numbers.tolist())
                continue
            distinct, which = np.unique(numbers, return_inverse=True)
            texts = [
                " ".join(_id(number, names) for number in titles if place >= 0 and number >= 0)
                for place, titles in zip(distinct.tolist(), self._sets[distinct].tolist())
            ]
            yield from (texts[place] for place in which.tolist())

    def _cells(self, view: str) -> Iterator[str]:
        """Items and similarities of each session, as text."""
        places = self._found.places[view]
        for first in range(0, len(places), _CHUNK):
            distinct, which = np.unique(places[first : first + _CHUNK], return_inverse=True)
            texts = [
                f"{' '.join([self._tokens[item] for item in items])}\t{self._form % tuple(sims)}" if place >= 0 else "\t"
                for place, items, sims in zip(
                    distinct.tolist(), self._found.items[distinct].tolist(), self._found.sims[distinct].tolist()
                )
            ]
            yield from (texts[place] for place in which.tolist())


def _id(number: int, names: Sequence[str]) -> str:
    """What an intent is called."""
    return names[number] if names else f"i{number}"
