"""Raw RecBole atomic datasets: where they are, whether their columns serve, and their clicks as a data frame."""

import csv
import difflib
import importlib.util
import logging
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import make_folder
from recbole_llm4sbr.base.schema import read_yaml
from recbole_llm4sbr.base.settings import uses_item_texts

log = logging.getLogger(__name__)


def locate(settings: Mapping[str, Any]) -> Path:
    """The folder of the raw dataset: under `data_path`, else RecBole's bundled ml-100k, else RecBole's download.

    Raises:
        UserError: it is nowhere.
    """
    dataset = settings["dataset"]
    folder = Path(settings["data_path"]) / str(dataset)
    if (folder / f"{dataset}.inter").is_file():
        return folder
    spec = importlib.util.find_spec("recbole")
    root = Path(((spec and spec.submodule_search_locations) or [""])[0])
    bundled = root / "dataset_example" / str(dataset)
    if (bundled / f"{dataset}.inter").is_file():
        return bundled
    urls = read_yaml(root / "properties" / "dataset" / "url.yaml")
    if dataset not in urls:
        near = difflib.get_close_matches(dataset, [*urls, "ml-100k"], n=3)
        raise UserError(
            f"dataset {dataset!r} is not there: no file {str(folder / f'{dataset}.inter')!r}, and RecBole does not offer it for download; "
            f"set --data_path to the folder that holds the folder {dataset!r}"
            + (f", or did you mean {', '.join(near)}?" if near else "")
        )
    return _download(dataset, urls[dataset], folder)


def _download(dataset: str, url: str, folder: Path) -> Path:
    """RecBole's own download. It is done here because RecBole's Dataset waits for a process group afterwards that does not exist."""
    from recbole_llm4sbr.base.recbole import download_url, extract_zip, rename_atomic_files

    make_folder(folder)
    log.info("downloading %s from %s", dataset, url)
    try:
        archive = download_url(url, str(folder))
        extract_zip(archive, str(folder))
        Path(archive).unlink()
        rename_atomic_files(str(folder), Path(archive).stem, dataset)
    except Exception as error:  # urllib, zip and file errors alike: the user's next step is the same
        if not any(folder.iterdir()):
            folder.rmdir()
        raise UserError(
            f"dataset {dataset!r} is not under {str(folder.parent)!r} and RecBole's download failed ({error}); "
            f"put the atomic files into {str(folder)!r}"
        ) from None
    return folder


def check_columns(settings: Mapping[str, Any], inter_file: Path, item_file: Path) -> None:
    """Refuse, before anything is read, files that lack a column that will be needed."""
    present = _header(inter_file)
    needed = ["item_column", "time_column", "session_column" if settings["session_rule"] == "column" else "user_column"]
    for option in needed:
        if settings[option] not in present:
            raise UserError(
                f"{str(inter_file)!r} has no column {settings[option]!r}; it has {', '.join(present)}; name the right one with --{option}"
            )
    if not uses_item_texts(settings):
        return
    if not item_file.is_file():
        raise UserError(
            f"there is no {str(item_file)!r}, whose texts the LLM is shown; add it, or --llm4sbr=false for the plain model"
        )
    present = _header(item_file)
    if settings["item_column"] not in present:
        raise UserError(
            f"{str(item_file)!r} has no column {settings['item_column']!r}; it has {', '.join(present)}; "
            f"name the right one with --item_column"
        )
    for option in ("item_name", "item_text"):
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(settings[option]) if field is not None]
        except ValueError as error:
            raise UserError(
                f"{option}={settings[option]!r} is not a format ({error}); write it as '{{title}}, {{brand}}'"
            ) from None
        for column in fields:
            if column not in present:
                raise UserError(
                    f"{str(item_file)!r} has no text column {column!r}; it has {', '.join(present)}; "
                    f"set --{option}, for instance --{option}='{{{present[-1]}}}'"
                )


def _header(path: Path) -> list[str]:
    with open(path, encoding="utf-8") as handle:
        cells = handle.readline().rstrip("\r\n").split("\t")
    if not all(":" in cell for cell in cells):
        raise UserError(
            f"{str(path)!r} is not a RecBole atomic file: its first line must be tab-separated name:type cells, not {cells[0][:60]!r}"
        )
    return [cell.partition(":")[0] for cell in cells]


def read_table(path: Path) -> pd.DataFrame:
    """An atomic file as text columns named without their types; empty cells are empty strings."""
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE, encoding="utf-8")
    table.columns = [column.partition(":")[0] for column in table.columns]
    return table


def read_clicks(settings: Mapping[str, Any], path: Path) -> pd.DataFrame:
    """The clicks of an `.inter` file: user, item, time and, under `session_rule=column`, session, in file order.

    Raises:
        UserError: a time that is no number, or an item or user that cannot stand in a sequence.
    """
    table = read_table(path)
    columns = {"item": settings["item_column"], "time": settings["time_column"], "user": settings["user_column"]}
    if settings["session_rule"] == "column":
        columns = columns | {"session": settings["session_column"], "user": settings["session_column"]}
    clicks = pd.DataFrame({name: table[column] for name, column in columns.items()})
    times = pd.to_numeric(clicks["time"], errors="coerce")
    if times.isna().any():
        line = int(np.flatnonzero(times.isna())[0])
        raise UserError(
            f"{str(path)!r}, line {line + 2}: {settings['time_column']}={clicks['time'][line]!r} is not a number of seconds"
        )
    for name in ("item", "user"):
        tokens = pd.unique(clicks[name])
        bad = next((token for token in tokens if not token or re.search(r"\s", token)), None)
        if bad is not None:
            raise UserError(
                f"{str(path)!r}: {columns[name]}={bad!r} is empty or holds white space, which atomic files cannot hold in a sequence"
            )
    clicks["time"] = times
    return clicks
