"""`prepare`: a raw RecBole atomic dataset -> benchmark session files with a manifest (paper section 5.1.1).

Files appear whole; the manifest comes last, so a folder with a manifest is complete and one without is made anew.
"""

import csv
import difflib
import importlib.util
import logging
import re
import string
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from recbole_llm4sbr import compat
from recbole_llm4sbr._version import __version__
from recbole_llm4sbr.data.sessions import PARTS, counts, drop_unseen, filter_rare, prefixes, session_names, sessionize, split
from recbole_llm4sbr.errors import UserError
from recbole_llm4sbr.files import make_folder, read_json, sha256_file, write_json, write_whole
from recbole_llm4sbr.settings import read_yaml, uses_item_texts

log = logging.getLogger(__name__)

MANIFEST = "prepare.json"
_DECIDING = ("session_rule", "session_targets", "split", "min_session_length", "min_item_count", "user_column", "item_column",
             "time_column")  # fmt: skip


def dataset_folder(settings: Mapping[str, Any]) -> Path:
    """The folder of a dataset's prepared and feature files."""
    return Path(settings["atomic_path"]) / str(settings["dataset"])


def prepare(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write session files for a dataset, unless they are there, made from the same source with the same settings.

    Args:
        settings: what `settings.load_settings` returned.

    Returns:
        The manifest.

    Raises:
        UserError: the dataset or a column of it is missing, no session is left, the folder cannot be written to, or it holds files
            made with other settings.
    """
    dataset, folder = settings["dataset"], dataset_folder(settings)
    raw = locate(settings)
    inter_file, item_file = raw / f"{dataset}.inter", raw / f"{dataset}.item"
    _check_columns(settings, inter_file, item_file)
    source = {path.name: sha256_file(path) for path in (inter_file, item_file) if path.is_file()}
    wanted = _deciding(settings)
    if (folder / MANIFEST).is_file():
        manifest: dict[str, Any] = read_json(folder / MANIFEST)
        changed = _differences(manifest["settings"], wanted)
        if manifest["source"] != source:
            changed.append(f"the raw files in {str(raw)!r} are not those it was made from")
        if not changed:
            check_files(folder, manifest)
            log.info("prepare: %s", report(manifest["counts"]) + " (there already)")
            return manifest
        if not settings["rebuild"]:
            raise UserError(
                f"{str(folder)!r} was prepared otherwise: {'; '.join(changed)}; "
                f"add --rebuild=true to make it anew, or choose another --atomic_path"
            )
    make_folder(folder)
    tables, numbers = _make(settings, _read_clicks(settings, inter_file), item_file)
    for old in (MANIFEST, "infer.json", "itememb.json", "session_text/infer.json"):  # what is made of other session files goes
        (folder / old).unlink(missing_ok=True)
    for name, lines in tqdm(tables.items(), desc="writing", unit="file", leave=False, disable=numbers["clicks"] < 10**6):
        with write_whole(folder / name) as handle:
            handle.write(lines)
    manifest = {
        "made_by": "recbole_llm4sbr prepare",
        "version": __version__,
        "settings": wanted,
        "source": source,
        "counts": numbers,
        "files": {name: sha256_file(folder / name) for name in tables},
    }
    write_json(folder / MANIFEST, manifest)
    log.info("prepare: %s", report(numbers))
    return manifest


def check_prepared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a prepared folder.

    Raises:
        UserError: nothing is prepared there, it was made with other settings, or a file has changed since.
    """
    folder = dataset_folder(settings)
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{str(folder)!r} holds no prepared dataset; run `recbole-llm4sbr prepare --dataset={settings['dataset']}` first"
        )
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    if changed := _differences(manifest["settings"], _deciding(settings)):
        raise UserError(
            f"{str(folder)!r} was prepared otherwise: {'; '.join(changed)}; run `prepare` with --rebuild=true, or use those settings"
        )
    check_files(folder, manifest)
    return manifest


def check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a folder whose files are not those of its manifest."""
    for name, checksum in manifest["files"].items():
        if not (folder / name).is_file() or sha256_file(folder / name) != checksum:
            raise UserError(
                f"{str(folder / name)!r} is missing or was changed after it was written; add --rebuild=true to make it anew"
            )


def report(numbers: Mapping[str, Any]) -> str:
    """The counts as one line."""
    rows = ", ".join(f"{part} {count:,}" for part, count in numbers["rows"].items())
    return (
        f"{numbers['sessions']:,} sessions, {numbers['items']:,} items, {numbers['clicks']:,} clicks, average length "
        f"{numbers['average_length']}; rows {rows}; left out of valid and test: {numbers['unseen_items']:,} items that train never saw, "
        f"{numbers['dropped_clicks']:,} clicks"
    )


@dataclass(frozen=True)
class SessionRows:
    """Rows of prepared parts, R of them, as numbers: a million prefixes take some 100 MB.

    Attributes:
        tokens: item tokens; what `clicks` and `targets` are places in.
        ids: session id of each row.
        clicks: the prefixes in click order, one row's after the other's, [N].
        starts: where each row's prefix begins in `clicks`, and the end of the last, [R + 1].
        targets: [R].
    """

    tokens: Sequence[str]
    ids: Sequence[str]
    clicks: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int32]

    def prefix(self, row: int) -> list[str]:
        """Item tokens of one row's prefix, in click order."""
        return [self.tokens[item] for item in self.clicks[self.starts[row] : self.starts[row + 1]]]


