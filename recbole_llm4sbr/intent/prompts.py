"""Prompts of a session from several views, and the texts of items (paper section 4.1.1, eq. 1)."""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.schema import read_yaml
from recbole_llm4sbr.base.settings import template_path
from recbole_llm4sbr.data.rows import SessionRows
from recbole_llm4sbr.intent.backends import Request

UNKNOWN_ITEM = "unknown item"
_ARTICLES = "The|A|An|Les|Le|La|Los|Las|El|Il|Der|Die|Das|Lo|L'|Un|Une"
_ARTICLE_LAST = re.compile(rf"^(.*?), ({_ARTICLES})(?=$| \()")


@dataclass(frozen=True)
class View:
    """A view: what it asks, and how many of the session's last items it sees (None: all)."""

    qualifier: str
    window: int | None = None


@dataclass(frozen=True)
class PromptTemplate:
    """Background with numbered items, then the task with a view's qualifier (paper figure 2)."""

    name: str
    system: str
    background: str
    item: str
    task: str
    views: Mapping[str, View]
    answer_start: str = ""
    joint: str = ""

    @classmethod
    def load(cls, prompt: str) -> "PromptTemplate":
        """Read a shipped template by name, or one of your own by the path of its YAML file.

        Raises:
            UserError: no such template, or a part of it is missing or unknown.
        """
        path = template_path(prompt)
        parts = read_yaml(path)
        needed = {"system", "background", "item", "task", "views"}
        if missing := sorted(needed - set(parts)):
            raise UserError(
                f"prompt template {str(path)!r} lacks {', '.join(missing)}; see the shipped properties/prompt/movies.yaml"
            )
        if unknown := sorted(set(parts) - needed - {"answer_start", "joint"}):
            raise UserError(f"prompt template {str(path)!r} has the unknown part {', '.join(unknown)}")
        try:
            views = {view: View(**given) for view, given in parts.pop("views").items()}
        except (TypeError, AttributeError):
            raise UserError(f"prompt template {str(path)!r}: a view is `name: {{qualifier: text, window: number}}`") from None
        for view, given in views.items():
            whole = given.window is None or (type(given.window) is int and given.window >= 1)
            if not isinstance(view, str) or not isinstance(given.qualifier, str) or not given.qualifier.strip() or not whole:
                raise UserError(
                    f"prompt template {str(path)!r}, view {view!r}: the qualifier must be a text and the window a number of items from 1 on"
                )
        for part, text in parts.items():
            if not isinstance(text, str):
                raise UserError(f"prompt template {str(path)!r}: {part} must be a text, not {text!r}")
        template = cls(name=path.stem, views=views, **parts)
        template._check_formats(path)
        return template

    def _check_formats(self, path: Path) -> None:
        """Refuse formats that do not show what they are there to show.

        Raises:
            UserError: names the part and what must stand in its braces.
        """
        for part, given in (
            ("item", {"number": 7, "name": "a name"}),
            ("task", {"qualifier": "a name"}),
            ("joint", {"views": "a name"}),
        ):
            text, last = getattr(self, part), [*given][-1]
            if part == "joint" and not text:
                continue
            try:
                shown = text.format(**given)
            except (KeyError, IndexError, ValueError, AttributeError, TypeError):
                shown = ""
            if "a name" not in shown:
                raise UserError(f"prompt template {str(path)!r}: {part}={text!r} must be a format with {{{last}}} in it")

    def check_views(self, views: Sequence[str]) -> None:
        """Refuse views that the template does not have."""
        for view in views:
            if view not in self.views:
                raise UserError(
                    f"view {view!r} is unknown in the prompt template {self.name!r}; choose from {', '.join(self.views)}"
                )

    def build(self, names: Sequence[str], view: str) -> Request:
        """The request for one view of one prefix.

        Args:
            names: names of the prefix's items in click order; nothing later than the prefix ever gets here.
            view: a view of the template.
        """
        seen = self.views[view]
        return Request(
            self.system, self._user(names, seen.window, self.task.format(qualifier=seen.qualifier)), self.answer_start
        )

    def build_joint(self, names: Sequence[str], views: Sequence[str]) -> Request:
        """One request for several views of one prefix; its answer has a line `view: name` for each (`split_joint`).

        Raises:
            UserError: the template has no `joint` question.
        """
        if not self.joint:
            raise UserError(f"prompt template {self.name!r} has no part `joint`; add one, or leave --views_in_one_call out")
        windows = [self.views[view].window for view in views]
        window = None if None in windows else max(each for each in windows if each)
        questions = "\n".join(f"{view}: {self.views[view].qualifier}" for view in views)
        user = self._user(names, window, self.joint.strip().format(views=questions))
        return Request(self.system, user, f"{views[0]}:", len(views))

    def _user(self, names: Sequence[str], window: int | None, question: str) -> str:
        shown = names[-window:] if window else names
        lines = [self.item.format(number=number, name=name) for number, name in enumerate(shown, 1)]
        return "\n".join([self.background, *lines, question])


