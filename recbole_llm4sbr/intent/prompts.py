"""Prompts of a session from several views, and the texts of items (paper section 4.1.1, eq. 1)."""

import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import template_path
from recbole_llm4sbr.base.schema import read_yaml
from recbole_llm4sbr.data.rows import SessionRows
from recbole_llm4sbr.intent.backends import Request

UNKNOWN_ITEM = "unknown item"
_OPTIONAL = {"answer_start", "joint", "several", "joint_several"}  # parts of a template
_TITLES = "titles"  # key of a view's titles in JSON
# How several titles shall be written, for the place {form} in a template; `titles.py` reads them.
_LINES = "one on each line, numbered"
_JOINT_LINES = 'one on each line, after the name and a number, as "{view} 1: ..."'
_JSON = "as JSON like {example}"
_SINGLE_QUOTES = str.maketrans(dict.fromkeys('"“”„', "'"))
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
    several: str = ""
    joint_several: str = ""

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
        if unknown := sorted(set(parts) - needed - _OPTIONAL):
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
        for part, given, needed in (
            ("item", {"number": 7, "name": "a name"}, ["name"]),
            ("task", {"qualifier": "a name"}, ["qualifier"]),
            ("joint", {"views": "a name"}, ["views"]),
            ("several", {"qualifier": "a name", "answers": 77, "form": "a form"}, ["qualifier", "answers"]),
            ("joint_several", {"views": "a name", "answers": 77, "form": "a form"}, ["views", "answers"]),
        ):
            text = getattr(self, part)
            if part in _OPTIONAL and not text:
                continue
            try:
                shown = text.format(**given)
            except (KeyError, IndexError, ValueError, AttributeError, TypeError):
                shown = ""
            if not all(str(given[name]) in shown for name in needed):
                braces = " and ".join(f"{{{name}}}" for name in needed)
                raise UserError(f"prompt template {str(path)!r}: {part}={text!r} must be a format with {braces} in it")

    def check_views(self, views: Sequence[str]) -> None:
        """Refuse views that the template does not have."""
        for view in views:
            if view not in self.views:
                raise UserError(
                    f"view {view!r} is unknown in the prompt template {self.name!r}; choose from {', '.join(self.views)}"
                )

    def check_asked(self, answers: int, joint: bool) -> None:
        """Refuse to ask what the template has no question for.

        Args:
            answers: titles per view.
            joint: whether all views stand in one question.

        Raises:
            UserError: names the part that is missing, and the setting that needs it.
        """
        part = ("joint_several" if joint else "several") if answers > 1 else "joint" if joint else "task"
        option = f"intent_answers={answers}" if answers > 1 else "views_in_one_call=true"
        if not getattr(self, part):
            raise UserError(
                f"prompt template {self.name!r} has no part `{part}`, which {option} needs; add one as in the shipped "
                f"properties/prompt/movies.yaml, or leave --{option.partition('=')[0]} out"
            )

    def build(self, names: Sequence[str], view: str, answers: int = 1, as_json: bool = False) -> Request:
        """The request for one view of one prefix.

        Args:
            names: names of the prefix's items in click order; nothing later than the prefix ever gets here.
            view: a view of the template.
            answers: titles that are asked for.
            as_json: of several titles, as a JSON object in place of numbered lines.
        """
        seen = self.views[view]
        if answers == 1:
            task = self.task.format(qualifier=seen.qualifier)
            return Request(self.system, self._user(names, seen.window, task), self.answer_start)
        form = _JSON.format(example=_example([_TITLES])) if as_json else _LINES
        task = self.several.format(qualifier=seen.qualifier, answers=answers, form=form)
        return self._several(
            self._user(names, seen.window, task), "1." if self.answer_start else "", [_TITLES], answers, as_json
        )

    def build_joint(self, names: Sequence[str], views: Sequence[str], answers: int = 1, as_json: bool = False) -> Request:
        """One request for several views of one prefix; its answer has a line `view: name` for each (`split_joint`), of several titles
        lines `view 1: name`, `view 2: name`, ... for each, or JSON.

        Raises:
            UserError: the template has no such question.
        """
        self.check_asked(answers, joint=True)
        windows = [self.views[view].window for view in views]
        window = None if None in windows else max(each for each in windows if each)
        questions = "\n".join(f"{view}: {self.views[view].qualifier}" for view in views)
        if answers == 1:
            user = self._user(names, window, self.joint.strip().format(views=questions))
            return Request(self.system, user, f"{views[0]}:", len(views))
        form = _JSON.format(example=_example(views)) if as_json else _JOINT_LINES.format(view=views[0])
        task = self.joint_several.strip().format(views=questions, answers=answers, form=form)
        return self._several(self._user(names, window, task), f"{views[0]} 1:", views, answers, as_json)

    def _several(self, user: str, start: str, keys: Sequence[str], answers: int, as_json: bool) -> Request:
        """A request for several titles of each key, in lines behind `start` or as JSON, whose signs take a line of tokens per key."""
        if as_json:
            return Request(self.system, user, "", len(keys) * (answers + 1), _schema(keys, answers))
        return Request(self.system, user, start, len(keys) * answers)

    def listed(self, names: Sequence[str], window: int | None) -> str:
        """The lines that show the last `window` of the items (None: all)."""
        shown = names[-window:] if window else names
        return "\n".join(self.item.format(number=number, name=name) for number, name in enumerate(shown, 1))

    def _user(self, names: Sequence[str], window: int | None, question: str) -> str:
        return "\n".join([self.background, self.listed(names, window), question])


