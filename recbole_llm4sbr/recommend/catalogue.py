"""The items that a model ranks, found by their id or by what people call them."""

import difflib
import heapq
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.settings import format_columns
from recbole_llm4sbr.base.wording import beginning, printable
from recbole_llm4sbr.data.rows import read_items
from recbole_llm4sbr.intent.prompts import UNKNOWN_ITEM, article_first, shown_names
from recbole_llm4sbr.model.cold_items import ColdItems

_SHOWN = 5  # items in an error
_LIKE = 500  # names whose letters are compared for "did you mean"


class Catalogue:
    """Items by number, as the model has them.

    Args:
        tokens: item ids by number; the first is padding.
        titles: what each item is called, in the same order; its id where it has no title.
        clicked: whether a training session holds it, in the same order.
        by_text: whether the model reads items that no training session holds, by their texts.
        also: other names of the items, by id.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        titles: Sequence[str],
        clicked: Sequence[bool],
        by_text: bool = False,
        also: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.tokens, self.titles, self.clicked, self.by_text = list(tokens), list(titles), clicked, by_text
        self.number = {token: number for number, token in enumerate(self.tokens) if number}
        self._titled: dict[str, list[int]] = defaultdict(list)  # what is searched: ids too, where there is no title
        self._called: dict[str, dict[int, None]] = defaultdict(dict)  # titles alone, of an ordered set of items
        for number, title in enumerate(self.titles):
            if number:
                self._titled[_plain(title)].append(number)
        for token, name in [*zip(self.tokens, self.titles), *also]:
            if token in self.number and name not in (token, UNKNOWN_ITEM):
                self._called[_plain(name)][self.number[token]] = None

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

        An item is found by its name as it is shown, by the whole of a name that is cut there, and by the first column in it, which is its
        title under `item_name='{title}, {brand}'`.

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
        forms = [settings["item_name"], *(f"{{{column}}}" for column in format_columns("item_name", settings["item_name"])[:1])]
        whole = {**settings, "item_name_length": sys.maxsize}
        also = [pair for form in dict.fromkeys(forms) for pair in shown_names(items, {**whole, "item_name": form}).items()]
        return cls(tokens, [names.get(token, token) for token in tokens], clicked, by_text, also)

    def find(self, text: str) -> int:
        """The number of the item with exactly this id, else of the one with this title.

        Of titles, upper and lower case, punctuation and spaces do not count, and an article may stand at the end. What is like an id or a
        title and is none is never taken for it.

        Raises:
            UserError: there is none, several have the title, or no training session holds it, so that the model knows nothing of it.
        """
        found = self._exact(text)
        if len(found) > 1:
            raise UserError(f"title {printable(text)!r} may mean {self._listed(found)}; give the id of the one that is meant")
        if not found:
            near = self._near(text)
            hint = f"did you mean {self._listed(near, ' or ')}?" if near else "name items by id or title"
            raise UserError(f"item {printable(text)!r} is neither an id nor a title of the {len(self.number):,} items; {hint}")
        (number,) = found
        if not self._known(number):
            raise UserError(
                f"item {self.tokens[number]!r} ({printable(self.titles[number])}) is unknown to the model: no training session holds it; "
                f"leave it out"
            )
        return number

    def knows(self, text: str) -> bool:
        """Whether the model knows an item with exactly this id or title, or several with the title."""
        return any(map(self._known, self._exact(text)))

    def completed(self, text: str) -> str:
        """The id of the only item whose title holds the words of a text that a person types; other texts as they are.

        Ids and whole titles stay, and so does what looks like an id: a word with a digit, or a text of the form of an id that is there.

        Raises:
            UserError: several titles hold the words.
        """
        wanted = _plain(text)
        if not wanted or self._exact(text) or re.fullmatch(r"\S*\d\S*", text.strip()) or self._has_form_of_id(text):
            return text
        found = {number for title, numbers in self._called.items() if f" {wanted} " in f" {title} " for number in numbers}
        if len(found) > 1:
            meant = self._listed(sorted(found))
            raise UserError(f"title {printable(text)!r} may mean {meant}; give the id of the one that is meant")
        return self.tokens[found.pop()] if found else text

    def containing(self, text: str, most: int) -> list[int]:
        """Up to `most` items whose id is `text` or whose title holds its words, the shortest titles first."""
        wanted = _plain(text)
        exact = [self.number[text.strip()]] if text.strip() in self.number else []
        if not wanted:
            return exact
        begins = [title for title in self._titled if f" {wanted}" in f" {title}"]
        found = [number for title in sorted(begins, key=lambda each: (len(each), each)) for number in self._titled[title]]
        return [*exact, *(each for each in found if each not in exact)][:most]

    def _exact(self, text: str) -> list[int]:
        """The item with this id, else those with this title."""
        if number := self.number.get(text.strip()):
            return [number]
        wanted = _plain(text)
        return list(self._called.get(wanted) or self._called.get(_plain(article_first(text))) or ()) if wanted else []

    def _known(self, number: int) -> bool:
        return self.by_text or bool(self.clicked[number])

    def _has_form_of_id(self, text: str) -> bool:
        form = _form(text)
        return any(_form(token) == form for token in self.number)

    def _near(self, text: str) -> list[int]:
        """Items for "did you mean": those whose title holds the words, then those whose title or id has nearly the same letters."""
        wanted = _plain(text)
        if not wanted:
            return []
        names = {_plain(token): [number] for token, number in self.number.items()} | self._titled
        like = heapq.nlargest(_LIKE, names, key=lambda each: beginning(each, wanted))
        near = difflib.get_close_matches(wanted, like, 3, 0.7)
        return list(dict.fromkeys([*self.containing(text, 3), *(number for name in near for number in names[name])]))[:3]

    def _listed(self, numbers: Sequence[int], between: str = "; ") -> str:
        """Items by id and title, a few of them."""
        shown = [
            printable(self.tokens[each])
            + (f" ({printable(self.titles[each])})" if self.titles[each] != self.tokens[each] else "")
            for each in numbers[:_SHOWN]
        ]
        return between.join(shown) + (f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else "")


def _plain(title: str) -> str:
    """A title for comparison: small letters and digits with single spaces.

    >>> _plain("Monty Python's  Life of Brian!")
    'monty pythons life of brian'
    """
    return re.sub(r"[\W_]+", " ", title.casefold().replace("'", "")).strip()


def _form(text: str) -> str:
    """The form of an id: letters and digits without what they are.

    >>> _form("SKU-00012"), _form("2001")
    ('a-0', '0')
    """
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", text.strip()))
