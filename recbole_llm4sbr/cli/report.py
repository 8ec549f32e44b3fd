"""Verb `report`, and the report at the end of grids and searches."""

from collections.abc import Sequence
from pathlib import Path

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.wording import aligned
from recbole_llm4sbr.cli.parsing import Arguments, Option, Verb

USAGE = """\
usage: recbole-llm4sbr report FOLDER... [--markdown=FOLDER] [--html=FILE]

Writes the report of grids and searches again, from the folders of compare, ablate and tune (their --out).
"""


def run(arguments: Arguments) -> int:
    """Write the report of the folders."""
    if not arguments.words:
        raise UserError("report needs the folders of compare, ablate or tune (their --out), as `report comparison`")
    first = arguments.words[0]
    options = arguments.options
    write_report(arguments.words, options["markdown"] or first, options["html"] or str(Path(first) / "report.html"))
    return 0


def write_report(folders: Sequence[str], markdown: str, page: str) -> None:
    """Write the report, and print the first table of each section."""
    from recbole_llm4sbr.report.page import report

    written, tables = report(folders, markdown, page)
    for title, (first, *_) in tables.items():
        print(f"\n{title}: {first.title}\n" + aligned([dict(zip(first.head, row)) for row in first.rows]))
    print("written: " + ", ".join(map(str, written)))


VERB = Verb(
    "report",
    "the report again, of several grids if you like",
    USAGE,
    run,
    (
        Option("markdown", "folder for one <dataset>.md each; by default the first folder"),
        Option("html", "the page, which needs no network; by default report.html in the first folder"),
    ),
    words="FOLDER...",
    takes_settings=False,
)
