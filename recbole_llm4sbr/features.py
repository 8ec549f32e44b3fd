"""The form of the feature files: vectors by id (`.itememb`, `.intentemb`), and the folder of each source of intents."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.settings import intent_files

Vectors = npt.NDArray[np.float32]


def intents_folder(dataset_folder: Path, settings: Mapping[str, Any]) -> Path:
    """Where the `.sessemb` of a run stands: the LLM's in the dataset's folder, another source's in a folder of its own there."""
    source = intent_files(settings)
    return dataset_folder if source == "llm" else dataset_folder / source


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
