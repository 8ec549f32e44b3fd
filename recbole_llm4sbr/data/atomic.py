"""Reading RecBole's atomic files strictly: what another reader would shift, cut or misread is an error with its line; and cells that
RecBole's reader gives back as they are."""

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_llm4sbr.base.errors import UserError


def read_header(path: Path) -> list[str]:
    """The `name:type` cells of an atomic file's first line.

    Raises:
        UserError: the file is not a RecBole atomic file in UTF-8, or a column stands in it twice.
    """
    with open(path, "rb") as handle:
        line = handle.readline(1_000_000)
    if line[:2] in (b"\x1f\x8b", b"PK"):
        raise UserError(f"{str(path)!r} is compressed; unpack it")
    if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{str(path)!r} is UTF-16; save it as UTF-8")
    cells = decode(path, line).rstrip("\r\n").split("\t")
    if not all(cell.partition(":")[1] for cell in cells):
        raise UserError(
            f"{str(path)!r} is not a RecBole atomic file: its first line must be tab-separated name:type cells, not {cells[0][:60]!r}"
        )
    names = [cell.partition(":")[0] for cell in cells]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{str(path)!r} has two columns named {twice!r}; rename one")
    return cells


def column_names(path: Path) -> list[str]:
    """The names of an atomic file's columns, without their types.

    Raises:
        UserError: as `read_header`.
    """
    return [cell.partition(":")[0] for cell in read_header(path)]


def read_table(path: Path) -> pd.DataFrame:
    """An atomic file as text columns named without their types; empty cells are empty strings.

    Raises:
        UserError: the file is not a RecBole atomic file in UTF-8, or a line has more or fewer cells than the first.
    """
    names = column_names(path)
    data = path.read_bytes()
    decode(path, data)
    _check_lines(path, data, len(names))
    table = pd.read_csv(
        io.BytesIO(data), sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE, encoding="utf-8-sig", lineterminator="\n",
        index_col=False, names=names, skiprows=1,
    )  # fmt: skip
    if b"\r\n" in data:
        table[names[-1]] = table[names[-1]].str.removesuffix("\r")
    return table


def line_of(path: Path, row: int) -> int:
    """The number of the line in which a row of `read_table` stands, from 1; empty lines hold no row."""
    with open(path, "rb") as lines:
        return [number for number, line in enumerate(lines, 1) if line != b"\n"][row + 1]


def quoted(cells: "pd.Series[str]") -> "pd.Series[str]":
    """Cells to write, which RecBole's reader takes for a quotation where they begin with a quote; `unquoted` gives them back.

    >>> quoted(pd.Series(['"Heroes" live', 'the 12" mix'])).tolist()
    ['\"\"\"Heroes\"\" live\"', 'the 12\" mix']
    """
    return cells.where(~cells.str.startswith('"'), '"' + cells.str.replace('"', '""') + '"')


def unquoted(cells: "pd.Series[str]") -> "pd.Series[str]":
    """Cells of a prepared file as they were before `quoted`; one that is no whole quotation stays as it is."""
    return cells.where(~cells.str.fullmatch('"(?:[^"]|"")*"'), cells.str.slice(1, -1).str.replace('""', '"'))


def decode(path: Path, data: bytes) -> str:
    """UTF-8 as text, without a byte order mark.

    Raises:
        UserError: it is not UTF-8; names the line.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{str(path)!r}, line {line}, is not UTF-8; convert the file, for instance with `iconv -f windows-1252 -t utf-8`"
        ) from None


def _check_lines(path: Path, data: bytes, cells: int) -> None:
    """Refuse lines of another number of cells, and NUL bytes, behind which a reader sees nothing.

    Raises:
        UserError: names the first such line.
    """
    signs = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(signs == ord("\n"))
    ends = np.r_[ends, len(signs)] if not data.endswith(b"\n") else ends
    tabs = np.diff(np.searchsorted(np.flatnonzero(signs == ord("\t")), ends), prepend=0)
    empty = np.diff(ends, prepend=-1) == 1
    if (wrong := np.flatnonzero((tabs != cells - 1) & ~empty)).size:
        raise UserError(
            f"{str(path)!r}, line {wrong[0] + 1}, has {tabs[wrong[0]] + 1} tab-separated cells; the first line names {cells}"
        )
    if (nul := data.find(b"\0")) >= 0:
        line = data.count(b"\n", 0, nul) + 1
        raise UserError(f"{str(path)!r}, line {line}, holds a NUL byte; remove it")
