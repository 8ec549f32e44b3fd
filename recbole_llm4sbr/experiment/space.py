"""Search spaces in RecBole's form, `name kind values` by line, checked before anything runs."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import PROPERTIES
from recbole_llm4sbr.base.settings import parse_value

KINDS = {"choice": 1, "uniform": 2, "quniform": 3, "randint": 2, "loguniform": 2}  # and how many numbers each takes


@dataclass(frozen=True)
class Dimension:
    """What a setting may be.

    Attributes:
        kind: one of `KINDS`.
        values: of `choice` all values; else low and high, for `quniform` and the step. `loguniform` is of the numbers themselves here.
    """

    kind: str
    values: tuple[Any, ...]

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values that must all be good for the search to be."""
        if self.kind == "choice":
            return self.values
        low, high = self.values[:2]
        return (low, high - 1) if self.kind == "randint" else (low, high)

    def of_whole_numbers(self) -> "Dimension":
        """For a setting that is a whole number: `quniform` in whole steps."""
        if self.kind != "quniform" or any(value != int(value) for value in self.values):
            return self
        return Dimension("qrandint", tuple(int(value) for value in self.values))

    def of_tune(self, grid: bool) -> Any:
        """As Ray Tune's."""
        from ray import tune

        if self.kind == "choice":
            return tune.grid_search(list(self.values)) if grid else tune.choice(list(self.values))
        return getattr(tune, self.kind)(*self.values)


def read_space(name: str, grid: bool = False) -> dict[str, Dimension]:
    """Read a `.hyper` file.

    Args:
        name: a path, or the name of a shipped one (`default`, `paper`, `k-lambda`, `cosine`).
        grid: whether a grid is to be searched, which needs choices.

    Returns:
        Dimensions by setting.

    Raises:
        UserError: no such file, or a line that is not understood, with its number.
    """
    path = PROPERTIES / "tune" / f"{name}.hyper"
    if not path.is_file():
        path = Path(name)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        shipped = sorted(each.stem for each in (PROPERTIES / "tune").glob("*.hyper"))
        raise UserError(f"there is no search space {name!r}; give a file, or one of {', '.join(shipped)}") from None
    space: dict[str, Dimension] = {}
    for number, line in enumerate(lines, 1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        where = f"{str(path)!r}, line {number}: {text!r}"
        key, kind, values = (text.split(None, 2) + ["", ""])[:3]
        if kind not in KINDS:
            raise UserError(f"{where} is not understood; write it as `name kind values`, kind one of {', '.join(KINDS)}")
        if key in space:
            raise UserError(f"{where} names {key!r} again")
        space[key] = _dimension(kind, values, where)
        if grid and kind != "choice":
            raise UserError(f"{where} is no list of values; --search=grid needs `choice [...]` for every setting")
    if not space:
        raise UserError(f"{str(path)!r} names no setting to search")
    return space


def _dimension(kind: str, text: str, where: str) -> Dimension:
    if kind == "choice":
        values = parse_value(text)
        if not isinstance(values, list) or not values:
            raise UserError(f"{where} must give its values as [a, b, c]")
        return Dimension(kind, tuple(values))
    try:
        numbers = [int(part) if kind == "randint" else float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != KINDS[kind] or not numbers[0] < numbers[1]:
        raise UserError(f"{where} must give {KINDS[kind]} numbers with commas between them, the lower first")
    if kind == "loguniform":
        numbers = [math.exp(number) for number in numbers]
    return Dimension(kind, tuple(numbers))
