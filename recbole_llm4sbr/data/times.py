"""Times of a click log as seconds, whichever of the usual forms they have."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.data.cells import ROUNDED, as_text, is_rounded
from recbole_llm4sbr.data.tables import Table

Seconds = npt.NDArray[np.float64]
_DAY = 86_400.0
_FIRST = 631_152_000.0  # 1990: no click log is older, and fewer seconds are no clock's
_SECONDS = (1e8, 1e10)  # 1973 to 2286; a raw file may hold older or planned times, as `import` writes them where it is told to
LEAVE_OUT = ", or leave such rows out with --bad_rows=drop"
_NO_TIME = (
    "is not a time; write ISO 8601, as 2024-01-31T18:05:00Z, or seconds, or say its form with --time_format='%d.%m.%Y %H:%M'"
)
_ELSEWHEN = "lies outside 1990 to tomorrow"
_ANYWHEN = "mend it, or say the form or the unit of the times with --time_format where they are right"
_ZONE = r":.*(?:[Zz]|[+-]\d\d(?::?\d\d)?)$"


@dataclass(frozen=True)
class _Form:
    """A form in which a number is a time.

    Attributes:
        name: for people.
        per_second: what a second adds to the number.
        zero: the number 0 in seconds since 1970.
        layout: of numbers whose digits are a date, in the signs of `strptime`; "" for numbers that count.
    """

    name: str
    per_second: float = 1.0
    zero: float = 0.0
    layout: str = ""

    def number(self, second: float) -> float:
        """How a second since 1970 is written."""
        if self.layout:
            return float(datetime.fromtimestamp(second, timezone.utc).strftime(self.layout))
        return (second - self.zero) * self.per_second

    def seconds(self, numbers: Seconds) -> Seconds:
        """Seconds since 1970; nan where digits are no date."""
        if self.layout:
            digits = pd.Series(numbers).map("{:.15g}".format)
            return _since_1970(pd.to_datetime(digits, format=self.layout, utc=True, errors="coerce"))
        seconds = numbers / self.per_second + self.zero
        return seconds if self.per_second >= 1 else np.round(seconds, 3)  # a part of a day has no more digits


_UNITS = {
    form.name: form
    for form in (
        _Form("seconds"),
        _Form("milliseconds", 1e3),
        _Form("microseconds", 1e6),
        _Form("nanoseconds", 1e9),
        _Form("days", 1 / _DAY),
    )
}
# Their numbers from 1990 to now lie apart, but for the ticks (100 ns since the year 1), which are also nanoseconds of early 1990.
_LARGE = (
    *(_UNITS[name] for name in ("seconds", "milliseconds", "microseconds")),
    _Form(".NET ticks", 1e7, -62_135_596_800.0),
    _UNITS["nanoseconds"],
    _Form("dates of 12 digits", layout="%Y%m%d%H%M"),
    _Form("dates of 14 digits", layout="%Y%m%d%H%M%S"),
)
# Their numbers may also be seconds that count from a beginning of their own; so nearly all must be of the form.
_NEARLY_ALL = 0.9
_SMALL = (_Form("dates of 8 digits", layout="%Y%m%d"), _Form("a spreadsheet's days", 1 / _DAY, -25_569 * _DAY))


@dataclass(frozen=True)
class Times:
    """Times as they were read.

    Attributes:
        seconds: since 1970 (UTC), or, of numbers that are no clock's, since a beginning of their own; nan where a value is no time.
        kind: what they were, in words.
        clock: whether they are a clock's.
        reason: why a row's value is no time, and the next step.
    """

    seconds: Seconds
    kind: str
    clock: bool
    reason: Callable[[int], str]


def to_seconds(table: Table, column: str, form: str | None = None) -> Times:
    """The times of a column.

    ISO 8601 dates with or without a time and a zone, dates of 8, 12 and 14 digits, a spreadsheet's days, .NET ticks, and numbers of
    seconds, milliseconds, microseconds or nanoseconds are told apart, and must lie between 1990 and tomorrow; times without a zone are
    UTC. Numbers that are too small for a clock's are taken as seconds since a beginning of their own.

    Args:
        table, column: where they stand.
        form: how they are written, in the signs of Python's `strptime`, or the unit of numbers (seconds, ..., days). Then they may lie
            at any time.

    Raises:
        UserError: names the first value that is no time, or that is of another unit than the others, with its line.
    """
    times = _read(table.frame[column], form)
    missing = np.isnan(times.seconds)
    if missing.any():
        row = int(np.argmax(missing))
        table.refuse(row, column, as_text(table.frame[column])[row], f"{times.reason(row)}{LEAVE_OUT}")
    return times


def unreadable(table: Table, column: str, form: str | None = None) -> npt.NDArray[np.bool_]:
    """Which rows `to_seconds` would refuse."""
    return np.isnan(_read(table.frame[column], form).seconds)


def finest(table: Table, columns: Sequence[str]) -> str | None:
    """Of columns that hold the same times, some as days perhaps, the one that tells most of them apart; None where any differs."""
    read = {column: _read(table.frame[column], None) for column in columns}
    first = read[columns[0]].seconds
    for times in read.values():
        apart = np.abs(times.seconds - first)
        apart = apart[~np.isnan(apart)]
        # The day of a zone begins up to 14 hours before that of UTC.
        if not times.clock or len(apart) < len(first) / 2 or apart.max() >= 2 * _DAY:
            return None
    return max(columns, key=lambda column: len(np.unique(read[column].seconds)))


def no_second(numbers: Seconds, pauses: bool) -> tuple[int, str] | None:
    """The first number of a raw `.inter` file that is no second, and why with the next step; None where there is none.

    Args:
        numbers: all times of the file; small ones count from a beginning of their own.
        pauses: whether pauses between clicks are measured; otherwise the times order them, in whichever unit.
    """
    form, inside = _recognise(numbers)
    step = "write seconds since 1970, or since the first click"
    if form is None or form == _UNITS["seconds"]:
        inside = (numbers >= (-np.inf if form is None else _SECONDS[0])) & (numbers < _SECONDS[1])
    elif pauses:
        divide = f": divide by {form.per_second:,.0f}" if form.name in _UNITS else ""
        return 0, f"is no second: the column holds {form.name}; {step}{divide}"
    if form not in _SMALL and not inside.all():
        row = int(np.argmin(inside))
        return row, _stray(numbers[row], form, step)
    return None


def _recognise(numbers: Seconds) -> tuple[_Form | None, npt.NDArray[np.bool_]]:
    """The form of the numbers that most of them have, and which have it; None for those that are too small for a clock's."""
    last = time.time() + _DAY  # clocks without a zone are up to 14 hours ahead of UTC
    for forms, least in ((_LARGE, 1.0), (_SMALL, max(1.0, _NEARLY_ALL * np.isfinite(numbers).sum()))):
        inside = [(numbers >= form.number(_FIRST)) & (numbers <= form.number(last)) for form in forms]
        best = max(range(len(forms)), key=lambda place: inside[place].sum())
        if inside[best].sum() >= least:
            return forms[best], inside[best]
    return None, np.abs(numbers) < _FIRST


