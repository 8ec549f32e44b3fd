"""The items that a model ranks, found by their id or by what people call them."""

import difflib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.wording import printable
from recbole_llm4sbr.data.rows import read_items
from recbole_llm4sbr.intent.prompts import article_first, shown_names
from recbole_llm4sbr.model.cold_items import ColdItems

_SHOWN = 5  # candidates in an error
_NEAR = 0.75  # similarity of letters (difflib's ratio) from which a title is taken for a misspelt one


class Catalogue:
    """Items by number, as the model has them.

    Args:
        tokens: item ids by number; the first is padding.
        titles: what each item is called, in the same order.
        clicked: whether a training session holds it, in the same order.
        by_text: whether the model reads items that no training session holds, by their texts.
    """

    def __init__(self, tokens: Sequence[str], titles: Sequence[str], clicked: Sequence[bool], by_text: bool = False) -> None:
        self.tokens, self.titles, self.clicked, self.by_text = list(tokens), list(titles), clicked, by_text
        self.number = {token: number for number, token in enumerate(self.tokens) if number}
        self._titled: dict[str, list[int]] = defaultdict(list)
        for number, title in enumerate(self.titles):
            if number:
                self._titled[_plain(title)].append(number)

    @classmethod
    def read(
        cls,
        settings: Mapping[str, Any],
        folder: Path,
        tokens: Sequence[str],
        clicked: Sequence[bool],
        new: ColdItems | None = None,
        by_text: bool = False,
    ) -> "Catalogue":
        """Titles are the items' names, from the prepared `.item` file; ids where there are none.

        Args:
            settings: of the run.
            folder: of its prepared files.
            tokens, clicked, by_text: as when it is made.
            new: items that are not in the file.

        Raises:
            UserError: the file is gone.
        """
        path = folder / f"{settings['dataset']}.item"
        if not path.is_file():
            raise UserError(f"there is no {str(path)!r}, which has the items' titles; run `prepare` again")
        items = read_items(path)
        names = shown_names(items, settings)
        names |= dict(zip(new.tokens, new.titles)) if new else {}
        return cls(tokens, [names.get(token, token) for token in tokens], clicked, by_text)

    def find(self, text: str) -> int:
        """The number of the item with this id or title.

        An id comes first, then a title (upper and lower case, punctuation and spaces do not count), then the only title that contains the
        text, then the only title of nearly the same letters.

        Raises:
            UserError: there is none, several are meant, or no training session holds it, so that the model knows nothing of it.
        """
        number = self.number.get(text.strip()) or self._by_title(text)
        if not (self.clicked[number] or self.by_text):
            raise UserError(
                f"item {self.tokens[number]!r} ({printable(self.titles[number])}) is unknown to the model: no training session holds it; "
                f"leave it out"
            )
        return number

    def containing(self, text: str, most: int) -> list[int]:
        """Up to `most` items whose id is `text` or whose title holds its words, the shortest titles first."""
        wanted = _plain(text)
        exact = [self.number[text.strip()]] if text.strip() in self.number else []
        if not wanted:
            return exact
        begins = [title for title in self._titled if f" {wanted}" in f" {title}"]
        found = [number for title in sorted(begins, key=lambda each: (len(each), each)) for number in self._titled[title]]
        return [*exact, *(each for each in found if each not in exact)][:most]

    def _by_title(self, text: str) -> int:
        wanted = _plain(text)
        if not wanted:
            raise UserError(f"item {printable(text)!r} is no title; name items by id or title, with semicolons between them")
        found = self._titled.get(wanted) or self._titled.get(_plain(article_first(text)), [])
        if not found:
            found = [number for title, numbers in self._titled.items() if f" {wanted} " in f" {title} " for number in numbers]
        near = difflib.get_close_matches(wanted, self._titled, _SHOWN, _NEAR) if not found else []
        if near and (len(near) == 1 or _ratio(wanted, near[0]) - _ratio(wanted, near[1]) > 0.05):
            found = self._titled[near[0]]
        if len(found) == 1:
            return found[0]
        if found or near:
            numbers = found or [number for title in near for number in self._titled[title]]
            meant = "; ".join(f"{self.tokens[each]} ({printable(self.titles[each])})" for each in numbers[:_SHOWN])
            more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
            raise UserError(f"title {printable(text)!r} may mean {meant}{more}; give the id of the one that is meant")
        raise UserError(f"item {printable(text)!r} is neither an id nor a title of the {len(self.number):,} items; give its id")


def _plain(title: str) -> str:
    """A title for comparison: small letters and digits with single spaces.

    >>> _plain("Monty Python's  Life of Brian!")
    'monty pythons life of brian'
    """
    return re.sub(r"[\W_]+", " ", title.casefold().replace("'", "")).strip()


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