def _example(keys: Sequence[str]) -> str:
    """How the JSON object of some titles per key looks."""
    return json.dumps({key: ["...", "..."] for key in keys}, ensure_ascii=False)


def _schema(keys: Sequence[str], answers: int) -> str:
    """The JSON schema of an object with so many texts under each key."""
    titles = {"type": "array", "items": {"type": "string"}, "minItems": answers, "maxItems": answers}
    whole = {"type": "object", "properties": dict.fromkeys(keys, titles), "required": list(keys), "additionalProperties": False}
    return json.dumps(whole, ensure_ascii=False)


class SessionPrompts(Sequence[Request]):
    """The requests of session rows, built when they are read: a million of them take no memory.

    Args:
        template: how they read.
        views: one request per row and view, in this order.
        rows: prepared sessions.
        names: what each item is called, in the order of `rows.tokens`.
        asked: rows to ask about.
        joint: one request per row for all views.
        answers, as_json: as in `PromptTemplate.build`.
        new: no item of the row shall be the answer.

    Raises:
        UserError: the template has no question for that.
    """

    def __init__(
        self,
        template: PromptTemplate,
        views: Sequence[str],
        rows: SessionRows,
        names: Sequence[str],
        asked: Sequence[int],
        joint: bool = False,
        answers: int = 1,
        as_json: bool = False,
        new: bool = False,
    ) -> None:
        template.check_asked(answers, joint)
        self._template, self._views, self._rows, self._names, self._asked = template, views, rows, names, asked
        self._joint, self._answers, self._as_json = joint, answers, as_json
        self._per_row, self._new = 1 if joint else len(views), new

    def __len__(self) -> int:
        """Number of requests."""
        return len(self._asked) * self._per_row

    def __getitem__(self, position: Any) -> Any:
        """The request at a position: row by row, within a row view by view."""
        if position >= len(self):
            raise IndexError(position)
        row, view = divmod(position, self._per_row)
        start, end = self._rows.starts[self._asked[row] : self._asked[row] + 2]
        shown = [self._names[item] for item in self._rows.clicks[start:end]]
        if self._joint:
            return self._template.build_joint(shown, self._views, self._answers, self._as_json)
        request = self._template.build(shown, self._views[view], self._answers, self._as_json)
        return request._replace(excluded=tuple(dict.fromkeys(shown))) if self._new else request


def item_names(items: pd.DataFrame, settings: Mapping[str, Any]) -> list[str]:
    """What prompts call each item: `item_name`, at most `item_name_length` characters; see `_texts` for errors."""
    return [prompt_name(name) for name in _names(items, settings)]


def prompt_name(name: str) -> str:
    """A name with single quotes for double ones, which would end an answer.

    >>> prompt_name('The "oak" lamp')
    "The 'oak' lamp"
    """
    return name.translate(_SINGLE_QUOTES)


def shown_names(items: pd.DataFrame, settings: Mapping[str, Any]) -> dict[str, str]:
    """What people are shown of each item, by id: its name, all quotes as they are; ids where no item has a title."""
    try:
        return dict(zip(items["item_id"], _names(items, {**settings, "missing_item_text": "unknown"})))
    except UserError:
        return {token: token for token in items["item_id"]}


def _names(items: pd.DataFrame, settings: Mapping[str, Any]) -> list[str]:
    longest = settings["item_name_length"]
    return [_shorten(name, longest) or UNKNOWN_ITEM for name in _texts(items, settings, "item_name")]


def article_first(text: str) -> str:
    """A title with its article at the front.

    >>> article_first("Lion King, The (1994)"), article_first("Heat")
    ('The Lion King (1994)', 'Heat')
    """
    return _ARTICLE_LAST.sub(r"\2 \1", text)


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
        values[columns[0]] = [article_first(text) for text in values[columns[0]]]
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
