"""Cases as one HTML page that needs no network and runs no script."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from recbole_llm4sbr.base.files import make_folder, write_whole
from recbole_llm4sbr.base.names import CASE_PAGE
from recbole_llm4sbr.base.wording import shortened
from recbole_llm4sbr.recommend.cases import Case, Item, ModelCase, ViewCase
from recbole_llm4sbr.recommend.cases_text import (
    ANSWER,
    CLICKS,
    CUT,
    TITLE,
    gates_said,
    name_said,
    near_said,
    prompt_lines,
    rank_said,
)

_STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --back: #fff; --soft: #595959; --line: #d6d6d6; --panel: #f4f4f4; --hit: #0b6b2f; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --back: #161616; --soft: #a8a8a8; --line: #3c3c3c; --panel: #222; --hit: #6fd694; }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 0 auto; padding: 0 1rem 4rem;
  max-width: 60rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 1.5rem 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; border-top: 2px solid var(--text); padding-top: 1rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .25rem; } p { margin: .4rem 0; }
table { border-collapse: collapse; font-size: .875rem; width: 100%; margin: .5rem 0; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { overflow-wrap: normal; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; width: 4.5rem; overflow-wrap: normal; }
.soft, .how { color: var(--soft); } .target { color: var(--hit); font-weight: 600; }
pre { white-space: pre-wrap; background: var(--panel); padding: .75rem; font-size: .8125rem; margin: .5rem 0; }
summary { cursor: pointer; } nav a { margin-right: 1rem; color: inherit; } q { quotes: none; background: var(--panel); padding: 0 .25rem; }
"""


def write_page(path: str | Path, cases: Sequence[Case], title: str) -> None:
    """Write the page, whole or not at all.

    Args:
        path: the file; its folder is made.
        cases: of sessions.
        title: of the page.
    """
    make_folder(Path(path).parent)
    with write_whole(path) as handle:
        handle.write(page(cases, title))


def page(cases: Sequence[Case], title: str) -> str:
    """The page as text."""
    named = [_text(case.session, 60) for case in cases]
    links = "".join(f'<a href="#s{number}">{name}</a>' for number, name in enumerate(named)) if len(cases) > 1 else ""
    body = [f"<h1>{_text(title, 200)}</h1>", f"<nav>{links}</nav>" if links else ""]
    for number, (case, name) in enumerate(zip(cases, named)):
        body.append(f'<section><h2 id="s{number}">session {name} <span class=soft>({_text(case.part, 20)} part)</span></h2>')
        body += [*_case(case), "</section>"]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">\n'
        f'<meta name=generator content="{CASE_PAGE}">'
        f'<meta http-equiv=Content-Security-Policy content="{policy}"><title>{_text(title, 200)}</title>'
        f'<link rel=icon href="data:,"><style>{_STYLE}</style></head>\n<body>' + "\n".join(body) + "</body></html>\n"
    )


def _case(case: Case) -> list[str]:
    earlier = len(case.items) - CLICKS
    body = [f"<p class=how>... {earlier} earlier clicks</p>"] if earlier > 0 else []
    clicks = [(str(number), item) for number, item in enumerate(case.items, 1)][-CLICKS:]
    body.append(_table("click", [*clicks, ("next", case.target)], marked=False))
    if case.note:
        body.append(f"<p>{_text(case.note, ANSWER)}</p>")
    elif not case.views:
        body.append("<p>This session has no row in the feature files.</p>")
    if case.views and case.source == "session_text":
        body.append("<p>Intents are of session_text: no LLM is asked, so that there is no prompt and no answer.</p>")
    return [*body, *(_view(view) for view in case.views), *(_model(model) for model in case.models)]


def _view(view: ViewCase) -> str:
    body = f"<h3>view {_text(view.view, 60)}</h3>"
    if view.asked is not None:
        prompt = escape("\n".join(prompt_lines(view.asked.prompt, 60, 60)))
        raw = view.asked.raw
        answer = "(none is kept)" if raw is None else f"<q>{_text(raw, ANSWER)}</q>{CUT * view.asked.cut}"
        body += f"<details><summary>prompt</summary><pre>{prompt}</pre></details>"
        body += f"<p>answer: {answer}</p><p>name: <b>{escape(name_said(view))}</b></p>"
    if not view.near:
        return body + "<p>This session has no intent in this view.</p>"
    return (
        body
        + f"<p class=how>{escape(near_said(view))}</p>"
        + _table("similarity", [(f"{each.value:.4f}", each) for each in view.near])
    )


def _model(model: ModelCase) -> str:
    gates = f"<p>{escape(gates_said(model))}</p>" if model.gates else ""
    return (
        f"<h3>{_text(model.checkpoint, 200)}</h3><p class=how>{_text(model.about, 200)}</p><p><b>{escape(rank_said(model))}</b></p>{gates}"
        + _table("score", [(f"{each.value:.3f}", each) for each in model.best])
    )


def _table(first: str, rows: Sequence[tuple[str, Item]], marked: bool = True) -> str:
    """A row per item: what stands before it, id, title and, where wanted, what it is to its session."""
    body = "".join(
        f"<tr><td class=n>{escape(before)}</td>"
        + "".join(
            f"<td>{cell}</td>" for cell in (_text(item.token, 60), _text(item.title, 2 * TITLE), _mark(item) if marked else "")
        )
        + "</tr>"
        for before, item in rows
    )
    head = f"<th class=n>{escape(first)}</th><th>item</th><th>title</th><th></th>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _mark(item: Item) -> str:
    if item.target:
        return "<span class=target>target</span>"
    return "<span class=soft>in the session</span>" if item.in_session else ""


def _text(text: str, longest: int) -> str:
    """Text from elsewhere, harmless in the page and not longer than it should be."""
    return escape(shortened(text, longest))
