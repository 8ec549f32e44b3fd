"""Raw RecBole atomic datasets: where they are, and whether their columns serve."""

import difflib
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import uses_item_texts
from recbole_llm4sbr.base.files import make_folder
from recbole_llm4sbr.base.schema import read_yaml
from recbole_llm4sbr.base.settings import format_columns
from recbole_llm4sbr.data.atomic import column_names, read_header, read_table
from recbole_llm4sbr.data.clicks import click_columns
from recbole_llm4sbr.data.item_columns import check_features, check_types
from recbole_llm4sbr.data.sessions import PARTS

log = logging.getLogger(__name__)


def locate(settings: Mapping[str, Any]) -> Path:
    """The folder of the raw dataset: under `data_path`, else RecBole's bundled ml-100k, else RecBole's download.

    Raises:
        UserError: it is nowhere.
    """
    dataset = settings["dataset"]
    folder = Path(settings["data_path"]) / str(dataset)
    if all(path.is_file() for path in click_files(settings, folder)):
        return folder
    if settings["split"] == "given" and settings["split_column"] is None:
        missing = next(path for path in click_files(settings, folder) if not path.is_file())
        raise UserError(
            f"split=given reads three files, and there is no {str(missing)!r}; make it, or name the column of the .inter file that says "
            f"train, valid or test with --split_column"
        )
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


def click_files(settings: Mapping[str, Any], raw: Path) -> list[Path]:
    """The `.inter` files of a raw dataset: one, or those of train, valid and test under `split=given` without a `split_column`."""
    if settings["split"] == "given" and settings["split_column"] is None:
        return [raw / f"{settings['dataset']}.{part}.inter" for part in PARTS]
    return [raw / f"{settings['dataset']}.inter"]


@dataclass(frozen=True)
class RawItems:
    """The items of a raw dataset, each once.

    Attributes:
        path: of the file.
        table: text columns without their types, by row of the file; the items' own is `item_id`.
        types: of the columns.
    """

    path: Path
    table: pd.DataFrame
    types: dict[str, str]


def read_raw_items(path: Path, item_column: str) -> RawItems:
    """Read a raw `.item` file, as prepared ones are written: of several rows of an item the first, no signs that would end a line for some
    reader.

    Raises:
        UserError: the file is no atomic file, or an id cannot stand in one.
    """
    types = dict(cell.partition(":")[::2] for cell in read_header(path))
    # Another column named item_id would stand twice.
    kept = [name for name in types if name == item_column or name != "item_id"]
    table = read_table(path)[kept].rename(columns={item_column: "item_id"}).drop_duplicates("item_id")
    table = table.replace(r"[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", " ", regex=True)
    return RawItems(
        path, table, {("item_id" if name == item_column else name): types[name] for name in kept} | {"item_id": "token"}
    )


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


def check_columns(settings: Mapping[str, Any], inter_files: Sequence[Path], item_file: Path) -> None:
    """Refuse, before anything is read, files that lack a column that will be needed.

    Raises:
        UserError: names the file, the column and the option that names another one.
    """
    if settings["time_column"] is None and settings["session_rule"] in ("bucket", "gap"):
        raise UserError(
            f"session_rule={settings['session_rule']} needs times; name their column with --time_column, or choose another --session_rule"
        )
    for inter_file in inter_files:
        present = column_names(inter_file)
        for option, columns in click_columns(settings).items():
            for column in columns:
                if column not in present and not (option == "session_column" and settings["session_rule"] == "rows"):
                    none = " (null: the rows are in the order of time)" if option == "time_column" else ""
                    raise UserError(
                        f"{str(inter_file)!r} has no column {column!r}; it has {', '.join(present)}; name the right one with "
                        f"--{option}{none}"
                    )
    present = column_names(item_file) if item_file.is_file() else []
    if present:
        check_types(item_file)
        if settings["item_column"] not in present:
            raise UserError(
                f"{str(item_file)!r} has no column {settings['item_column']!r}; it has {', '.join(present)}; "
                f"name the right one with --item_column"
            )
    check_features(settings, item_file, settings["item_column"])
    if not uses_item_texts(settings):
        return
    if not item_file.is_file():
        raise UserError(
            f"there is no {str(item_file)!r}, whose texts the LLM is shown; add it, or --llm4sbr=false for the plain model"
        )
    for option in ("item_name", "item_text"):
        for column in format_columns(option, settings[option]):
            if column not in present:
                near = difflib.get_close_matches(column, present, n=1)
                hint = (
                    f"did you mean --{option}={settings[option].replace(column, near[0])!r}?"
                    if near
                    else f"set --{option} to one"
                )
                raise UserError(f"{str(item_file)!r} has no text column {column!r}; it has {', '.join(present)}; {hint}")
