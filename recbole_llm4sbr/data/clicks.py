"""The clicks of a raw dataset as a data frame, whichever of its columns say user, session, time and part."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.names import MISSING
from recbole_llm4sbr.data.atomic import line_of, read_table
from recbole_llm4sbr.data.cells import ROUNDED, is_rounded
from recbole_llm4sbr.data.sessions import PARTS
from recbole_llm4sbr.data.times import no_second

NO_IDS = MISSING | {"[PAD]"}  # [PAD] is RecBole's own name of the padding item


def click_columns(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """The columns of the `.inter` files that are read, by the setting that names them."""
    rule = settings["session_rule"]
    session = settings["session_column"] if isinstance(settings["session_column"], list) else [settings["session_column"]]
    wanted = {
        "item_column": [settings["item_column"]],
        "time_column": [settings["time_column"]],
        "user_column": [settings["user_column"]] if rule in ("bucket", "gap", "user") else [],
        "session_column": session if rule in ("column", "rows") else [],
        "list_column": [settings["list_column"]] if rule == "rows" else [],
        "split_column": [settings["split_column"]] if settings["split"] == "given" else [],
    }
    return {option: [column for column in columns if column is not None] for option, columns in wanted.items()}


def read_clicks(settings: Mapping[str, Any], paths: Sequence[Path]) -> pd.DataFrame:
    """The clicks of the `.inter` files, in file order: user, item, time; session under `session_rule` column or rows; part under
    `split=given`.

    Raises:
        UserError: a time that is no number, a part of another name, sessions that users share, or an id that cannot stand in a file.
    """
    rule, columns = settings["session_rule"], click_columns(settings)
    tables = []
    for part, path in enumerate(paths):
        table = read_table(path)
        for option in ("item_column", "user_column", "session_column"):
            for column in set(columns[option]) & set(table):
                check_ids(path, column, table[column])
        clicks = pd.DataFrame({"item": table[settings["item_column"]], "time": _times(path, table, settings)})
        if settings["split"] == "given":
            clicks["part"] = _parts(path, table, settings["split_column"]) if settings["split_column"] else np.int8(part)
        if rule == "rows":
            clicks["list"] = table[settings["list_column"]]
        named = [column for column in _named(settings) if column in table]
        tables.append(pd.concat([clicks, table[named].add_prefix("raw ")], axis=1))
    found = pd.concat(tables, ignore_index=True)
    if rule in ("bucket", "gap", "user"):
        found["user"] = found[f"raw {settings['user_column']}"]
    else:
        found["session"] = found["user"] = _sessions(paths[0], found, settings)
    found = found.drop(columns=[column for column in found if column.startswith("raw ")])
    if rule == "rows":
        found["item"] = (found.pop("list") + " " + found["item"]).str.split()
        found = found.explode("item", ignore_index=True)
        check_ids(paths[0], settings["list_column"], found["item"])
    if settings["time_column"] is None:
        found["time"] = np.arange(len(found), dtype=np.float64)
    return found


def _named(settings: Mapping[str, Any]) -> list[str]:
    """The columns that tell sessions apart."""
    columns = click_columns(settings)
    user = [settings["user_column"]] if settings["session_rule"] == "column" and settings["user_column"] else []
    return list(dict.fromkeys([*columns["session_column"], *columns["user_column"], *user]))


def id_problem(token: str) -> str:
    """Why an atomic file cannot hold an id, or RecBole reads it as another one, with the next step; "" where nothing is wrong.

    >>> id_problem("B00X"), id_problem("NA")
    ('', 'is no id for RecBole, which reads it as padding; give it another one')
    """
    if not token or re.search(r"\s", token):
        return "is empty or holds white space, which atomic files cannot hold in a sequence; give it another id"
    if token in NO_IDS or token.startswith('"'):
        kind = "the beginning of a quotation" if token.startswith('"') else "padding"
        return f"is no id for RecBole, which reads it as {kind}; give it another one"
    return ROUNDED if is_rounded(token) else ""


def check_ids(path: Path, column: str, ids: pd.Series) -> None:
    """Refuse ids that an atomic file cannot hold, or that RecBole reads as another one.

    Raises:
        UserError: names the file, the column and the id.
    """
    for token in pd.unique(ids):
        if problem := id_problem(token):
            raise UserError(f"{str(path)!r}: {column}={token!r} {problem}")


def _times(path: Path, table: pd.DataFrame, settings: Mapping[str, Any]) -> Any:
    """Seconds of each row; 0 where the order of the rows is all that is known.

    Raises:
        UserError: a time is no number, or of another unit or form than seconds where pauses are measured.
    """
    column, rule = settings["time_column"], settings["session_rule"]
    if column is None:
        return 0.0
    times = pd.to_numeric(table[column], errors="coerce").to_numpy(np.float64)
    if not np.isfinite(times).all():
        line = int(np.flatnonzero(~np.isfinite(times))[0])
        raise UserError(
            f"{str(path)!r}, line {line_of(path, line)}: {column}={table[column][line]!r} is not a number of seconds"
        )
    rounded = table[column].map(is_rounded).to_numpy(bool)
    found = (int(rounded.argmax()), ROUNDED) if rounded.any() else no_second(times, rule in ("bucket", "gap"))
    if found is not None:
        line, reason = found
        raise UserError(f"{str(path)!r}, line {line_of(path, line)}: {column}={table[column][line]!r} {reason}")
    return times


def _sessions(path: Path, rows: pd.DataFrame, settings: Mapping[str, Any]) -> Any:
    """The session's name of each row under the rules column and rows.

    Raises:
        UserError: a session stands beside several users, of which nobody has said what it means.
    """
    columns = [f"raw {column}" for column in click_columns(settings)["session_column"] if f"raw {column}" in rows]
    if settings["session_rule"] == "rows":
        own = rows[columns].agg("_".join, axis=1) if columns else pd.Series(np.arange(len(rows)).astype(str))
        return own if own.is_unique else own + "_" + pd.Series(np.arange(len(rows)).astype(str))
    if len(columns) > 1:
        names, code = rows[columns].agg("_".join, axis=1), rows.groupby(columns, sort=False).ngroup()
        return names if names.nunique() == code.nunique() else names + "_" + code.astype(str)
    user = f"raw {settings['user_column']}"
    if user in rows:
        users = rows.groupby(columns[0], sort=False)[user].nunique()
        if (users > 1).any():
            session, name = settings["session_column"], settings["user_column"]
            raise UserError(
                f"{str(path)!r}: {session}={users.index[users > 1][0]!r} stands beside {users[users > 1].iloc[0]} values of {name}; "
                f"where sessions are numbered per user, add --session_column=[{name},{session}]; where a session may change its user, "
                f"--user_column=null"
            )
    return rows[columns[0]]


def _parts(path: Path, table: pd.DataFrame, column: str) -> Any:
    """The part of each row, a place in PARTS."""
    place = pd.Index(PARTS).get_indexer(table[column])
    if (place < 0).any():
        line = int(np.flatnonzero(place < 0)[0])
        raise UserError(
            f"{str(path)!r}, line {line_of(path, line)}: {column}={table[column][line]!r} is none of {', '.join(PARTS)}"
        )
    return place.astype(np.int8)
