"""Verb `report`, and the report at the end of grids and searches."""

from collections.abc import Sequence
from pathlib import Path

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.wording import aligned
from recbole_llm4sbr.cli.parsing import OVERWRITE, Arguments, Option, Verb

USAGE = """\
usage: recbole-llm4sbr report FOLDER... [--markdown=FOLDER] [--html=FILE] [--case=FILE]

Writes the report of grids and searches again, from the folders of compare, ablate and tune (their --out). It begins with the answer: what
intents added on each dataset, by how much, and whether that is more than chance. A note of your own beneath the title of <dataset>.md, of
lines that begin with `>`, stays when the file is written again, and stands on the page too.

  recbole-llm4sbr inspect --checkpoints=plain.pth,llm4sbr.pth --best=1 --html=case.html
  recbole-llm4sbr report comparison --case=case.html                                        with that session on the page
"""


def run(arguments: Arguments) -> int:
    """Write the report of the folders."""
    if not arguments.words:
        raise UserError("report needs the folders of compare, ablate or tune (their --out), as `report comparison`")
    first = arguments.words[0]
    options = arguments.options
    write_report(
        arguments.words,
        options["markdown"] or first,
        options["html"] or str(Path(first) / "report.html"),
        options["case"],
        options["overwrite"],
    )
    return 0


def write_report(folders: Sequence[str], markdown: str, page: str, case: str | None = None, overwrite: bool = False) -> None:
    """Write the report, and print the answer and the first table of each section."""
    from recbole_llm4sbr.report.page import report
    from recbole_llm4sbr.report.verdicts import sentences

    written, parts = report(folders, markdown, page, case, overwrite)
    for title, part in parts.items():
        first = part.tables[0]
        print(f"\n{title}: {first.title}\n" + aligned([dict(zip(first.head, row)) for row in first.rows]))
        print("\n".join(sentence.replace("**", "") for sentence in sentences(part.ladders)))
    print("written: " + ", ".join(map(str, written)))


VERB = Verb(
    "report",
    "the report again, of several grids if you like",
    USAGE,
    run,
    (
        Option("markdown", "folder for one <dataset>.md each; by default the first folder"),
        Option("html", "the page, which needs no network; by default report.html in the first folder"),
        Option("case", "a page that `inspect --html` wrote, to stand on the page"),
        OVERWRITE,
    ),
    words="FOLDER...",
    takes_settings=False,
)
