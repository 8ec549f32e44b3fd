"""Times of a click log as seconds, whichever of the usual forms they have."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.data.cells import as_text
from recbole_llm4sbr.data.tables import Table

Seconds = npt.NDArray[np.float64]
# The present in seconds, milliseconds, microseconds and nanoseconds lies far apart: a number of at least 1e11 is no second before the
# year 5138, and 1e11 milliseconds is the year 1973.
_UNITS = ((1e11, 1.0, "seconds"), (1e14, 1e3, "milliseconds"), (1e17, 1e6, "microseconds"), (np.inf, 1e9, "nanoseconds"))
_TELLING = 1e8  # smaller numbers are no clock's and tell nothing about the unit
LEAVE_OUT = ", or leave such rows out with --bad_rows=drop"
_NO_TIME = (
    "is not a time; write ISO 8601, as 2024-01-31T18:05:00Z, or seconds, or say its form with --time_format='%d.%m.%Y %H:%M'"
)
_ZONE = r":.*(?:[Zz]|[+-]\d\d(?::?\d\d)?)$"


@dataclass(frozen=True)
class _Read:
    """Times as they were read.

    Attributes:
        seconds: since 1970 (UTC), nan where a value is no time.
        kind: what they were, in words.
        reason: why a row's value is none, and the next step.
    """

    seconds: Seconds
    kind: str
    reason: Callable[[int], str]


def to_seconds(table: Table, column: str, form: str | None = None) -> tuple[Seconds, str]:
    """The times of a column in seconds since 1970 (UTC), and in words what they were.

    ISO 8601 dates with or without a time and a zone, dates of 8 digits, and numbers of seconds, milliseconds, microseconds or
    nanoseconds are told apart; times without a zone are UTC.

    Args:
        table, column: where they stand.
        form: how they are written, in the signs of Python's `strptime`, where it is none of these.

    Raises:
        UserError: names the first value that is no time, or that is of another unit than the others, with its line.
    """
    read = _read(table.frame[column], form)
    missing = np.isnan(read.seconds)
    if missing.any():
        row = int(np.argmax(missing))
        table.refuse(row, column, as_text(table.frame[column])[row], f"{read.reason(row)}{LEAVE_OUT}")
    return read.seconds, read.kind


def unreadable(table: Table, column: str, form: str | None = None) -> npt.NDArray[np.bool_]:
    """Which rows `to_seconds` would refuse."""
    return np.isnan(_read(table.frame[column], form).seconds)


def _read(values: pd.Series, form: str | None) -> _Read:
    if pd.api.types.is_datetime64_any_dtype(values):
        return _of_dates(pd.to_datetime(values, utc=True), f"dates{_zone(values.dt.tz is not None)}")
    texts = as_text(values).str.strip()
    if form is not None:
        try:
            dates = pd.to_datetime(texts, format=form, utc=True, errors="coerce")
        except ValueError as error:
            raise UserError(f"--time_format={form!r} is no form of times ({error}); write it as '%d.%m.%Y %H:%M'") from None
        return _of_dates(
            dates, f"dates as {form}{_zone('%z' in form or '%Z' in form)}", f"is no time of the form {form}; mend it"
        )
    numbers = pd.to_numeric(texts, errors="coerce").to_numpy(np.float64)
    finite = np.isfinite(numbers)
    if not finite.any() or finite.mean() < 0.5:
        spelled = texts.str.replace(r"\s*(?:UTC|GMT)$", "Z", regex=True)
        dates = pd.to_datetime(spelled, format="ISO8601", utc=True, errors="coerce")
        zoned = spelled.str.contains(_ZONE, regex=True).all()
        return _of_dates(dates.mask(pd.Series(finite)), f"ISO dates{_zone(bool(zoned))}")
    if texts[finite].str.fullmatch(r"(?:19|20|21)\d{6}").all():
        dates = pd.to_datetime(texts, format="%Y%m%d", utc=True, errors="coerce")
        if dates[finite].notna().all():
            return _of_dates(dates, "dates of 8 digits")
    return _of_numbers(np.where(finite, numbers, np.nan))


def _zone(zoned: bool) -> str:
    return "" if zoned else " without a zone, taken as UTC,"


def _of_dates(dates: pd.Series, kind: str, reason: str = _NO_TIME) -> _Read:
    seconds = (dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    return _Read(seconds.to_numpy(np.float64), f"{kind} -> seconds", lambda _: reason)


def _of_numbers(numbers: Seconds) -> _Read:
    """Numbers as seconds by their size; those of another unit than most are no times."""
    unit = np.searchsorted([bound for bound, _, _ in _UNITS[:-1]], np.abs(numbers), side="right")
    telling = np.abs(numbers) >= _TELLING
    usual = int(np.bincount(unit[telling]).argmax()) if telling.any() else 0
    _, per_second, name = _UNITS[usual]

    def reason(row: int) -> str:
        if np.isnan(numbers[row]):
            return "is not a number, as the other times are; mend it"
        return f"is in {_UNITS[unit[row]][2]} where most times are in {name}; use one unit"

    seconds = np.where(telling & (unit != usual), np.nan, numbers) / per_second
    return _Read(seconds, name if per_second == 1 else f"{name} -> seconds", reason)


def written(seconds: Seconds) -> list[str]:
    """Seconds as they stand in a file, with no more decimals than they need.

    >>> written(np.array([1700000000.0, 1700000000.25]))
    ['1700000000', '1700000000.25']
    """
    return [str(int(each)) if each == int(each) else f"{each:.6f}".rstrip("0") for each in seconds.tolist()]