def _stray(number: float, form: _Form | None, step: str) -> str:
    """Why a number is no time where the others are of a form, or of none, and the next step."""
    if form is None:
        return f"{_ELSEWHEN} as {', '.join(each.name for each in _LARGE)}; {step}"
    other, _ = _recognise(np.array([number]))
    if other is not None and other in _LARGE and other != form:
        return f"is in {other.name} where most times are in {form.name}; use one unit"
    return f"{_ELSEWHEN}, where the times are {form.name}; {step}"


def _read(values: pd.Series, form: str | None) -> Times:
    if pd.api.types.is_datetime64_any_dtype(values):
        return _of_dates(pd.to_datetime(values, utc=True), f"dates{_zone(values.dt.tz is not None)}", anywhen=form is not None)
    texts = as_text(values).str.strip()
    if form is not None and form not in _UNITS:
        try:
            if "%" not in form:
                raise ValueError("no unit either")
            dates = pd.to_datetime(texts, format=form, utc=True, errors="coerce")
        except ValueError as error:
            raise UserError(
                f"--time_format={form!r} is no form of times ({error}); write it as '%d.%m.%Y %H:%M', or one of {', '.join(_UNITS)}"
            ) from None
        kind = f"dates as {form}{_zone('%z' in form or '%Z' in form)}"
        return _of_dates(dates, kind, f"is no time of the form {form}; mend it", anywhen=True)
    numbers = pd.to_numeric(texts, errors="coerce").to_numpy(np.float64)
    finite = np.isfinite(numbers)
    if form is None and (not finite.any() or finite.mean() < 0.5):
        spelled = texts.str.replace(r"\s*(?:UTC|GMT)$", "Z", regex=True)
        dates = pd.to_datetime(spelled, format="ISO8601", utc=True, errors="coerce")
        zoned = spelled.str.contains(_ZONE, regex=True).all()
        return _of_dates(dates.mask(pd.Series(finite)), f"ISO dates{_zone(bool(zoned))}")
    exact = finite & ~texts.map(is_rounded).to_numpy(bool)
    return _of_numbers(np.where(exact, numbers, np.nan), finite & ~exact, form)


