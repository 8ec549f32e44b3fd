"""The form of the feature files: vectors by id (`.itememb`, `.intentemb`), and sessions' nearest items by view (`.sessemb`)."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]  # [N, D]


def vector_lines(head: str, ids: Sequence[str], vectors: Vectors) -> Iterable[str]:
    """Lines of an atomic file of one vector per id, six significant digits."""
    yield head + "\n"
    form = " ".join(["%.6g"] * vectors.shape[1])
    for token, vector in zip(ids, vectors.tolist()):
        yield f"{token}\t{form % tuple(vector)}\n"


def read_vectors(path: Path) -> tuple[list[str], Vectors]:
    """Ids and vectors of such a file, [N] and [N, D]."""
    with open(path, encoding="utf-8") as lines:
        next(lines)
        cells = [line.rstrip("\n").split("\t") for line in lines]
    numbers = np.concatenate([np.fromstring(text, np.float32, sep=" ") for _, text in cells])
    return [token for token, _ in cells], numbers.reshape(len(cells), -1)


class SessionLines:
    """The lines of a `.sessemb`: per view the nearest items, their similarities and the intent's id; empty cells without an intent.

    Args:
        ids: session ids, [S].
        intents: by view each session's row of `found`, -1 without an intent, [S].
        tokens: item tokens, [M].
        found: places in `tokens` of the nearest items of each distinct intent, [N, K].
        sims: their similarities, written with four decimals, [N, K].
    """

    def __init__(
        self,
        ids: Sequence[str],
        intents: Mapping[str, npt.NDArray[np.int32]],
        tokens: Sequence[str],
        found: npt.NDArray[np.int64],
        sims: Vectors,
    ) -> None:
        self._ids, self._intents = ids, intents
        form = " ".join(["%.4f"] * (sims.shape[1] if len(sims) else 0))
        self._cells = [
            f"{' '.join([tokens[item] for item in items])}\t{form % tuple(row)}"
            for items, row in zip(found.tolist(), sims.tolist())
        ]
        self._cells.append("\t")  # for the intent -1
        self._numbers = [*(f"i{number}" for number in range(len(found))), ""]

    def __iter__(self) -> Iterator[str]:
        """The head, then a line per session."""
        columns = (f"{view}_items:token_seq\t{view}_sims:float_seq\t{view}_intent:token" for view in self._intents)
        yield "\t".join(["sid:token", *columns]) + "\n"
        for row, token in enumerate(self._ids):
            places = [column[row] for column in self._intents.values()]
            yield "\t".join([token, *(f"{self._cells[place]}\t{self._numbers[place]}" for place in places)]) + "\n"

    def checksums(self) -> dict[str, str]:
        """A SHA-256 of each view's items and similarities by session id: what training reads of it."""
        found = {}
        for view, column in self._intents.items():
            digest = hashlib.sha256()
            for token, place in zip(self._ids, column.tolist()):
                digest.update(f"{token}\t{self._cells[place]}\n".encode())
            found[view] = digest.hexdigest()
        return found