def read_sessions(folder: Path, dataset: str, *parts: str) -> SessionRows:
    """Read parts (`train`, `valid`, `test`) of a prepared dataset, one after the other."""
    number: dict[str, int] = {}
    ids: list[str] = []
    clicks, starts, targets = array("i"), array("q", [0]), array("i")
    for part in parts:
        with open(folder / f"{dataset}.{part}.inter", encoding="utf-8") as lines:
            next(lines)
            for line in lines:
                name, prefix, target = line.rstrip("\n").split("\t")
                ids.append(name)
                clicks.extend([number.setdefault(token, len(number)) for token in prefix.split(" ")])
                starts.append(len(clicks))
                targets.append(number.setdefault(target, len(number)))
    return SessionRows(list(number), ids, np.array(clicks, np.int32), np.array(starts, np.int64), np.array(targets, np.int32))


def read_items(path: Path) -> pd.DataFrame:
    """An `.item` file as text columns named without their types; empty cells are empty strings."""
    return _read_table(path)


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
    compat.apply()
    from recbole.utils.url import download_url, extract_zip, rename_atomic_files

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


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the prepared files depend on."""
    deciding = {key: settings[key] for key in _DECIDING}
    if settings["session_rule"] in ("bucket", "gap"):
        deciding["session_gap"] = settings["session_gap"]
    if settings["session_rule"] == "column":
        deciding["session_column"] = settings["session_column"]
    if settings["split"] == "temporal":
        deciding["split_ratio"] = list(settings["split_ratio"])
    return deciding


def _differences(made: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return [
        f"{key} was {made.get(key)!r}, now {wanted.get(key)!r}"
        for key in sorted(made | wanted)
        if made.get(key) != wanted.get(key)
    ]


def _check_columns(settings: Mapping[str, Any], inter_file: Path, item_file: Path) -> None:
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


def _read_table(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE, encoding="utf-8")
    table.columns = [column.partition(":")[0] for column in table.columns]
    return table


def _read_clicks(settings: Mapping[str, Any], path: Path) -> pd.DataFrame:
    table = _read_table(path)
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


def _make(settings: Mapping[str, Any], clicks: pd.DataFrame, item_file: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The content of every file to write, and the counts."""
    found = sessionize(clicks, settings["session_rule"], settings["session_gap"])
    sessions = filter_rare(found, settings["min_session_length"], settings["min_item_count"])
    if sessions.empty:
        raise UserError(
            f"no session is left of {found['session'].nunique():,} with {len(found):,} clicks after filtering; lower "
            f"--min_item_count={settings['min_item_count']} or --min_session_length={settings['min_session_length']}, "
            f"or change --session_rule"
        )
    numbers: dict[str, Any] = {"raw_clicks": len(clicks), **counts(sessions)}
    part = split(sessions, settings["split"], tuple(settings["split_ratio"]))
    before, items_before = len(sessions), sessions["item"].nunique()
    sessions, part = drop_unseen(sessions, part, settings["min_session_length"])
    dataset = settings["dataset"]
    tables = _session_tables(sessions, part, settings)
    numbers["rows"] = {name: tables[name].count("\n") - 1 for name in PARTS}
    if empty := [name for name in PARTS if not numbers["rows"][name]]:
        raise UserError(
            f"no session is left for {' and '.join(empty)} of {numbers['sessions']:,}; the dataset is too small for this split"
        )
    catalogue = pd.unique(sessions["item"])
    numbers |= {
        "unseen_items": int(items_before - len(catalogue)),
        "dropped_clicks": before - len(sessions),
        "catalogue": len(catalogue),
    }
    written = {f"{dataset}.{name}.inter": tables[name] for name in PARTS}
    written[f"{dataset}.item"] = _item_table(catalogue, item_file, settings["item_column"])
    return written, numbers


def _session_tables(sessions: pd.DataFrame, part: Any, settings: Mapping[str, Any]) -> dict[str, str]:
    lengths = np.bincount(pd.factorize(sessions["session"])[0])
    starts = np.cumsum(lengths) - lengths
    names = session_names(sessions, settings["session_rule"])
    row_session, row_length = prefixes(lengths, settings["session_targets"])
    row_start = starts[row_session]
    tokens = sessions["item"].tolist()
    ids = names[row_session].tolist()
    if settings["session_targets"] == "all":
        ids = [f"{name}.{length}" for name, length in zip(ids, row_length.tolist())]
    rows = zip(ids, row_start.tolist(), (row_start + row_length).tolist(), part[row_start].tolist())
    lines: dict[str, list[str]] = {name: ["session_id:token\titem_id_list:token_seq\titem_id:token\n"] for name in PARTS}
    for name, first, target, where in rows:
        lines[PARTS[where]].append(f"{name}\t{' '.join(tokens[first:target])}\t{tokens[target]}\n")
    return {name: "".join(each) for name, each in lines.items()}


def _item_table(catalogue: Any, item_file: Path, item_column: str) -> str:
    """Rows of the raw `.item` in its order for the catalogue, then a row of empty cells for every item it does not have."""
    if not item_file.is_file():
        return "item_id:token\n" + "".join(f"{token}\n" for token in catalogue)
    with open(item_file, encoding="utf-8") as handle:
        head, *lines = (line.rstrip("\r\n").split("\t") for line in handle)
    place = [cell.partition(":")[0] for cell in head].index(item_column)
    head[place] = "item_id:token"
    wanted = set(catalogue)
    rows: dict[str, list[str]] = {}
    for cells in lines:
        if len(cells) == len(head) and cells[place] in wanted:
            rows.setdefault(cells[place], cells)
    for token in catalogue:
        if token not in rows:
            rows[token] = [token if position == place else "" for position in range(len(head))]
    return "".join("\t".join(cells) + "\n" for cells in [head, *rows.values()])
