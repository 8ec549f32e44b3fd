"""The HTML page of a report: the answer of each block with its table and its figure, then everything else, folded. One file, no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from recbole_llm4sbr.base.names import REPORT_PAGE
from recbole_llm4sbr.report.answer import HOW_TO_READ, answer_figure, answer_table
from recbole_llm4sbr.report.block import Block
from recbole_llm4sbr.report.facts import counts_table, in_short, paragraphs
from recbole_llm4sbr.report.figure import Figure, library
from recbole_llm4sbr.report.figures import figures_of
from recbole_llm4sbr.report.ladders import Ladder
from recbole_llm4sbr.report.overview import overview_table
from recbole_llm4sbr.report.table import FAILED, Table
from recbole_llm4sbr.report.verdicts import page_title, sentences, topic

_ASSETS = Path(__file__).parent / "assets"
_POLICY = "; ".join(
    ("default-src 'none'", "script-src 'unsafe-inline'", "style-src 'unsafe-inline'", "img-src data: blob:", "base-uri 'none'",
     "form-action 'none'")
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """What a report says of a block.

    Attributes:
        block: which.
        ladders: of its backbones.
        tables: all but the answer's.
        note: written by hand, lines of Markdown that begin with `>`.
    """

    block: Block
    ladders: list[Ladder]
    tables: list[Table]
    note: list[str]


def page_of(parts: Sequence[Part], case: str = "") -> str:
    """The page.

    Args:
        parts: in any order; those with an LLM's intents come first.
        case: a page that `inspect` wrote, or "".
    """
    parts = sorted(parts, key=lambda part: not any(ladder.llm for ladder in part.ladders))
    title = page_title([part.ladders for part in parts])
    contents, body = [], []
    if overview := overview_table([(part.block.title, part.ladders) for part in parts]):
        contents.append(f'<li><a href="#overview">{overview.title}</a></li>')
        body.append(f"<section class=answer id=overview><h2>{overview.title}</h2>{_table(overview)}</section>\n")
    for number, part in enumerate(parts):
        contents.append(f'<li><a href="#answer{number}">{_name(part)}</a></li>')
        body.append(_answer(part, f"answer{number}"))
    body.append(f"<details class=read><summary>How to read this</summary><p>{escape(HOW_TO_READ)}</p></details>")
    if case:
        contents.append('<li><a href="#case">Sessions looked at whole</a></li>')
        body.append(_case(case))
    for number, part in enumerate(parts):
        place = f"part{number}"
        sections = _sections(part, place)
        links = "".join(f'<li><a href="#{own}">{escape(section)}</a></li>' for own, section, _ in sections)
        contents.append(f'<li><a href="#{place}">Everything on {_name(part)}</a><ul>{links}</ul></li>')
        body.append(f"<section id={place}><h2>{_name(part)}</h2>{''.join(content for _, _, content in sections)}</section>")
    style, script = ((_ASSETS / name).read_text("utf-8") for name in ("report.css", "report.js"))
    return (
        '<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">\n'
        f'<meta name=generator content="{REPORT_PAGE}"><meta http-equiv=Content-Security-Policy content="{_POLICY}">\n'
        f'<title>{escape(title)}</title><link rel=icon href="data:,"><style>{style}</style></head>\n<body>\n'
        f"<nav><details open><summary>Contents</summary><ul>{''.join(contents)}</ul></details></nav>\n"
        f"<main><h1>{escape(title)}</h1>\n{''.join(body)}\n"
        "<noscript><p>The figures need a script; the tables have the same numbers.</p></noscript></main>\n"
        f"<script>{script}</script>\n{library()}\n</body></html>\n"
    )


def _name(part: Part) -> str:
    return escape(part.block.title)


def _answer(part: Part, place: str) -> str:
    """The findings of a block, and beside its small table the figure of it."""
    table, figure = answer_table(part.ladders), answer_figure(part.ladders)
    said = "".join(f"<p class=finding>{_inline(sentence)}</p>" for sentence in sentences(part.ladders))
    shown = (_table(table, with_how=False) if table else "") + (_figure(figure) if figure else "")
    return (
        f"<section class=answer id={place}><h2>{_name(part)} <span class=topic>{escape(topic(part.ladders))}</span></h2>{said}"
        f"<div class=pair>{shown}</div><p class=how>{_inline(in_short(part.block))}</p></section>\n"
    )


def _sections(part: Part, place: str) -> list[tuple[str, str, str]]:
    """Of every section the id, the headline and the HTML; the first one with results and that of failed cells are open."""
    tables: dict[str, list[Table]] = {}
    figures: dict[str, list[Figure]] = {}
    for figure in figures_of(part.block):
        figures.setdefault(figure.section, []).append(figure)
    for table in part.tables:
        tables.setdefault(table.section, []).append(table)
    failed = [FAILED] if FAILED in tables else []
    names = dict.fromkeys([*failed, *part.block.groups, *figures, *tables])
    found = [("Data, settings, versions, commands", _facts(part))]
    found += [(name, _section(tables.get(name, []), figures.get(name, []))) for name in names]
    note = _inline(" ".join(line.removeprefix(">").strip() or "\n\n" for line in part.note)).replace("\n\n", "</p><p>")
    found = [("Note", f"<p>{note}</p>"), *found] if part.note else found
    opened = {next(iter(tables), ""), FAILED}
    return [
        (
            f"{place}-{number}",
            name,
            f"<details class=part id={place}-{number}{' open' * (name in opened)}><summary>{escape(name)}</summary>\n{content}</details>\n",
        )
        for number, (name, content) in enumerate(found)
    ]


def _section(tables: Sequence[Table], figures: Sequence[Figure]) -> str:
    """The first figure beside the first table, then the other figures side by side, then the other tables."""
    first = "".join([*map(_figure, figures[:1]), *map(_table, tables[:1])])
    more = f"<div class=figures>{''.join(_figure(figure, True) for figure in figures[1:])}</div>" if len(figures) > 1 else ""
    others = "".join(f"<h4>{escape(table.title)}</h4>{_table(table)}" for table in tables[1:])
    return f"<div class=pair>{first}</div>{more}{others}"


def _table(table: Table, with_how: bool = True) -> str:
    model, narrow = table.of_one_model()
    how = f"{model}. {table.how}" if model else table.how
    return f"<div class=table>{narrow.html()}" + (f"<p class=how>{escape(how)}</p>" if with_how and how else "") + "</div>"


def _figure(figure: Figure, titled: bool = False) -> str:
    title = f"<h4>{escape(figure.title)}</h4>" if titled else ""
    return f"<figure>{title}{figure.html()}<figcaption class=how>{escape(figure.how)}</figcaption></figure>"


def _facts(part: Part) -> str:
    said = "".join(f"<p>{_inline(paragraph)}</p>" for paragraph in paragraphs(part.block))
    commands = escape("\n".join(part.block.commands))
    return f"{counts_table(part.block).html()}{said}<pre>{commands}</pre>"


def _case(page: str) -> str:
    """A page of `inspect` in a frame of its own that runs no script, folded."""
    return (
        "<details class=part id=case><summary>Sessions looked at whole</summary>"
        f'<iframe title="Sessions looked at whole" sandbox="allow-same-origin" srcdoc="{escape(page, quote=True)}"></iframe></details>\n'
    )


def _inline(text: str) -> str:
    """Text with Markdown's `**` and backquotes as HTML; it knows no other marks."""
    said = escape(text)
    for mark, tag in (("**", "b"), ("`", "code")):
        pieces = said.split(mark)
        said = "".join(piece if number % 2 == 0 else f"<{tag}>{piece}</{tag}>" for number, piece in enumerate(pieces))
    return said
