"""Tables from elsewhere, CSV, TSV, JSON lines, Parquet or a data frame, as one form that can name the line of a row."""

import csv
import gzip
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.wording import printable
from recbole_llm4sbr.data.atomic import decode

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")
_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Table:
    """A table and where it came from.

    Attributes:
        frame: rows numbered from 0, columns named by texts; of a CSV file all cells are texts as they stand there.
        name: what messages call it.
        text: of a file with lines, its content.
        separator: of a CSV file; "" for JSON lines.
        escape: of a CSV file, the sign before a quote that belongs to a cell, where it is not a quote; None where it is.
    """

    frame: pd.DataFrame
    name: str
    text: str = ""
    separator: str = ""
    escape: str | None = None

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self.frame.columns)

    def listed(self) -> str:
        """The columns for a message, the first 30 of them."""
        names = [printable(name)[:_SHOWN] for name in self.columns]
        return ", ".join(names[:30]) + (f" and {len(names) - 30} more" if len(names) > 30 else "")

    def place(self, row: int) -> str:
        """Where a row stands: its first line in the file, or its number from 1 on where there are no lines."""
        if self.text and not self.separator:
            return f"line {[number for number, line in enumerate(self.text.split(chr(10)), 1) if line.strip()][row]}"
        if self.text:
            try:
                lines = io.StringIO(self.text, newline="")
                reader, seen, first = csv.reader(lines, delimiter=self.separator, escapechar=self.escape), -1, 1
                for cells in reader:
                    if cells and seen == row:
                        return f"line {first}"
                    seen, first = seen + bool(cells), reader.line_num + 1
            except csv.Error:  # a cell beyond the limit of Python's reader
                pass
        return f"row {row + 1}"

    def refuse(self, row: int, column: str, value: Any, reason: str) -> NoReturn:
        """Raise the error of a cell.

        Raises:
            UserError: always; names the table, the line, the column, the value and the reason.
        """
        shown = value if isinstance(value, str) else str(value)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        raise UserError(f"{self.name}, {self.place(row)}: {printable(column)}={shown!r} {reason}")


def read_table_of(source: str | Path | pd.DataFrame, what: str) -> Table:
    """A table from a file or a data frame.

    Args:
        source: a path ending in .csv, .tsv, .jsonl, .ndjson (any of them also with .gz), .parquet or .pq, or a data frame.
        what: what messages call a data frame.

    Raises:
        UserError: the file is missing, of another kind or damaged, holds no row, or a column stands in it twice.
    """
    if isinstance(source, pd.DataFrame):
        table = Table(source.reset_index(drop=True).rename(columns=str), f"the data frame {what}")
    else:
        table = _read_file(Path(source))
    names = table.columns
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{table.name} has two columns named {twice!r}; rename one")
    if table.frame.empty:
        raise UserError(f"{table.name} holds no rows; name a file that does")
    return table


def _read_file(path: Path) -> Table:
    name = repr(str(path))
    kind = path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if kind not in SUFFIXES or (path.suffix.lower() == ".gz" and kind in (".parquet", ".pq")):
        raise UserError(f"{name} must end in one of {', '.join(SUFFIXES)} (text files also in .gz), which says how it is read")
    if not path.is_file():
        raise UserError(f"there is no file {name}; check the path")
    if kind in (".parquet", ".pq"):
        return Table(_read_parquet(path).reset_index(drop=True).rename(columns=str), name)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise UserError(f"{name} cannot be read ({error}); pack it again or check its permissions") from None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{name} is UTF-16; save it as UTF-8")
    text = decode(path, data)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{name}, line {line}, holds a NUL byte; remove it")  # pandas would cut the cell there
    if kind in (".jsonl", ".ndjson"):
        return Table(_read_json_lines(name, text), name, text)
    separator = "\t" if kind == ".tsv" else _separator(text)
    escape = _escape(text, separator)
    return Table(_read_separated(name, text, separator, escape), name, text, separator, escape)


def _separator(text: str) -> str:
    """The sign between the cells of a CSV file: of comma, semicolon and tab, the one that its first line has most of."""
    first = text.partition("\n")[0]
    return max(",;\t", key=first.count)


def _escape(text: str, separator: str) -> str | None:
    r"""A backslash, where one stands before a quote that does not end its cell, as databases and Spark write them; else None.

    >>> _escape(r'"a \"b\" c",d', ","), _escape(r'"C:\",d', ",")
    ('\\', None)
    """
    ends = rf"{separator}\r\n"
    if re.search(rf'\\"[^"{ends}]', text):
        return "\\"
    if not re.search(rf'\\""(?:[{ends}]|\Z)', text):
        return None
    try:  # `\""` is also a backslash and a quote that is doubled: then the file is regular
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        return None if len({len(cells) for cells in lines if cells}) == 1 else "\\"
    except csv.Error:
        return "\\"


def _read_separated(name: str, text: str, separator: str, escape: str | None) -> pd.DataFrame:
    """Cells as texts; an empty cell is an empty text.

    Raises:
        UserError: a line has more cells than the first, a quotation does not end, or a column stands there twice.
    """
    try:
        heads = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator, escapechar=escape), [])
        frame = pd.read_csv(io.StringIO(text, newline=""), sep=separator, dtype=str, keep_default_na=False, escapechar=escape)
    except pd.errors.EmptyDataError:
        raise UserError(f"{name} is empty; its first line must name the columns") from None
    except (pd.errors.ParserError, csv.Error) as error:
        said = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        raise UserError(f"{name} is not regular: {said}; put cells that hold {separator!r} or a quote into quotes") from None
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes a further cell on every line for a name of the row
        raise UserError(f"{name}: the lines have more cells than the first, which names {len(heads)} columns; name them all")
    if len(heads) == len(frame.columns):
        frame.columns = pd.Index(heads, dtype=object)  # pandas renames the second of two equal names
    return frame


def _read_json_lines(name: str, text: str) -> pd.DataFrame:
    """Objects, one a line; whole numbers stay whole also where some are missing.

    Raises:
        UserError: names the first line that is no JSON object.
    """
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}, line {number}, is not JSON ({str(error)[:80]}); write one object a line") from None
        if not isinstance(value, dict):
            raise UserError(f"{name}, line {number}, is not a JSON object; write one object a line")
        rows.append(value)
    return pd.DataFrame(rows, dtype=object)


def _read_parquet(path: Path) -> pd.DataFrame:
    """A Parquet file.

    Raises:
        UserError: pyarrow is not installed, or the file is none.
    """
    try:
        frame: pd.DataFrame = pd.read_parquet(path, engine="pyarrow", dtype_backend="numpy_nullable")
    except ImportError:
        raise UserError(f"reading {str(path)!r} needs pyarrow; run `pip install pyarrow`, or save the table as CSV") from None
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise UserError(f"{str(path)!r} is not a Parquet file that can be read ({str(error)[:80]}); write it again") from None
    return frame
