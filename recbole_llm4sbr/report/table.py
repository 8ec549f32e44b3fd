"""A table of the report, as Markdown and as HTML."""

import html
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from recbole_llm4sbr.report.statistics import ONE_SEED, UNFINISHED_RUN

POPULARITY, COST, TRAINING, FAILED = (
    "Popular and rare targets",
    "Time and memory",
    "Validation by epoch",
    "Cells without a result",
)
CHANCE = "inside chance"  # how a verdict reads that finds no difference
_KINDS = {"better": "better", "worse": "worse", CHANCE: "chance", "no": "chance", ONE_SEED: "open", UNFINISHED_RUN: "open"}


def _one_line(text: str) -> str:
    """Text that fits a Markdown cell."""
    return " ".join(text.split()).replace("|", "\\|")


@dataclass
class Table:
    """A table of the report.

    Attributes:
        title, how: headline, and how its numbers were made.
        head: names of the columns.
        rows: cells; what stands behind a line break is smaller on the page.
        texts: how many of the first columns are text.
        best: (row, column) of cells in bold.
        section: of the page, which a figure may share; the title unless told otherwise.
    """

    title: str
    how: str
    head: list[str]
    rows: list[list[str]]
    texts: int = 2
    best: set[tuple[int, int]] = field(default_factory=set)
    section: str = ""

    def __post_init__(self) -> None:
        """Stand in a section of its own unless told otherwise."""
        self.section = self.section or self.title

    def lines(self) -> list[str]:
        """The table alone, as lines of Markdown."""

        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(cells) + " |"

        rule = ["---" if column < self.texts else "---:" for column in range(len(self.head))]
        body = [
            line(f"**{cell}**" if (row, column) in self.best else cell for column, cell in enumerate(map(_one_line, cells)))
            for row, cells in enumerate(self.rows)
        ]
        return [line(self.head), line(rule), *body, ""]

    def markdown(self) -> list[str]:
        """The table with its headline, as lines of Markdown."""
        return [f"### {self.title}", "", self.how, "", *self.lines()]

    def html(self) -> str:
        """The table alone, in a box that scrolls sideways where it is too wide."""
        head = "".join(self._cell("th", html.escape(text), column) for column, text in enumerate(self.head))
        rows = "".join(
            "<tr>" + "".join(self._cell("td", self._shown(row, column), column) for column in range(len(cells))) + "</tr>\n"
            for row, cells in enumerate(self.rows)
        )
        label = html.escape(self.title, quote=True)
        return (
            f'<div class=scroll tabindex=0 role=region aria-label="{label}"><table><thead><tr>{head}</tr></thead>\n'
            f"<tbody>{rows}</tbody></table></div>\n"
        )

    def of_one_model(self) -> tuple[str, "Table"]:
        """The model of all rows, and the table without its column; "" and the table as it is where there are several."""
        models = {row[0] for row in self.rows}
        if self.head[0] != "model" or self.texts < 2 or len(models) > 1:
            return "", self
        narrow = replace(
            self, head=self.head[1:], rows=[row[1:] for row in self.rows], texts=self.texts - 1,
            best={(row, column - 1) for row, column in self.best},
        )  # fmt: skip
        return models.pop(), narrow

    def _cell(self, tag: str, content: str, column: int) -> str:
        """A cell: of a column of numbers, of one of long names, which may break anywhere, or of another."""
        long = any(len(row[column]) > 16 for row in self.rows)
        kind = " class=n" if column >= self.texts else " class=name" if long else ""
        return f"<{tag}{kind}>{content}</{tag}>"

    def _shown(self, row: int, column: int) -> str:
        """What stands in a cell, as HTML."""
        text = self.rows[row][column]
        if column >= self.texts:
            text = text.replace(" ± ", "\n± ").replace(" / ", "\n/ ").replace(" %", "\u00a0%").replace(", ", ",\u00a0")
        first, *others = map(_marked, text.split("\n"))
        said = f"<b>{first}</b>" if (row, column) in self.best else first
        said += "".join(f"<small>{other}</small>" for other in others)
        return said if column >= self.texts else said.replace(",", ",<wbr>").replace("+", "<wbr>+")


def _marked(text: str) -> str:
    """Text as HTML; a verdict in its colour."""
    escaped = html.escape(text)
    return f"<span class={_KINDS[text]}>{escaped}</span>" if text in _KINDS else escaped
