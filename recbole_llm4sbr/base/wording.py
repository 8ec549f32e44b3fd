"""How values, durations and tables read, wherever they are printed."""

import json
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(45), duration(600), duration(9000)
    ('45 s', '10 min', '2.5 h')
    """
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def printable(text: str) -> str:
    """Text from elsewhere on one line, without what could command a terminal.

    >>> printable("\\x1b[31mred\\x1b[0m and\\n\\tmore")
    '[31mred[0m and more'
    """
    spaced = " ".join(text.split())
    return "".join(sign for sign in spaced if unicodedata.category(sign) not in ("Cc", "Cf", "Cs"))


def percent(share: float | None) -> str:
    """A share as it is read; a dash for none.

    >>> percent(0.1234), percent(None)
    ('12.3 %', '-')
    """
    return "-" if share is None else f"{100 * share:.1f} %"


def shortened(text: str, longest: int) -> str:
    """Text from elsewhere on one line, harmless, and at most so many characters; dots stand for what is cut off.

    >>> shortened("a title that does not end", 12), shortened("short", 12)
    ('a title t...', 'short')
    """
    said = printable(text[: 8 * longest])  # a text may have any length
    return said if len(said) <= longest and len(text) <= 8 * longest else said[: longest - 3] + "..."


def show(value: Any, digits: int = 6) -> str:
    """A setting's value as it would be typed; numbers in so many significant digits.

    >>> show(0.00001), show([5, 10]), show(True), show(None), show("gate"), show(0.123456, digits=4)
    ('1e-05', '[5, 10]', 'true', 'null', 'gate', '0.1235')
    """
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return json.dumps(value).replace('"', "") if isinstance(value, list | bool) or value is None else str(value)


def as_options(settings: Mapping[str, Any]) -> str:
    """Settings as they would be typed behind a command, each with a space before it.

    >>> as_options({"split": "paper", "views": ["long", "short"]})
    " --split=paper '--views=[long, short]'"
    """
    return "".join(f" {shlex.quote(f'--{key}={show(value)}')}" for key, value in settings.items())


def show_settings(settings: Mapping[str, Any], digits: int = 4) -> str:
    """Settings in a line.

    >>> show_settings({"intent_k": 3, "intent_lambda": 0.05})
    'intent_k=3, intent_lambda=0.05'
    """
    return ", ".join(f"{key}={show(value, digits)}" for key, value in settings.items())


def aligned(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as columns of equal width under their names; an absent value is a dash.

    >>> print(aligned([{"model": "SRGNN", "answers": 12328}, {"model": "NARM", "answers": None}]))
    model  answers
    SRGNN  12,328
    NARM   -
    """
    columns = list(rows[0])
    cells = [columns] + [
        [f"{value:,.0f}" if isinstance(value, int | float) else printable(str(value or "-")) for value in row.values()]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells)


def beginning(one: str, other: str) -> int:
    """How many characters two texts have in common from the start.

    >>> beginning("SKU-00012", "SKU-00021")
    7
    """
    return next((place for place, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
