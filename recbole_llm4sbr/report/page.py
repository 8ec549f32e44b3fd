"""`report`: what `compare`, `ablate` and `tune` left in their folders -> Markdown per dataset and one page to look at.

Everything is read from `grid.json`, `cells.jsonl`, `ranks/*.npz` and `search.json`; nothing is trained or loaded here.
"""

from collections.abc import Sequence
from pathlib import Path

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import check_folder, write_whole
from recbole_llm4sbr.base.names import CASE_PAGE
from recbole_llm4sbr.base.outputs import MARKDOWN_MARK, OVERVIEW, PAGE, check_output, report_files
from recbole_llm4sbr.report.answer import answer_table
from recbole_llm4sbr.report.comparisons import compared
from recbole_llm4sbr.report.facts import facts
from recbole_llm4sbr.report.ladders import ladders_of
from recbole_llm4sbr.report.layout import Part, page_of
from recbole_llm4sbr.report.overview import overview_table
from recbole_llm4sbr.report.reading import read_grids
from recbole_llm4sbr.report.tables import tables_of
from recbole_llm4sbr.report.verdicts import sentences


def report(
    folders: Sequence[str | Path],
    markdown: str | Path,
    page: str | Path | None,
    case: str | Path | None = None,
    overwrite: bool = False,
) -> tuple[list[Path], dict[str, Part]]:
    """Write the report of grids.

    Args:
        folders: of `compare`, `ablate` and `tune`.
        markdown: folder for one `<dataset>.md` each, and of several for `overview.md`, their answers in one table. A note that stands
            beneath the title of a file that is there, lines that begin with `>`, is kept, and stands on the page too.
        page: the HTML page; None for none.
        case: a page of `inspect`, which the page then holds; None for none.
        overwrite: whether files that no report wrote are replaced.

    Returns:
        The files written, and what they say of each block, by its title.

    Raises:
        UserError: a folder holds no grid, none of its cells has a result, the case is not a page of `inspect`, or a file must not be
            written (`base.outputs`).
    """
    looked_at = _read_case(Path(case)) if case is not None else ""
    check_folder(markdown, "--markdown")
    parts = []
    for block in read_grids(folders):
        tests = {group: compared(block, group) for group in block.groups}
        note = _note(Path(markdown) / f"{block.name}.md")
        parts.append(Part(block, ladders_of(block, tests), tables_of(block, tests), note))
    overview = overview_table([(part.block.title, part.ladders) for part in parts])
    texts = {part.block.name: _markdown(part) for part in parts}
    if overview is not None:
        texts = {OVERVIEW: [f"# {overview.title}", "", overview.how, "", *overview.lines()], **texts}
    files = report_files(markdown, texts, page)
    for path, output in files.items():
        check_output("html" if output is PAGE else "markdown", path, output, [case], overwrite)
    for path, output in files.items():
        with write_whole(path) as handle:
            handle.write(page_of(parts, looked_at) if output is PAGE else "\n".join([*texts[path.stem], "", MARKDOWN_MARK, ""]))
    return list(files), {part.block.title: part for part in parts}


def _markdown(part: Part) -> list[str]:
    """The lines of a block's file: its answer first."""
    table = answer_table(part.ladders)
    answer = [line for sentence in sentences(part.ladders) for line in (sentence, "")]
    if table is not None:
        answer += [*table.lines(), table.how, ""]
    note = [*part.note, ""] if part.note else []
    tables = [line for each in part.tables for line in each.markdown()]
    return [f"# {part.block.title}", "", *answer, *note, *facts(part.block), "", *tables]


def _note(path: Path) -> list[str]:
    """What was written by hand beneath the title of an earlier file: its lines of a quotation before the first table's headline."""
    if not path.is_file():
        return []
    head = path.read_text("utf-8", "replace").partition("\n### ")[0]
    return [line for line in head.split("\n") if line.startswith(">")]


def _read_case(path: Path) -> str:
    """A page that `inspect` wrote.

    Raises:
        UserError: it is another file, or none.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--case={path} cannot be read ({type(error).__name__}); write it by `inspect --html={path}`") from None
    if f'content="{CASE_PAGE}"' not in text[:1000]:
        raise UserError(f"--case={path} is not a page that `inspect` wrote; make one by `inspect --html={path}`")
    return text
