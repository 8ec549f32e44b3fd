"""Cases as plain text for a terminal, at most some 100 columns wide."""

import textwrap
from collections.abc import Sequence

from recbole_llm4sbr.base.wording import shortened
from recbole_llm4sbr.recommend.cases import Case, Item, ModelCase, ViewCase

CUT = " (cut at llm_max_new_tokens)"  # said of an answer
TITLE, ANSWER, LINE = 64, 400, 400  # the most characters of a title, an answer and a line of a prompt that are shown
CLICKS = 20  # the most clicks that are shown, the newest
_HEAD, _TAIL = 8, 14  # lines of a long prompt that are shown


def describe(case: Case) -> str:
    """A case on several lines."""
    lines = [f"session {shortened(case.session, 60)} ({case.part} part), {len(case.items)} clicks"]
    if len(case.items) > CLICKS:
        lines.append(f"    ... {len(case.items) - CLICKS} earlier clicks")
    shown = [(str(number), item) for number, item in enumerate(case.items, 1)][-CLICKS:]
    lines += _columns([*shown, ("next", case.target)], marked=False)
    if case.note:
        lines += ["", *_wrapped("  ", shortened(case.note, ANSWER))]
    elif not case.views:
        lines += ["", "  this session has no row in the feature files"]
    if case.views and case.source == "session_text":
        lines += ["", "  intents are of session_text: no LLM is asked, so that there is no prompt and no answer"]
    for view in case.views:
        lines += ["", *_view(view)]
    for model in case.models:
        lines += ["", *_model(model)]
    return "\n".join(lines)


def _view(view: ViewCase) -> list[str]:
    lines = [f"view {shortened(view.view, 60)}"]
    if view.asked is not None:
        lines.append("  prompt")
        for line in prompt_lines(view.asked.prompt, _HEAD, _TAIL):
            lines += [f"    | {each}" for each in textwrap.wrap(line, 90) or [""]]
        raw = view.asked.raw
        lines += _wrapped("  answer  ", "(none is kept)" if raw is None else shortened(raw, ANSWER) + CUT * view.asked.cut)
        lines += _wrapped("  name    ", name_said(view))
    if view.near:
        lines += [f"  {near_said(view)}", *_columns([(f"{item.value:.4f}", item) for item in view.near])]
    else:
        lines.append("  this session has no intent in this view")
    return lines


def _model(model: ModelCase) -> list[str]:
    lines = [f"{shortened(model.checkpoint, 90)}", *_wrapped("  ", shortened(model.about, 200)), f"  {rank_said(model)}"]
    if model.gates:
        lines.append(f"  {gates_said(model)}")
    return lines + _columns([(f"{item.value:.3f}", item) for item in model.best])


def prompt_lines(prompt: str, head: int, tail: int) -> list[str]:
    """The lines of a prompt, of a long one the first and the last."""
    lines = [shortened(line, LINE) for line in prompt.split("\n")]
    left = len(lines) - head - tail
    return lines if left <= 1 else [*lines[:head], f"... {left} lines are left out ...", *lines[-tail:]]


def name_said(view: ViewCase) -> str:
    """What the answer of a view names."""
    asked = view.asked
    if asked is None or asked.raw is None:
        return "-"
    return "; ".join(shortened(name, TITLE) for name in asked.names) or "(the answer names nothing)"


def near_said(view: ViewCase) -> str:
    """What the nearest items of a view are for."""
    said = (
        f"the model takes the first {view.taken}"
        if view.taken
        else "with intent_k=0 the model takes the answer's own vector, of several titles their mean"
        if view.asked and len(view.asked.names) > 1
        else "with intent_k=0 the model takes the answer's own vector"
    )
    return f"nearest items ({said})"


def rank_said(model: ModelCase) -> str:
    """The target's rank in words."""
    if not model.rank:
        return "the target is no candidate: the session holds it, and the items of a session are no candidates in it"
    return f"target's rank {model.rank:,} of {model.candidates:,} candidates"


def gates_said(model: ModelCase) -> str:
    """The gates in words."""
    return "gates: " + ", ".join(f"{name} {value:+.4f}" for name, value in model.gates.items())


def mark(item: Item) -> str:
    """What an item is to its session."""
    return "<- target" if item.target else "in the session" if item.in_session else ""


def _columns(rows: Sequence[tuple[str, Item]], marked: bool = True) -> list[str]:
    """A line per item: what stands before it, its id, title and mark."""
    cells = [
        (first, shortened(item.token, 24), shortened(item.title, TITLE), mark(item) if marked else "") for first, item in rows
    ]
    widths = [max((len(row[column]) for row in cells), default=0) for column in range(3)]
    return [
        f"    {first:>{widths[0]}}  {token:{widths[1]}}  {title:{widths[2]}}  {said}".rstrip()
        for first, token, title, said in cells
    ]


def _wrapped(before: str, text: str) -> list[str]:
    return textwrap.wrap(text, 96, initial_indent=before, subsequent_indent=" " * len(before)) or [before.rstrip()]
