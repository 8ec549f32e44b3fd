"""`import`: a click log and an item table from elsewhere -> a raw RecBole atomic dataset with its own settings file.

The settings file `<dataset>.yaml` holds what is known of the data afterwards, so that later verbs need the dataset's name alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import PROPERTIES, check_folder, make_folder, write_all_whole
from recbole_llm4sbr.base.schema import schema
from recbole_llm4sbr.data.catalogue import Catalogue, read_catalogue
from recbole_llm4sbr.data.cells import as_text, has_control
from recbole_llm4sbr.data.clicks import id_problem
from recbole_llm4sbr.data.columns import MOVIES, NONE, PRODUCTS, coarser, columns_of_clicks, plain
from recbole_llm4sbr.data.tables import Table, read_table_of
from recbole_llm4sbr.data.times import LEAVE_OUT, Seconds, to_seconds, unreadable, written

Source: TypeAlias = str | Path | pd.DataFrame


@dataclass(frozen=True)
class Imported:
    """What was imported.

    Attributes:
        dataset: its name.
        folder: where its files are.
        files: their names.
        fresh: false where the same files were there already.
        columns: which column of the clicks was taken for what, by role.
        guessed: the roles whose column was found by its name.
        times: what the times were, in words.
        coarser: further columns of the same times, of which the finest was taken.
        clicks, users, items: how many; users are None for a log without.
        sessions: how many sessions the log names; None where they are cut by times.
        span: the first and the last time in seconds since 1970; None without times of a clock.
        dropped: rows that were left out, by the role of the column that could not be read.
        duplicates: rows of the very same ids and time as an earlier one.
        duplicates_dropped: whether they were left out.
        tied: share of the clicks at the very time of an earlier one of their user, or session; their order is that of the rows.
        catalogue: the item texts; None where there are no titles.
        settings: what the dataset's settings file holds.
    """

    dataset: str
    folder: Path
    files: tuple[str, ...]
    fresh: bool
    columns: Mapping[str, str]
    guessed: tuple[str, ...]
    times: str
    coarser: tuple[str, ...]
    clicks: int
    users: int | None
    sessions: int | None
    items: int
    span: tuple[float, float] | None
    dropped: Mapping[str, int]
    duplicates: int
    duplicates_dropped: bool
    tied: float
    catalogue: Catalogue | None
    settings: Mapping[str, Any]


def import_clicks(
    clicks: Source,
    dataset: str,
    items: Source | None = None,
    *,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    session: str | Sequence[str] | None = None,
    title: str | None = None,
    items_id: str | None = None,
    time_format: str | None = None,
    bad_rows: str = "error",
    duplicates: str = "keep",
    data_path: str | Path | None = None,
    overwrite: bool = False,
) -> Imported:
    """Write a click log as a raw RecBole dataset, `<data_path>/<dataset>/<dataset>.inter`, `.item` and `.yaml`, whole or not at all.

    Args:
        clicks: a row per click: a data frame, or a CSV, TSV, JSON lines or Parquet file.
        dataset: the name that later commands use.
        items: a row per item, likewise; None: titles stand beside the clicks, or nowhere.
        user, item, time, session, title: columns; None: found by their names, "null": there is none. Several session columns where
            sessions are numbered per user. The title is a column of the items where these are given.
        items_id: the id's column in `items`; None: named as in the clicks, or found by its name.
        time_format: how times are written, in the signs of Python's `strptime`, where they are neither ISO 8601 nor numbers, or the unit
            of numbers: seconds, milliseconds, microseconds, nanoseconds or days. Times so read need not lie between 1990 and tomorrow.
        bad_rows: what becomes of clicks without a readable time or id: `error` refuses the first, `drop` leaves them out and counts them.
        duplicates: what becomes of rows of the very same user, session, item and time as an earlier one: `keep` or `drop`; both count them.
        data_path: the folder of raw datasets; None: the default of the setting `data_path`.
        overwrite: replace other files that stand there.

    Raises:
        UserError: a column that is not there or not obvious, a time or an id that cannot be read, other files at the same place.
    """
    schema()["dataset"].check(dataset)
    if (PROPERTIES / "dataset" / f"{dataset}.yaml").is_file():
        raise UserError(f"dataset={dataset!r} is a dataset whose settings come with this package; choose another --dataset")
    if bad_rows not in ("error", "drop"):
        raise UserError(f"bad_rows={bad_rows!r} must be error or drop")
    if duplicates not in ("keep", "drop"):
        raise UserError(f"duplicates={duplicates!r} must be keep or drop")
    root = Path(schema()["data_path"].default if data_path is None else data_path)
    check_folder(root, "--data_path")
    table = read_table_of(clicks, "clicks")
    columns, guessed = columns_of_clicks(table, user, item, time, session)
    dropped: dict[str, int] = {}
    if bad_rows == "drop":
        table, dropped = _readable(table, columns, time_format)
    ids = {role: _ids(table, column) for role, column in columns.items() if role not in ("time", "title")}
    _check_sessions(table, columns, ids)
    times = to_seconds(table, columns["time"], time_format) if "time" in columns else None
    seconds = None if times is None else times.seconds
    again = _duplicates(ids, seconds)
    if duplicates == "drop":
        ids = {role: values[~again] for role, values in ids.items()}
        seconds = None if seconds is None else seconds[~again]
    source = table if items is None else read_table_of(items, "items")
    clicked = ids["item"]
    catalogue = read_catalogue(source, clicked, columns["item"], title, items_id, own=items is not None)
    settings = _settings(columns, catalogue)
    contents = {f"{dataset}.inter": _inter(columns, ids, seconds), f"{dataset}.yaml": _yaml(settings)}
    if catalogue is not None:
        contents[f"{dataset}.item"] = "".join("\t".join(cells) + "\n" for cells in catalogue.rows)
    folder = root / dataset
    fresh = _write(folder, dataset, contents, overwrite)
    sessions = [ids[role] for role in ids if role.startswith("session")]
    return Imported(
        dataset, folder, tuple(sorted(contents)), fresh, columns, guessed,
        "none: clicks are in the order of rows" if times is None else times.kind,
        coarser(table, columns["time"]) if "time" in guessed else (),
        len(clicked),
        ids["user"].nunique() if "user" in ids else None,
        len(pd.concat(sessions, axis=1).drop_duplicates()) if sessions else None,
        clicked.nunique(),
        None if seconds is None or times is None or not times.clock else (float(seconds.min()), float(seconds.max())),
        dropped, int(again.sum()), duplicates == "drop", _tied(ids, seconds), catalogue, settings,
    )  # fmt: skip


def _ids(table: Table, column: str) -> pd.Series:
    """A column of ids as texts.

    Raises:
        UserError: names the first that an atomic file cannot hold or that RecBole reads as another one, with its line.
    """
    texts = as_text(table.frame[column])
    for token in pd.unique(texts):
        if problem := _problem(token):
            table.refuse(int(np.argmax(texts == token)), column, token, problem + LEAVE_OUT)
    return texts


def _problem(token: str) -> str:
    return id_problem(token) or ("holds a control character; give it another id" if has_control(token) else "")


def _readable(table: Table, columns: Mapping[str, str], time_format: str | None) -> tuple[Table, dict[str, int]]:
    """The rows with readable times and ids, and how many others there were by the role of the first column that is not.

    Raises:
        UserError: there is no such row.
    """
    kept, dropped = np.ones(len(table.frame), bool), {}
    for role, column in columns.items():
        if role == "title":
            continue
        if role == "time":
            bad = unreadable(table, column, time_format)
        else:
            texts = as_text(table.frame[column])
            bad = texts.isin([token for token in pd.unique(texts) if _problem(token)]).to_numpy()
        dropped[role] = int((kept & bad).sum())
        kept &= ~bad
    if not kept.any():
        counts = ", ".join(f"{role} ({columns[role]}) {count:,}" for role, count in dropped.items() if count)
        raise UserError(
            f"{table.name}: no row is readable: {counts} of {len(kept):,} are not; leave --bad_rows out to see the first"
        )
    if kept.all():
        return table, {}
    rest = table.frame[kept].reset_index(drop=True)  # whose rows are no lines of the file any more
    return replace(table, frame=rest, text="", separator=""), {role: count for role, count in dropped.items() if count}


def _duplicates(ids: Mapping[str, pd.Series], seconds: Seconds | None) -> npt.NDArray[np.bool_]:
    """Which rows have the very same ids and time as an earlier one, as logs that write a click twice do."""
    if seconds is None:
        return np.zeros(len(ids["item"]), bool)
    found: npt.NDArray[np.bool_] = pd.DataFrame({**ids, "time": seconds}).duplicated().to_numpy()
    return found


def _tied(ids: Mapping[str, pd.Series], seconds: Seconds | None) -> float:
    """Share of the clicks at the very time of an earlier row of the same user, or session where there are no users."""
    by = ["user"] if "user" in ids else [role for role in ids if role.startswith("session")]
    if seconds is None or not by:
        return 0.0
    return float(pd.DataFrame({**{role: ids[role] for role in by}, "time": seconds}).duplicated().mean())


def _check_sessions(table: Table, columns: Mapping[str, str], ids: Mapping[str, pd.Series]) -> None:
    """Refuse sessions that several users share, of which nobody has said what it means.

    Raises:
        UserError: names the first such session, and both ways to go on.
    """
    if "user" not in ids or "session" not in ids or "session_2" in ids:
        return
    users = ids["user"].groupby(ids["session"], sort=False).nunique()
    if (users > 1).any():
        name, own = columns["session"], columns["user"]
        raise UserError(
            f"{table.name}: {name}={users.index[users > 1][0]!r} stands beside {users[users > 1].iloc[0]} values of {own}; where "
            f"sessions are numbered per user, add --session={own},{name}; where a session may change its user, --user={NONE}"
        )


def _fields(columns: Mapping[str, str]) -> dict[str, str]:
    """The name of each role's column in the `.inter` file, RecBole's own for them.

    >>> _fields({"user": "who", "session": "who", "session_2": "visit", "item": "sku"})
    {'user': 'user_id', 'session': 'user_id', 'session_2': 'session_id', 'item': 'item_id'}
    """
    usual = {"user": "user_id", "item": "item_id", "time": "timestamp"}
    found: dict[str, str] = {}
    for role, column in columns.items():
        number = sum(field.startswith("session_id") for field in found.values()) + 1
        own = "session_id" if number == 1 else f"session_id_{number}"
        found[role] = usual.get(role) or ("user_id" if column == columns.get("user") else own)
    return found


def _inter(columns: Mapping[str, str], ids: Mapping[str, pd.Series], seconds: Seconds | None) -> str:
    """The content of the `.inter` file, clicks in the order of the log."""
    fields = _fields(columns)
    cells = {f"{fields[role]}:token": values.tolist() for role, values in ids.items()}
    if seconds is not None:
        cells["timestamp:float"] = written(seconds)
    return "\n".join(["\t".join(cells), *map("\t".join, zip(*cells.values()))]) + "\n"


def _settings(columns: Mapping[str, str], catalogue: Catalogue | None) -> dict[str, Any]:
    """What later verbs must know of the dataset."""
    sessions = [field for role, field in _fields(columns).items() if role.startswith("session")]
    found: dict[str, Any] = {
        "session_rule": "column" if sessions else "gap" if "time" in columns else "user",
        "user_column": "user_id" if "user" in columns else None,
        "item_column": "item_id",
        "time_column": "timestamp" if "time" in columns else None,
    }
    if found["session_rule"] == "gap":
        found["session_gap"] = schema()["session_gap"].default
    if sessions:
        found["session_column"] = sessions[0] if len(sessions) == 1 else sessions
    if catalogue is not None:
        names = {plain(name) for name in (columns["item"], catalogue.id_column, catalogue.title_column)}
        prompt = "products" if names & set(PRODUCTS) else "movies" if names & set(MOVIES) else "generic"
        found |= {"prompt": prompt, "item_name": "{title}", "item_text": "{title}"}
        if catalogue.without:
            found["missing_item_text"] = "unknown"
    return found


def _yaml(settings: Mapping[str, Any]) -> str:
    """The content of the dataset's settings file."""
    return (
        "# Written by `recbole-llm4sbr import`. Every verb reads these settings of the dataset; settings files that are named with\n"
        "# --config_files and the command line win over them (docs/data.md).\n"
        + yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    )


def _write(folder: Path, dataset: str, contents: Mapping[str, str], overwrite: bool) -> bool:
    """Write the files, unless they are there with the same content; false where they are.

    Raises:
        UserError: another file stands there and `overwrite` is false.
    """
    encoded = {name: text.encode() for name, text in contents.items()}
    every = [f"{dataset}.{kind}" for kind in ("inter", "item", "yaml")]
    there = [name for name in every if (folder / name).exists()]
    other = [name for name in there if name not in encoded or (folder / name).read_bytes() != encoded[name]]
    if other and not overwrite:
        raise UserError(
            f"{str(folder / other[0])!r} is there and differs from what would be written; choose another --dataset, or replace it "
            f"with --overwrite=true"
        )
    if not other and len(there) == len(encoded):
        return False
    make_folder(folder)
    write_all_whole({folder / name: data for name, data in encoded.items()})
    for name in set(other) - set(encoded):
        (folder / name).unlink()
    return True
