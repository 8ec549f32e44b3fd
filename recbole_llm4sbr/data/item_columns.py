"""The columns of a `.item` file as RecBole loads them: their types, their numbers, and the settings that name them."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.names import MISSING
from recbole_llm4sbr.base.recbole_settings import FEATURES_BY, SESSION_COLUMNS
from recbole_llm4sbr.data.atomic import line_of, read_header

_TYPES = ("token", "token_seq", "float", "float_seq")
_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"


def check_types(path: Path) -> None:
    """Refuse a file with a column of a name or type for which RecBole would refuse the whole file.

    Raises:
        UserError: names the file and the column.
    """
    for name, kind in _types(path).items():
        if kind not in _TYPES:
            raise UserError(
                f"{str(path)!r}: the column {name!r} has the type {kind!r}, which RecBole does not know; choose one of {', '.join(_TYPES)}"
            )
        if not name or name.startswith('"'):
            raise UserError(f"{str(path)!r} has a column named {name!r}, which RecBole cannot read; give it another name")


def check_features(settings: Mapping[str, Any], path: Path, item_column: str = "item_id") -> None:
    """Refuse settings of item features that name a column that is not loaded, or of a type that does not serve.

    Args:
        settings: of the run.
        path: a `.item` file, raw or prepared; it need not be there where no features are loaded.
        item_column: of the items' ids in it.

    Raises:
        UserError: names the setting, the column and what the file has.
    """
    asked = (settings.get("load_col") or {}).get("item", ["item_id"])
    types = {
        ("item_id" if name == item_column else name): kind for name, kind in (_types(path) if path.is_file() else {}).items()
    }
    loaded = list(types) if asked == "*" else asked
    for name in loaded if loaded != ["item_id"] else ():
        if name not in types:
            near = difflib.get_close_matches(name, types, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"load_col: {str(path)!r} has no column {name!r}; it has {', '.join(types) or 'none'}{hint}")
        if name in {*SESSION_COLUMNS, settings.get("ITEM_LIST_LENGTH_FIELD", "item_length")} - {"item_id"}:
            raise UserError(
                f"load_col: the sessions have a column {name!r} of their own; give that of {str(path)!r} another name"
            )
    for key, (_, ending) in FEATURES_BY.items():
        for name in settings.get(key) or ():
            if name not in loaded:
                raise UserError(
                    f"{key}: {name!r} is no column of .item that is loaded; add --load_col='{{item: [item_id, {name}]}}'"
                )
            if ending not in types[name].split("_"):
                raise UserError(f"{key}: the column {name!r} of {str(path)!r} is of the type {types[name]}, and no {ending}")
    for name in settings.get("selected_features") or ():
        if name in loaded and "float" in types[name] and name not in (settings.get("numerical_features") or ()):
            raise UserError(
                f"selected_features: RecBole embeds the numbers of {name!r} only with --numerical_features=[{name}]; add it"
            )


def number_cells(path: Path, table: pd.DataFrame, types: Mapping[str, str]) -> pd.DataFrame:
    """A raw table whose number columns hold numbers, or nothing where RecBole reads a missing value.

    Args:
        path: its file.
        table: as `read_table` gives it, or some of its rows under their index.
        types: of its columns.

    Raises:
        UserError: a cell of a float or float_seq column holds something else; names file, line, column and value.
    """
    table = table.copy()
    for name in (name for name, kind in types.items() if kind in ("float", "float_seq")):
        cells = table[name].str.strip()
        table[name] = cells = cells.where(~cells.isin(MISSING), "")
        numbers = cells.str.split(" ").explode() if types[name] == "float_seq" else cells
        numbers = numbers[numbers != ""]
        finite = pd.to_numeric(numbers, errors="coerce").abs() <= np.finfo(np.float32).max
        if (wrong := ~(numbers.str.fullmatch(_NUMBER).astype(bool) & finite)).any():
            row = int(numbers.index[wrong][0])
            raise UserError(
                f"{str(path)!r}, line {line_of(path, row)}: {name}={numbers[wrong].iloc[0]!r} is no number, though the first line declares "
                f"{name}:{types[name]}; correct or empty the cell, or declare {name}:{types[name].replace('float', 'token')}"
            )
    return table


def _types(path: Path) -> dict[str, str]:
    """The types of a file's columns by name."""
    return dict(cell.partition(":")[::2] for cell in read_header(path))