def _zone(zoned: bool) -> str:
    return "" if zoned else " without a zone, taken as UTC,"


def _since_1970(dates: pd.Series) -> Seconds:
    seconds: Seconds = ((dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)).to_numpy(np.float64)
    return seconds


def _of_dates(dates: pd.Series, kind: str, no_time: str = _NO_TIME, anywhen: bool = False) -> Times:
    """Dates as seconds; unless they may lie anywhen, those before 1990 and after tomorrow are no times."""
    found = _since_1970(dates)
    seconds = found if anywhen else np.where((found >= _FIRST) & (found <= time.time() + _DAY), found, np.nan)

    def reason(row: int) -> str:
        if np.isnan(found[row]):
            return no_time
        return f"{_ELSEWHEN}; {_ANYWHEN}"

    return Times(seconds, f"{kind} -> seconds", True, reason)


def _of_numbers(numbers: Seconds, imprecise: npt.NDArray[np.bool_], unit: str | None) -> Times:
    """Numbers as seconds, by the unit that is given or by the form that most have; of another form, or rounded, they are no times."""
    form, inside = (_UNITS[unit], np.isfinite(numbers)) if unit is not None else _recognise(numbers)
    taken = form or _UNITS["seconds"]
    seconds = np.full(len(numbers), np.nan)
    seconds[inside] = taken.seconds(numbers[inside])
    low, high = (seconds[inside].min(), seconds[inside].max()) if inside.any() else (0.0, 0.0)

    def reason(row: int) -> str:
        if imprecise[row]:
            return ROUNDED
        if np.isnan(numbers[row]):
            return "is not a number, as the other times are; mend it"
        if inside[row]:
            return f"is no date, as the other times are ({taken.name}); mend it"
        return _stray(numbers[row], form, _ANYWHEN)

    if form is None:
        kind = f"numbers from {low:.15g} to {high:.15g}, too small for a clock's, taken as seconds (--time_format names another unit)"
    else:
        kind = taken.name if taken.name == "seconds" else f"{taken.name} -> seconds"
    return Times(seconds, kind, form is not None and (unit is None or bool(low >= _FIRST)), reason)


def written(seconds: Seconds) -> list[str]:
    """Seconds as they stand in a file, with no more decimals than they need.

    >>> written(np.array([1700000000.0, 1700000000.25]))
    ['1700000000', '1700000000.25']
    """
    return [str(int(each)) if each == int(each) else f"{each:.6f}".rstrip("0").rstrip(".") for each in seconds.tolist()]
