"""Cells of tables from elsewhere as text that a RecBole atomic file can hold."""

import html
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.names import MISSING

_MISSING_TEXTS = MISSING - {""} | {"\\N"}  # the sign of databases in their exports
ROUNDED = "is a number that a spreadsheet rounded; format the column as text in the original table and save it again"
_EXPONENT = re.compile(r"-?\d(?:[.,](\d+))?[eE]\+(\d+)")
_ENTITY = re.compile(r"&(?:#\d+|#[xX][\da-fA-F]+|[A-Za-z]\w*);")
# What ends a line for some reader, separates cells, commands a terminal or cannot be written as UTF-8.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def as_text(values: pd.Series) -> pd.Series:
    """A column as texts; what is missing is empty, a whole number has no decimals, and a list is its members with commas between.

    >>> as_text(pd.Series([1.0, None, 2.5])).tolist(), as_text(pd.Series([["a", "b"], 7, "x"])).tolist()
    (['1', '', '2.5'], ['a, b', '7', 'x'])
    """
    if pd.api.types.infer_dtype(values, skipna=False) == "string":
        return values.astype(object)
    if pd.api.types.is_integer_dtype(values) and not values.hasnans:
        return values.astype(str).astype(object)
    return pd.Series([_text(value) for value in values.astype(object)], dtype=object)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise UserError(f"the bytes {bytes(value[:20])!r} are no text in UTF-8; give their column as texts") from None
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(filter(None, map(_text, value)))
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if not isinstance(value, float | np.floating):
        return str(value)
    number = float(value)
    if math.isnan(number):
        return ""
    if number.is_integer() and abs(number) >= 2**53:
        raise UserError(f"the number {number!r} is too large to be exact; give its column as whole numbers or texts")
    return str(int(number)) if number.is_integer() else str(value)


def is_rounded(text: str) -> bool:
    """Whether a number stands there with fewer digits than it has, as spreadsheets show and save long ones.

    >>> is_rounded("4.01235E+12"), is_rounded("1.700000000e+09"), is_rounded("4012350000000")
    (True, False, False)
    """
    found = _EXPONENT.fullmatch(text) if "+" in text else None
    return found is not None and len(found[1] or "") < int(found[2])


def is_missing(texts: pd.Series) -> npt.NDArray[np.bool_]:
    """Which texts are none, but what a program writes for a missing value, such as nan, None or NULL."""
    found: npt.NDArray[np.bool_] = texts.str.strip().isin(_MISSING_TEXTS).to_numpy()
    return found


def one_line(texts: pd.Series) -> list[str]:
    """Texts on one line each, words separated by one blank, without control characters; quotes and markup stay, HTML's `&amp;` is `&`.

    A blank goes before a quote that a text begins with, since RecBole's reader takes a cell that begins so for a quotation.

    >>> one_line(pd.Series(['The\\tThing\\r\\n (1982)', 'say "hi"', '"Heat"', '\\x1b[31mred', 'Tom &amp; Jerry', 'AT&T']))
    ['The Thing (1982)', 'say "hi"', ' "Heat"', '[31mred', 'Tom & Jerry', 'AT&T']
    """
    plain = [_ENTITY.sub(lambda entity: html.unescape(entity[0]), text) for text in texts]
    found = [" ".join(_CONTROL.sub(" ", text).split()) for text in plain]
    return [f" {text}" if text.startswith('"') else text for text in found]


def has_control(text: str) -> bool:
    """Whether a text holds a sign that no id may have."""
    return bool(_CONTROL.search(text))


def column_name(name: str, taken: Sequence[str]) -> str:
    """A column's name as it may stand in an atomic file's first line and in the braces of `item_text`; unlike those taken.

    >>> column_name("Brand name", []), column_name("price:float", []), column_name("title", ["title"])
    ('Brand_name', 'price_float', 'title_2')
    """
    plain = re.sub(r"\W+", "_", name).strip("_") or "column"
    found, number = plain, 1
    while found in taken:
        number += 1
        found = f"{plain}_{number}"
    return found
