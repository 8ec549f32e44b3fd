"""`report`: what `compare`, `ablate` and `tune` left in their folders -> Markdown per dataset and one page to look at.

Everything is read from `grid.json`, `cells.jsonl`, `ranks/*.npz` and `search.json`; nothing is trained or loaded here.
"""

import html
from collections.abc import Sequence
from pathlib import Path

from recbole_llm4sbr.base.files import make_folder, write_whole
from recbole_llm4sbr.base.wording import show
from recbole_llm4sbr.report.figures import figures_of, page_script
from recbole_llm4sbr.report.intents import describe_all
from recbole_llm4sbr.report.reading import Block, common_settings, read_grids
from recbole_llm4sbr.report.table import Table
from recbole_llm4sbr.report.tables import shown_settings, tables_of


def report(
    folders: Sequence[str | Path], markdown: str | Path, page: str | Path | None
) -> tuple[list[Path], dict[str, list[Table]]]:
    """Write the report of grids.

    Args:
        folders: of `compare`, `ablate` and `tune`.
        markdown: folder for one `<dataset>.md` each.
        page: the HTML page; None for none.

    Returns:
        The files written, and the tables by title of the section.

    Raises:
        UserError: a folder holds no grid, or none of its cells has a result.
    """
    blocks = read_grids(folders)
    written = []
    pieces = []
    for block in blocks:
        tables = tables_of(block)
        path = make_folder(markdown) / f"{block.name}.md"
        text = [f"# {block.title}", "", *_facts(block), "", *(line for table in tables for line in table.markdown())]
        with write_whole(path) as handle:
            handle.write("\n".join(text))
        written.append(path)
        pieces.append((block, tables))
    if page is not None:
        make_folder(Path(page).parent)
        with write_whole(page) as handle:
            handle.write(_page(pieces))
        written.append(Path(page))
    return written, {block.title: tables for block, tables in pieces}


def _facts(block: Block) -> list[str]:
    """What a reader must know of the block, as Markdown."""
    result = block.any_result()
    counts, common = result.prepare, common_settings(block)
    rows = ", ".join(f"{part} {number:,}" for part, number in counts.rows.items())
    asked = common.get("intent_source", "llm") == "llm"
    shown = (key for key in shown_settings() if key in common and (asked or key not in ("llm", "prompt", "control_of")))
    settings = ", ".join(f"{key} {show(common[key])}" for key in shown)
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    lines = [
        "| sessions | items ranked | clicks | average length | rows |",
        "|---:|---:|---:|---:|---|",
        f"| {counts.sessions:,} | {counts.catalogue or counts.items:,} | {counts.clicks:,} | {counts.average_length} | {rows} |",
        "",
        f"**Intents**: {intents_said(block)}",
        "",
        f"**Protocol**: the epoch is selected on validation by {result.valid_metric}, tested once, every session ranks the whole "
        f"catalogue; within a table all models and variants have the same settings and budget but for what makes the variant. Of all "
        f"tables here: {settings}.",
        "",
        f"**Made by** {' and '.join(block.machines)}; {versions}; with",
        "",
        "```bash",
        *block.commands,
        "```",
    ]
    return lines


def intents_said(block: Block) -> str:
    """Who made the intents of a block's `llm4sbr`, in words."""
    if said := describe_all(block.lines):
        return said
    return "see the search below." if block.searches else "none of these models reads an LLM's intents."


_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; padding: 0 1rem 4rem; max-width: 1100px; }
h1 { font-size: 1.7rem; margin: 1.5rem 0 .5rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .5rem; border-top: 2px solid #1a1a1a; padding-top: 1rem; }
h3 { font-size: 1.1rem; margin: 2rem 0 .25rem; }
p { margin: .5rem 0; max-width: 75ch; } .how { color: #555; font-size: .875rem; }
.scroll { overflow-x: auto; margin: .5rem 0; } table { border-collapse: collapse; font-size: .875rem; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; white-space: nowrap; }
td { max-width: 34rem; } td:not(.n) { white-space: normal; min-width: 5rem; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { overflow-x: auto; background: #f5f5f5; padding: .75rem; font-size: .8125rem; } code { font-size: .875em; }
nav a { margin-right: 1rem; } .fig { margin: 1rem 0; } a { color: #0b5cad; }
"""


def _page(pieces: Sequence[tuple[Block, Sequence[Table]]]) -> str:
    """One HTML page, self-contained."""
    links = "".join(f'<a href="#part{n}">{html.escape(block.title)}</a>' for n, (block, _) in enumerate(pieces))
    body = [
        "<h1>What the language model added</h1>",
        "<p>Session-based recommenders, plain and with LLM4SBR, trained and tested by recbole_llm4sbr on the same files. A gain over the "
        "plain model is the LLM's only as far as it is larger than that of the controls: session text without an LLM, intents "
        "exchanged between sessions, random vectors.</p>",
        f"<nav>{links}</nav>",
    ]
    for n, (block, tables) in enumerate(pieces):
        body.append(f'<h2 id="part{n}">{html.escape(block.title)}</h2>')
        body.append(_facts_html(block))
        for title, how, figure in figures_of(block):
            body.append(f"<h3>{html.escape(title)}</h3><p class=how>{html.escape(how)}</p><div class=fig>{figure}</div>")
        body += [table.html() for table in tables]
    return (
        '<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">\n'
        f'<title>recbole_llm4sbr: comparison</title><link rel=icon href="data:,"><style>{_STYLE}</style>\n{page_script()}</head>\n'
        "<body>" + "\n".join(body) + "</body></html>\n"
    )


def _facts_html(block: Block) -> str:
    """`_facts` as HTML; it knows just the Markdown that `_facts` writes."""
    head, _, values, _, *lines = _facts(block)
    cells = [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in (head, values)]
    pieces = ["<div class=scroll><table>" + "".join(_row(tag, row) for tag, row in zip(("th", "td"), cells)) + "</table></div>"]
    code = False
    for line in lines:
        if line.startswith("```"):
            pieces.append("</pre>" if code else "<pre>")
            code = not code
        elif line:
            text = html.escape(line)
            if not code:
                for mark, tag in (("**", "b"), ("`", "code")):
                    parts = text.split(mark)
                    text = "".join(part if number % 2 == 0 else f"<{tag}>{part}</{tag}>" for number, part in enumerate(parts))
                text = f"<p>{text}</p>"
            pieces.append(text + "\n")
    return "".join(pieces)


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
