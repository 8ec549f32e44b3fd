"""`prepare`: a raw RecBole atomic dataset -> benchmark session files with a manifest (paper section 5.1.1).

Files appear whole; the manifest comes last, so a folder with a manifest is complete and one without is made anew.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import deciding
from recbole_llm4sbr.base.files import make_folder, sha256_file
from recbole_llm4sbr.base.records import PreparedCounts
from recbole_llm4sbr.data.atomic import quoted
from recbole_llm4sbr.data.clicks import check_ids, read_clicks
from recbole_llm4sbr.data.folders import ITEMS, PREPARED, dataset_folder, intents_manifests, part_file
from recbole_llm4sbr.data.item_columns import number_cells
from recbole_llm4sbr.data.manifest import Manifest
from recbole_llm4sbr.data.raw import RawItems, check_columns, click_files, locate, read_raw_items
from recbole_llm4sbr.data.sessions import (
    PARTS,
    counts,
    drop_unseen,
    filter_rare,
    is_trained,
    prefixes,
    session_names,
    sessionize,
    split,
)

log = logging.getLogger(__name__)


def prepare(settings: Mapping[str, Any]) -> Manifest:
    """Write session files for a dataset, unless they are there, made from the same source with the same settings.

    Args:
        settings: what `settings.load_settings` returned.

    Returns:
        The manifest; its `counts` are those of `PreparedCounts`.

    Raises:
        UserError: the dataset or a column of it is missing, no session is left, the folder cannot be written to, or it holds files
            made with other settings.
    """
    dataset, folder = settings["dataset"], dataset_folder(settings)
    raw = locate(settings)
    if raw.resolve() == folder.resolve():
        raise UserError(
            f"atomic_path and data_path both mean {str(folder)!r}, where raw files would be lost; choose another --atomic_path"
        )
    clicks_files, item_file = click_files(settings, raw), raw / f"{dataset}.item"
    check_columns(settings, clicks_files, item_file)
    source = {path.name: sha256_file(path) for path in (*clicks_files, item_file) if path.is_file()}
    wanted = deciding(settings, "prepared")
    made = Manifest.read(folder / PREPARED)
    if made is not None:
        changed = made.differences(wanted, {"source": source}) or made.damage()
        if not changed:
            numbers = PreparedCounts.from_json(made.counts)
            log.info("prepare: %s; %s (there already)", describe_counts(numbers), describe_repeatable(settings, numbers))
            warn_of_misses(settings, numbers)
            return made
        if not settings["rebuild"]:
            raise UserError(
                f"{str(folder)!r} was prepared otherwise from the raw files in {str(raw)!r}: {'; '.join(changed)}; "
                f"add --rebuild=true to make it anew, or choose another --atomic_path"
            )
    tables, numbers = _make(settings, read_clicks(settings, clicks_files), item_file)
    make_folder(folder)
    manifest = Manifest(folder / PREPARED, "prepare", wanted, {"source": source}, counts=numbers.to_json())
    manifest.check_own(tables)
    # What was made of other session files goes; the answers of the LLM stay in their store.
    for path in (folder / ITEMS, *intents_manifests(folder)):
        if (stale := Manifest.read(path)) is not None and stale.files:
            stale.remove()
    manifest = manifest.write(tables)
    log.info("prepare: %s; %s", describe_counts(numbers), describe_repeatable(settings, numbers))
    warn_of_misses(settings, numbers)
    return manifest


def describe_counts(numbers: PreparedCounts) -> str:
    """The counts as one line."""
    rows = ", ".join(
        f"{part} {numbers.prefixes[part]:,} prefixes of {count:,} sessions" for part, count in numbers.rows.items()
    )
    left_out = (
        f"left out of valid and test: {numbers.unseen_items:,} items that train never saw, {numbers.dropped_clicks:,} clicks"
    )
    if (short := numbers.sessions - sum(numbers.rows.values())) > 0:
        left_out += f", and {short:,} sessions that are too short without them"
    if numbers.cold_targets:
        missed = ", ".join(f"{part} {count:,}" for part, count in numbers.cold_targets.items())
        left_out = f"rows whose target train never saw: {missed}, of {numbers.cold_items:,} such items (cold_items=true)"
    return (
        f"{numbers.sessions:,} sessions, {numbers.items:,} items, {numbers.clicks:,} clicks, average length "
        f"{numbers.average_length}; rows {rows}; {left_out}; {numbers.catalogue:,} items are ranked"
    )


def describe_repeatable(settings: Mapping[str, Any], numbers: PreparedCounts) -> str:
    """Whether a session's items may be recommended again, and what says so."""
    chosen = " (auto: by the training part)" if settings["repeatable"] == "auto" else ""
    counts = ", ".join(f"{part} {numbers.repeated[part]:,}" for part in PARTS)
    settled = str(numbers.settled(settings["repeatable"])).lower()
    duplicates = (
        f"; {numbers.duplicates:,} clicks are duplicates, on the item and at the very time of an earlier one of their session, and do not "
        f"count for auto"
        if numbers.duplicates
        else ""
    )
    return f"targets that occur earlier in their session: {counts}, repeatable={settled}{chosen}{duplicates}"