def split_joint(raw: str, views: Sequence[str]) -> list[str]:
    """The raw answer of each view in the answer to a joint request; "" for one that is not there.

    A first line without a name of a view belongs to the first view, whose name the request itself put before it.
    """
    found: dict[str, str] = {}
    lines = [line for line in raw.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        label, colon, rest = line.partition(":")
        view = re.sub(r"\W", "", label).lower()
        match = next((each for each in views if colon and each.lower() == view), None)
        if match:
            found.setdefault(match, rest.strip())
        elif number == 0:
            found[views[0]] = line.strip()
    return [found.get(view, "") for view in views]


class SessionPrompts(Sequence[Request]):
    """The requests of session rows, built when they are read: a million of them take no memory.

    Args:
        template: how they read.
        views: one request per row and view, in this order.
        rows: prepared sessions.
        names: what each item is called, in the order of `rows.tokens`.
        asked: rows to ask about.
        powers: ask about the longest beginning of the prefix whose length is a power of two; since that is an earlier prefix of the
            same session, longer ones use the newest earlier intent.
        joint: one request per row for all views.
    """

    def __init__(
        self,
        template: PromptTemplate,
        views: Sequence[str],
        rows: SessionRows,
        names: Sequence[str],
        asked: Sequence[int],
        powers: bool = False,
        joint: bool = False,
    ) -> None:
        self._template, self._views, self._rows, self._names, self._asked = template, views, rows, names, asked
        self._powers, self._joint = powers, joint
        self._per_row = 1 if joint else len(views)

    def __len__(self) -> int:
        """Number of requests."""
        return len(self._asked) * self._per_row

    def __getitem__(self, position: Any) -> Any:
        """The request at a position: row by row, within a row view by view."""
        if position >= len(self):
            raise IndexError(position)
        row, view = divmod(position, self._per_row)
        start, end = self._rows.starts[self._asked[row] : self._asked[row] + 2]
        if self._powers:
            end = start + (1 << int(end - start).bit_length() - 1)
        shown = [self._names[item] for item in self._rows.clicks[start:end]]
        return self._template.build_joint(shown, self._views) if self._joint else self._template.build(shown, self._views[view])


def item_names(items: pd.DataFrame, settings: Mapping[str, Any]) -> list[str]:
    """What prompts call each item: `item_name`, at most `item_name_length` characters; see `_texts` for errors."""
    longest = settings["item_name_length"]
    return [_shorten(name, longest) or UNKNOWN_ITEM for name in _texts(items, settings, "item_name")]


def item_texts(items: pd.DataFrame, settings: Mapping[str, Any]) -> list[str]:
    """What the encoder reads of each item: `item_text`; an empty string where `missing_item_text` allows that."""
    return _texts(items, settings, "item_text")


def _texts(items: pd.DataFrame, settings: Mapping[str, Any], option: str) -> list[str]:
    """Fill the format `settings[option]` from the columns of `items`, row by row.

    Raises:
        UserError: a column that is not there, or an item without a text where `missing_item_text` is `error`.
    """
    template = settings[option]
    columns = [field for _, field, _, _ in string.Formatter().parse(template) if field]
    for column in columns:
        if column not in items:
            raise UserError(
                f"the .item file of {settings['dataset']!r} has no column {column!r}, which "
                f"{option}={template!r} names; it has {', '.join(items)}"
            )
    if not columns:
        raise UserError(f"{option}={template!r} names no column of the .item file, as in '{{title}}'")
    values = {column: items[column].fillna("").astype(str).str.strip().tolist() for column in columns}
    if settings["article_last"]:
        values[columns[0]] = [_ARTICLE_LAST.sub(r"\2 \1", text) for text in values[columns[0]]]
    empty = [token for token, text in zip(items["item_id"], values[columns[0]]) if not text]
    if len(empty) == len(items):
        raise UserError(
            f"no item has a {columns[0]!r}; name the column with texts with --{option}, for instance --{option}='{{title}}'"
        )
    if empty and settings["missing_item_text"] == "error":
        raise UserError(
            f"item {empty[0]!r} has no {columns[0]!r} ({len(empty)} such items); mend the .item file, "
            f"or add --missing_item_text=unknown to go on without their text"
        )
    rows = zip(*(values[column] for column in columns), strict=True)
    return [_tidy(template.format(**dict(zip(columns, row)))) if row[columns.index(columns[0])] else "" for row in rows]


def _tidy(text: str) -> str:
    """Remove what an empty column leaves behind: empty brackets, dangling separators, double spaces."""
    text = re.sub(r"\(\s*\)|\[\s*\]", "", text)
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"(\s*[,;:|-])+$", "", text).replace(" ,", ",")


def _shorten(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest + 1].rsplit(" ", 1)[0][:longest].rstrip(" ,;:-")
