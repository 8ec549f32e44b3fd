"""Reading the feature files `.itememb`, `.sessemb` and `.intentemb` into tensors by RecBole's ids.

They are RecBole atomic files, and RecBole can load them, but here they are read directly: on Amazon Beauty RecBole's reader takes four
times as long and twice the memory, and would let a file's items into the vocabulary (docs/feature-files.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import intents_name
from recbole_llm4sbr.data.features import read_vectors
from recbole_llm4sbr.data.folders import asked_targets, intents_folder

_CHUNK = 20_000  # rows of a file in memory at once


@dataclass
class IntentFiles:
    """The feature files of a dataset in memory, by RecBole's ids. A search reads them once and shares them among its trials.

    Attributes:
        source: whose intents they are, by the name of their folder.
        views: the V views, in the order of the tensors' second dimension.
        items: text vectors of the items [n_items, D].
        nearest, sims: rows of `items` and their similarities by session and view, [S, V, K]; K may be 0.
        answers: vectors of the LLM's distinct answers, row 0 zeros, [M, D]; empty unless they were asked for.
        answer: rows of `answers` of each session, up to n of them (`intent_answers`), 0 behind the last, [S, V, n].
    """

    source: str
    views: list[str]
    items: Tensor
    nearest: Tensor
    sims: Tensor
    answers: Tensor
    answer: Tensor

    def serves(self, config: Any) -> bool:
        """Whether a run with these settings finds here what it needs."""
        enough = config["intent_k"] <= self.nearest.size(2) if config["intent_k"] else bool(len(self.answers))
        return self.source == intents_name(config) and set(config["views"]) <= set(self.views) and enough

    @classmethod
    def read(cls, config: Any, dataset: Any, views: Sequence[str], k: int, with_answers: bool = False) -> "IntentFiles":
        """Read the files and join their rows with the dataset's items and sessions by id.

        Args:
            config: reads `data_path`, `intent_source`, `control_of`, `intent_refresh`.
            dataset: RecBole's dataset over the session files in the same folder.
            views: the views to read; none for the items' vectors alone.
            k: nearest items per view; 0 reads the answers' own vectors instead.
            with_answers: reads the answers' own vectors as well.

        Raises:
            UserError: an item or session of the dataset has no row, or fewer than `k` neighbours are stored.
        """
        folder, name = Path(config["data_path"]), dataset.dataset_name
        path = intents_folder(folder, config)
        items = pd.Index(dataset.field2id_token[dataset.iid_field])
        sessions = pd.Index(dataset.field2id_token[dataset.uid_field])

        partly = asked_targets(config) == "last"  # earlier prefixes have no row

        def columns(kind: str, tokens: "pd.Index[str] | None", count: int | None) -> Tensor:
            found = _read_sessions(
                path / f"{name}.sessemb", sessions, [f"{view}_{kind}" for view in views], tokens, count, partly
            )
            return torch.from_numpy(found)

        answers, answer = torch.zeros(0, 0), torch.zeros(len(sessions), len(views), 1, dtype=torch.int32)
        if with_answers or (views and not k):
            tokens, vectors = read_vectors(path / f"{name}.intentemb")
            answers = torch.from_numpy(np.concatenate([np.zeros((1, vectors.shape[1]), np.float32), vectors]))
            answer = columns("intent", pd.Index(["", *tokens]), None)
        none = torch.zeros(len(sessions), len(views), 0)
        nearest, sims = (columns("items", items, k), columns("sims", None, k)) if k else (none.int(), none)
        return cls(intents_name(config), list(views), item_vectors(config, dataset), nearest, sims, answers, answer)


def item_vectors(config: Any, dataset: Any) -> Tensor:
    """Text vectors of a dataset's items by RecBole's item id, zeros for padding and for items without a text, [n_items, D].

    Raises:
        UserError: an item has no row in the file.
    """
    if loaded := getattr(dataset, "preloaded", None):
        return loaded.items[: dataset.item_num]  # type: ignore[no-any-return]
    tokens, read = read_vectors(Path(config["data_path"]) / f"{dataset.dataset_name}.itememb")
    if added := getattr(dataset, "added", None):  # after training
        tokens, read = [*tokens, *added.tokens], np.concatenate([read, added.vectors])
    items = dataset.field2id_token[dataset.iid_field][1:]
    place = pd.Index(tokens).get_indexer(items)
    if (place < 0).any():
        raise UserError(
            f"item {items[place < 0][0]!r} has no row in {dataset.dataset_name}.itememb, which was made for another catalogue; "
            f"run `infer` with --rebuild=true"
        )
    return torch.from_numpy(np.concatenate([np.zeros((1, read.shape[1]), np.float32), read[place]]))


def _read_sessions(
    path: Path, sessions: "pd.Index[str]", columns: Sequence[str], tokens: "pd.Index[str] | None", k: int | None, partly: bool
) -> Any:
    """The first `k` values of sequence columns by session, zeros where a cell is empty, [S, V, k].

    Args:
        path: a `.sessemb` file.
        sessions: the session ids of the rows wanted; the first is padding.
        columns: names of V columns.
        tokens: what the values are places in; None when they are numbers.
        k: values per cell; None: as many as the longest cell has, zeros behind the last of a shorter one.
        partly: whether some sessions may have no row, and so no intent.

    Raises:
        UserError: a session without a row, a value that is not in `tokens`, or too few values in a cell.
    """
    kind: Any = np.float32 if tokens is None else np.int32
    values: Any = np.zeros((len(sessions), len(columns), k or 1), kind)
    seen = np.zeros(len(sessions), bool)
    for chunk in pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, chunksize=_CHUNK):
        chunk.columns = [column.partition(":")[0] for column in chunk.columns]
        place = sessions.get_indexer(chunk["sid"])
        seen[place[place >= 0]] = True
        for number, column in enumerate(columns):
            cells = chunk[column]
            filled = ((cells != "") & (place >= 0)).to_numpy()
            held = cells[filled].tolist()
            flat = [value for cell in held for value in (cell.split(" ", k)[:k] if k else cell.split(" "))]
            if k and len(flat) < k * len(held):
                raise UserError(
                    f"intent_k={k} is larger than the number of items stored in {path.name}; lower it, or run `infer` with a larger "
                    f"--intent_k_max and --rebuild=true"
                )
            found = np.array(flat, np.float32) if tokens is None else tokens.get_indexer(flat)
            if tokens is not None and (found < 0).any():
                unknown = flat[int(np.flatnonzero(found < 0)[0])]
                raise UserError(
                    f"{path.name} names {unknown!r}, which is not in the catalogue; run `infer` with --rebuild=true"
                )
            if k:
                values[place[filled], number] = found.reshape(-1, k)
                continue
            sizes = np.array([cell.count(" ") + 1 for cell in held], np.int64)
            if (more := int(sizes.max(initial=1)) - values.shape[2]) > 0:
                values = np.concatenate([values, np.zeros((*values.shape[:2], more), kind)], axis=2)
            behind = np.arange(len(flat)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            values[np.repeat(place[filled], sizes), number, behind] = found
    if not (seen[1:].any() if partly else seen[1:].all()):
        raise UserError(f"session {sessions[1:][~seen[1:]][0]!r} has no row in {path.name}; run `infer` with --rebuild=true")
    return values