def warn_of_misses(settings: Mapping[str, Any], numbers: PreparedCounts) -> None:
    """Warn of rows that no model can get right, since their target is in the session and not among the candidates."""
    lost = numbers.repeated["valid"] + numbers.repeated["test"]
    if lost and not numbers.settled(settings["repeatable"]):
        log.warning(
            "repeatable=false: a session's items are never recommended again, so that up to %s rows of valid and test, whose target occurs "
            "earlier in its session, count as misses; --repeatable=true keeps these items as candidates",
            f"{lost:,}",
        )


def _make(
    settings: Mapping[str, Any], clicks: pd.DataFrame, item_file: Path
) -> tuple[dict[str, Iterable[str]], PreparedCounts]:
    """The content of every file to write, and the counts."""
    found = sessionize(clicks, settings["session_rule"], settings["session_gap"])
    given = settings["split"] == "given"  # such rows are kept as they are
    shortest, rarest = (2, 1) if given else (settings["min_session_length"], settings["min_item_count"])
    sessions = filter_rare(found, shortest, rarest)
    if sessions.empty:
        raise UserError(
            f"no session is left of {found['session'].nunique():,} with {len(found):,} clicks after filtering; lower "
            f"--min_item_count={settings['min_item_count']} or --min_session_length={settings['min_session_length']}, "
            f"or change --session_rule"
        )
    numbers = counts(sessions)
    part = split(sessions, settings["split"], tuple(settings["split_ratio"]))
    if given:
        _check_order(sessions, part)
    before, items_before = len(sessions), sessions["item"].nunique()
    if not settings["cold_items"]:
        sessions, part = drop_unseen(sessions, part, shortest)
    dataset = settings["dataset"]
    trained = is_trained(sessions, part)
    duplicates = _duplicates(sessions, settings["session_rule"])
    tables, repeated, duplicated, cold_targets = _session_tables(sessions, part, trained, duplicates, settings)
    rows = {name: len(tables[part_file(name, "last")]) - 1 for name in PARTS}
    if empty := [name for name in PARTS if not rows[name]]:
        raise UserError(
            f"no session is left for {' and '.join(empty)} of {numbers['sessions']:,}; the dataset is too small for this split"
        )
    clicked = catalogue = pd.unique(sessions["item"])
    raw = read_raw_items(item_file, settings["item_column"]) if item_file.is_file() else None
    if settings["cold_items"] and raw is not None:
        check_ids(item_file, settings["item_column"], raw.table["item_id"])
        catalogue = pd.unique(np.concatenate([clicked, raw.table["item_id"]]))
    written: dict[str, Iterable[str]] = {f"{dataset}.{name}.inter": lines for name, lines in tables.items()}
    written[f"{dataset}.item"] = _item_table(catalogue, raw)
    return written, PreparedCounts(
        **numbers,
        rows=rows,
        prefixes={name: len(tables[part_file(name, "all")]) - 1 for name in PARTS},
        raw_clicks=len(clicks),
        unseen_items=int(items_before - len(clicked)),
        dropped_clicks=before - len(sessions),
        catalogue=len(catalogue),
        repeated=repeated,
        duplicates=int(duplicates.sum()),
        duplicated=duplicated,
        cold_items=len(catalogue) - sessions["item"][trained].nunique(),
        cold_targets=cold_targets if settings["cold_items"] else {},
    )


