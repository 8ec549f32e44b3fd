"""A loaded dataset with its feature files as arrays that many processes can read in one memory (Ray's object store).

RecBole's datasets hold tensors, which Ray would copy into every process; numpy arrays it maps. What a trial does not need (the session
ids' numbers by name, the test part) is left out.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from recbole_llm4sbr.base.recbole import Interaction
from recbole_llm4sbr.model import IntentFiles
from recbole_llm4sbr.training.config import SessionConfig
from recbole_llm4sbr.training.loaders import session_loaders

_FEATURES = ("inter_feat", "item_feat", "user_feat")
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class SharedData:
    """Training and validation part, and the feature files.

    Attributes:
        parts: RecBole's datasets of the two, their tensors taken out.
        arrays: those tensors, by part and table.
        files: fields of `IntentFiles`, tensors as arrays; None without feature files.
    """

    parts: Sequence[Any]
    arrays: Sequence[Mapping[str, Arrays]]
    files: Mapping[str, Any] | None

    @property
    def megabytes(self) -> float:
        """Of the arrays."""
        tables = [table for part in self.arrays for table in part.values()] + [dict(self.files or {})]
        return sum(array.nbytes for table in tables for array in table.values() if isinstance(array, np.ndarray)) / 2**20


def share(train: Any, valid: Any, files: IntentFiles | None) -> SharedData:
    """Take datasets and feature files apart into arrays.

    Args:
        train, valid: RecBole's datasets of the two parts.
        files: the feature files by the ids of the same dataset.
    """
    parts, arrays = [], []
    for dataset in (train, valid):
        part = copy.copy(dataset)
        tables: dict[str, Arrays] = {}
        for name in _FEATURES:
            if isinstance(table := getattr(part, name, None), Interaction):
                tables[name] = {key: np.ascontiguousarray(tensor.numpy()) for key, tensor in table.interaction.items()}
                setattr(part, name, None)
        part.config = None
        part.field2id_token = {key: np.asarray(tokens, dtype=str) for key, tokens in part.field2id_token.items()}
        part.field2token_id = {key: numbers for key, numbers in part.field2token_id.items() if key != part.uid_field}
        parts.append(part)
        arrays.append(tables)
    held = None
    if files is not None:
        values = {field.name: getattr(files, field.name) for field in fields(files)}
        held = {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in values.items()}
    return SharedData(parts, arrays, held)


def dataloaders(config: SessionConfig, shared: SharedData) -> tuple[Any, Any]:
    """RecBole's dataloaders for training and validation over shared arrays, without a copy of them."""
    datasets = []
    for part, tables in zip(shared.parts, shared.arrays):
        dataset = copy.copy(part)
        dataset.config = config
        for name, table in tables.items():
            setattr(dataset, name, Interaction({key: _tensor(array) for key, array in table.items()}))
        if shared.files is not None:
            values: dict[str, Any] = {
                key: _tensor(value) if isinstance(value, np.ndarray) else value for key, value in shared.files.items()
            }
            dataset.preloaded = IntentFiles(**values)
        datasets.append(dataset)
    train_data, valid_data, _ = session_loaders(config, [*datasets, datasets[1]])  # nobody looks at the third
    return train_data, valid_data


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """An array as a tensor over the same memory; nothing here writes into it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of memory that cannot be written
        return torch.from_numpy(array)
