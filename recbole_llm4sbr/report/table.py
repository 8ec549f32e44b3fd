"""A table of the report, as Markdown and as HTML."""

import html
from collections.abc import Iterable
from dataclasses import dataclass, field


def _one_line(text: str) -> str:
    """Text that fits a Markdown cell."""
    return " ".join(text.split()).replace("|", "\\|")


@dataclass
class Table:
    """A table of the report.

    Attributes:
        title, how: headline, and how its numbers were made.
        head: names of the columns.
        rows: cells.
        texts: how many of the first columns are text.
        best: (row, column) of cells in bold.
    """

    title: str
    how: str
    head: list[str]
    rows: list[list[str]]
    texts: int = 2
    best: set[tuple[int, int]] = field(default_factory=set)

    def markdown(self) -> list[str]:
        """The lines of the table."""

        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(cells) + " |"

        rule = ["---" if column < self.texts else "---:" for column in range(len(self.head))]
        body = [
            line(f"**{cell}**" if (row, column) in self.best else cell for column, cell in enumerate(map(_one_line, cells)))
            for row, cells in enumerate(self.rows)
        ]
        return [f"### {self.title}", "", self.how, "", line(self.head), line(rule), *body, ""]

    def html(self) -> str:
        """The table as HTML."""

        def cell(tag: str, text: str, column: int, bold: bool = False) -> str:
            text = html.escape(text)
            kind = "" if column < self.texts else " class=n"
            return f"<{tag}{kind}>{'<b>' + text + '</b>' if bold else text}</{tag}>"

        head = "".join(cell("th", text, column) for column, text in enumerate(self.head))
        rows = "".join(
            "<tr>"
            + "".join(cell("td", text, column, (row, column) in self.best) for column, text in enumerate(cells))
            + "</tr>\n"
            for row, cells in enumerate(self.rows)
        )
        return (
            f"<h3>{html.escape(self.title)}</h3>\n<p class=how>{html.escape(self.how)}</p>\n"
            f"<div class=scroll><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
        )
