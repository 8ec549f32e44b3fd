"""Times of a click log as seconds, whichever of the usual forms they have."""

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_llm4sbr.data.cells import as_text
from recbole_llm4sbr.data.tables import Table

Seconds = npt.NDArray[np.float64]
# The present in seconds, milliseconds, microseconds and nanoseconds lies far apart: a number of at least 1e11 is no second before the
# year 5138, and 1e11 milliseconds is the year 1973.
_UNITS = ((1e11, 1.0, "seconds"), (1e14, 1e3, "milliseconds"), (1e17, 1e6, "microseconds"), (np.inf, 1e9, "nanoseconds"))
_TELLING = 1e8  # smaller numbers are no clock's and tell nothing about the unit
_ZONE = r":.*(?:[Zz]|[+-]\d\d(?::?\d\d)?)$"


def to_seconds(table: Table, column: str) -> tuple[Seconds, str]:
    """The times of a column in seconds since 1970 (UTC), and in words what they were.

    ISO 8601 dates with or without a time and a zone, dates of 8 digits, and numbers of seconds, milliseconds, microseconds or
    nanoseconds are told apart; times without a zone are UTC.

    Raises:
        UserError: names the first value that is no time, or that is of another unit than the others, with its line.
    """
    values = table.frame[column]
    if pd.api.types.is_datetime64_any_dtype(values):
        return _of_dates(table, column, pd.to_datetime(values, utc=True), f"dates{_zone(values.dt.tz is not None)}")
    texts = as_text(values).str.strip()
    numbers = pd.to_numeric(texts, errors="coerce").to_numpy(np.float64)
    finite = np.isfinite(numbers)
    if not finite.any() or finite.mean() < 0.5:
        spelled = texts.str.replace(r"\s*(?:UTC|GMT)$", "Z", regex=True)
        dates = pd.to_datetime(spelled, format="ISO8601", utc=True, errors="coerce")
        zoned = spelled.str.contains(_ZONE, regex=True).all()
        return _of_dates(table, column, dates.mask(pd.Series(finite)), f"ISO dates{_zone(bool(zoned))}")
    if not finite.all():
        row = int(np.argmin(finite))
        table.refuse(row, column, texts[row], "is not a number, as the other times are; mend it, or leave the row out")
    if texts.str.fullmatch(r"(?:19|20|21)\d{6}").all():
        dates = pd.to_datetime(texts, format="%Y%m%d", utc=True, errors="coerce")
        if dates.notna().all():
            return _of_dates(table, column, dates, "dates of 8 digits")
    return _of_numbers(table, column, texts, numbers)


def _zone(zoned: bool) -> str:
    return "" if zoned else " without a zone, taken as UTC,"


def _of_dates(table: Table, column: str, dates: pd.Series, kind: str) -> tuple[Seconds, str]:
    """Dates as seconds; the first that could not be read is an error."""
    missing = dates.isna().to_numpy()
    if missing.any():
        row = int(np.argmax(missing))
        table.refuse(
            row, column, as_text(table.frame[column])[row], "is not a time; write ISO 8601, as 2024-01-31T18:05:00Z, or seconds"
        )
    seconds = (dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    return seconds.to_numpy(np.float64), f"{kind} -> seconds"


def _of_numbers(table: Table, column: str, texts: pd.Series, numbers: Seconds) -> tuple[Seconds, str]:
    """Numbers as seconds by their size; numbers of two units are an error."""
    unit = np.searchsorted([bound for bound, _, _ in _UNITS[:-1]], np.abs(numbers), side="right")
    telling = np.abs(numbers) >= _TELLING
    if not telling.any():
        return numbers, "seconds"
    usual = int(np.bincount(unit[telling]).argmax())
    others = telling & (unit != usual)
    if others.any():
        row = int(np.argmax(others))
        table.refuse(
            row, column, texts[row], f"is in {_UNITS[unit[row]][2]} where most times are in {_UNITS[usual][2]}; use one unit"
        )
    _, per_second, name = _UNITS[usual]
    return numbers / per_second, name if per_second == 1 else f"{name} -> seconds"


def written(seconds: Seconds) -> list[str]:
    """Seconds as they stand in a file, with no more decimals than they need.

    >>> written(np.array([1700000000.0, 1700000000.25]))
    ['1700000000', '1700000000.25']
    """
    return [str(int(each)) if each == int(each) else f"{each:.6f}".rstrip("0") for each in seconds.tolist()]