def _check_order(sessions: pd.DataFrame, part: npt.NDArray[np.int8]) -> None:
    """Refuse given parts under which a model would read, before a click of train or valid, a click of a later part.

    Raises:
        UserError: names the session.
    """
    session = sessions["session"].to_numpy()
    back = (session[1:] == session[:-1]) & (part[1:] < part[:-1])
    if back.any():
        place = int(np.flatnonzero(back)[0])
        raise UserError(
            f"session {sessions['owner'][place]!r}: a click of {PARTS[part[place + 1]]} comes after one of {PARTS[part[place]]}; "
            f"split=given needs train, valid, test in this order inside a session"
        )


def _duplicates(sessions: pd.DataFrame, rule: str) -> npt.NDArray[np.bool_]:
    """Which clicks are on the item of an earlier one of their session at the very same time; a row that is a session has one time."""
    if rule == "rows":
        return np.zeros(len(sessions), bool)
    found: npt.NDArray[np.bool_] = sessions.duplicated(["session", "item", "time"]).to_numpy()
    return found


def _session_tables(
    sessions: pd.DataFrame,
    part: npt.NDArray[np.int8],
    trained: npt.NDArray[np.bool_],
    duplicates: npt.NDArray[np.bool_],
    settings: Mapping[str, Any],
) -> tuple[dict[str, list[str]], dict[str, int], dict[str, int], dict[str, int]]:
    """The lines of the session files by `part_file`, and `repeated`, `duplicated` and `cold_targets` of `PreparedCounts`.

    A row holds the newest `MAX_ITEM_LIST_LENGTH` clicks, which is what models read, so that a long session does not fill the disk with
    its prefixes. A session's longest prefix in train is there with all its clicks, for what is read off whole sessions (`training_graphs`).
    """
    lengths = np.bincount(pd.factorize(sessions["session"])[0])
    starts = np.cumsum(lengths) - lengths
    row_session, row_length, last = prefixes(lengths, part)
    row_start = starts[row_session]
    row_target = row_start + row_length
    row_part = part[row_target]
    if settings["session_rule"] == "rows":  # each is a row as it is
        row_session, row_length, row_start, row_target, row_part = (
            each[last] for each in (row_session, row_length, row_start, row_target, row_part)
        )
        last = np.ones(len(row_session), bool)

    def counted(which: npt.NDArray[np.bool_], *parts: int) -> dict[str, int]:
        """Rows by part whose target is one of these clicks: of train all, of valid and test the last of each session."""
        found = which[row_target] & ((row_part == 0) | last)
        return {PARTS[number]: int((found & (row_part == number)).sum()) for number in parts}

    repeated = counted(sessions.duplicated(["session", "item"]).to_numpy(), 0, 1, 2)
    duplicated, cold = counted(duplicates, 0, 1, 2), counted(~trained, 1, 2)
    tokens = sessions["item"].tolist()
    names = session_names(sessions, settings["session_rule"])[row_session].tolist()
    newest = np.maximum(row_start, row_target - settings["MAX_ITEM_LIST_LENGTH"])
    rows = zip(
        names, row_length.tolist(), row_start.tolist(), newest.tolist(), row_target.tolist(), row_part.tolist(), last.tolist()
    )
    head = "session_id:token\titem_id_list:token_seq\titem_id:token\n"
    lines = {part_file(name, targets): [head] for name in PARTS for targets in ("all", "last")}
    for name, length, start, first, target, number, is_last in rows:
        row = f"{name}.{length}\t{' '.join(tokens[first:target])}\t{tokens[target]}\n"
        lines[part_file(PARTS[number], "all")].append(row)
        if is_last and number == 0 and first > start:
            row = f"{name}.{length}\t{' '.join(tokens[start:target])}\t{tokens[target]}\n"
        if is_last:
            lines[part_file(PARTS[number], "last")].append(row)
    return lines, repeated, duplicated, cold


def _item_table(catalogue: Any, raw: RawItems | None) -> list[str]:
    """Lines of `.item`: the raw ones in their order for the catalogue, then empty cells for every item that has none.

    Raises:
        UserError: a cell that is to be a number is none.
    """
    if raw is None:
        return ["item_id:token\n", *(f"{token}\n" for token in catalogue)]
    table = number_cells(raw.path, raw.table[raw.table["item_id"].isin(set(catalogue))], raw.types)
    known = set(table["item_id"])
    rows = table.apply(quoted).to_numpy().tolist()
    rows += [[token if name == "item_id" else "" for name in table] for token in catalogue if token not in known]
    head = [f"{name}:{kind}" for name, kind in raw.types.items()]
    return ["\t".join(row) + "\n" for row in [head, *rows]]
