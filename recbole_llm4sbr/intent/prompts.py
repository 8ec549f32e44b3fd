"""Prompts of a session from several views, and the texts of items (paper section 4.1.1, eq. 1)."""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_llm4sbr.errors import UserError
from recbole_llm4sbr.files import PROPERTIES
from recbole_llm4sbr.intent.backends import Request
from recbole_llm4sbr.settings import read_yaml

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

    @classmethod
    def load(cls, prompt: str) -> "PromptTemplate":
        """Read a shipped template by name, or one of your own by the path of its YAML file.

        Raises:
            UserError: no such template, or a part of it is missing or unknown.
        """
        path = PROPERTIES / "prompt" / f"{prompt}.yaml"
        if not path.is_file():
            path = Path(prompt)
            if path.suffix not in (".yaml", ".yml"):
                shipped = sorted(each.stem for each in (PROPERTIES / "prompt").glob("*.yaml"))
                raise UserError(
                    f"prompt={prompt!r} is unknown; choose one of {', '.join(shipped)}, or the path of a .yaml file"
                )
        parts = read_yaml(path)
        needed = {"system", "background", "item", "task", "views"}
        if missing := sorted(needed - set(parts)):
            raise UserError(
                f"prompt template {str(path)!r} lacks {', '.join(missing)}; see the shipped properties/prompt/movies.yaml"
            )
        if unknown := sorted(set(parts) - needed - {"answer_start"}):
            raise UserError(f"prompt template {str(path)!r} has the unknown part {', '.join(unknown)}")
        try:
            views = {view: View(**given) for view, given in parts.pop("views").items()}
        except (TypeError, AttributeError):
            raise UserError(f"prompt template {str(path)!r}: a view is `name: {{qualifier: text, window: number}}`") from None
        return cls(name=path.stem, views=views, **parts)

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
        shown = names[-seen.window :] if seen.window else names
        lines = [self.item.format(number=number, name=name) for number, name in enumerate(shown, 1)]
        user = "\n".join([self.background, *lines, self.task.format(qualifier=seen.qualifier)])
        return Request(self.system, user, self.answer_start)


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
