"""The titles in an LLM's answer, by view: one, or several as numbered lines, bullets, one line, or JSON (`intent_answers`).

What was asked for and what comes differ: small models number only the first line, chat models greet, explain and use bullets, and an
endpoint may know nothing of JSON schemas.

An answer that was cut at the limit of tokens ends in `_CUT` here, so that the name which that mark ends is known not to be at its end.
Such a name counts only where it is a title of the catalogue and no longer one begins so.
"""

import json
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any

from recbole_llm4sbr.intent.backends.chat import title_text
from recbole_llm4sbr.intent.cleaning import clean, tidy, without_thoughts
from recbole_llm4sbr.intent.prompts import UNKNOWN_ITEM

_NUMBERED = re.compile(r"^[\s*_#>\-]*\(?(\d{1,2})[.):][\s*_]+(?=\S)")
_BULLET = re.compile(r"^\s*[-*•·+][ \t]+(?=\S)")
_QUOTED = re.compile(r'["“]([^"“”]+)["”]')
_KEY = re.compile(r'"[^"]*"\s*:')  # of JSON
_INLINE = re.compile(r"(?:^|[\s,;])\(?\d{1,2}[.)]\s+")
_ESCAPED = re.compile(r"\\.", re.S)  # in JSON
_CUT = "\ue000"  # behind a text that was cut; of no script, so that it is part of no word
_ENDS = 3  # places at which JSON that was cut may be closed: behind its last value, before which a key without one may stand
_KEPT = 10_000  # candidates whose names are remembered, since the same ones come again and again
_TALK = (" - ", " – ", " — ", ": ")  # may stand between a title and what is said of it


class TitleReader:
    """Finds the names in raw answers.

    Args:
        views: that the answers are about; several where all stand in one question.
        answers: titles per view; more are dropped, fewer are fine.
        qualifiers: the template's, as for `clean`.
        names: what prompts call the items of the catalogue: these are titles, whatever they look like.
    """

    def __init__(self, views: Sequence[str], answers: int, qualifiers: Sequence[str], names: Sequence[str]) -> None:
        self._views, self._answers, self._qualifiers = views, answers, qualifiers
        self._known = _known_titles(tuple(names))
        self._name = lru_cache(_KEPT)(self._name_in)

    def read(self, raw: str, cut: bool = False) -> list[list[str]]:
        """By view the distinct names in an answer, in its order; upper and lower case do not count. None where it names nothing.

        Args:
            raw: the answer.
            cut: whether it was cut at the limit of tokens.
        """
        raw = without_thoughts(raw).replace(_CUT, "")
        if cut and (text := raw.rstrip(" \t")) and not text.endswith("\n"):
            raw = text + _CUT
        if self._answers == 1:
            parts = split_joint(raw, self._views) if len(self._views) > 1 else [raw]
            return [[name] if (name := self._whole(part)) else [] for part in parts]
        candidates = from_json(raw, self._views) or self._from_lines(raw)
        return [self._names(each) for each in candidates]

    def _names(self, candidates: Sequence[str]) -> list[str]:
        found: dict[str, str] = {}
        for candidate in candidates:
            if name := self._name(candidate):
                found.setdefault(name.casefold(), name)
        return list(found.values())[: self._answers]

    def _name_in(self, candidate: str) -> str:
        """The name in one candidate; of a title of the catalogue and what is said of it, the title."""
        name = self._whole(candidate)
        if name.casefold() not in self._known and not (_CUT in candidate and self._goes_on(candidate)):
            heads = (tidy(candidate.partition(sign)[0]) for sign in _TALK if sign in candidate)
            name = next((head for head in heads if head.casefold() in self._known), name)
        return name

    def _whole(self, candidate: str) -> str:
        """The name in one candidate, "" for one that was cut."""
        name = clean(candidate, self._qualifiers, self._known)
        if not name.endswith(_CUT):
            return name
        name = clean(candidate.replace(_CUT, ""), self._qualifiers, self._known)
        return name if name.casefold() in self._known and not self._goes_on(candidate) else ""

    def _goes_on(self, candidate: str) -> bool:
        """Whether a title of the catalogue is longer than the name in one candidate, and begins with it."""
        name = clean(candidate.replace(_CUT, ""), self._qualifiers, self._known).casefold()
        place = bisect_right(self._in_order, name)
        return self._in_order[place : place + 1] != [] and self._in_order[place].startswith(name)

    @cached_property
    def _in_order(self) -> list[str]:
        return sorted(self._known)

    def _from_lines(self, raw: str) -> list[list[str]]:
        if len(self._views) == 1:
            return [self._candidates(raw)]
        return [self._candidates(text) for text in split_joint(raw, self._views, self._answers)]

    def _candidates(self, text: str) -> list[str]:
        """What may be titles in plain text: its numbered lines, else its bullets, else all lines but those that announce others."""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        numbered = [(place, int(match[1])) for place, line in enumerate(lines) if (match := _NUMBERED.match(line))]
        if numbered:
            place, number = numbered[0]
            first = lines[:1] if place and number == 2 else []  # "1." was put into the LLM's mouth
            chosen = first + [lines[place] for place, _ in numbered]
        else:
            bullets = [line for line in lines if _BULLET.match(line)]
            chosen = bullets or [line for line in lines if not line.endswith((":", "[", "{"))] or lines
        return self._split(chosen[0]) if len(chosen) == 1 else chosen

    def _split(self, line: str) -> list[str]:
        """The parts of a line that may hold several titles: quoted, numbered, or between bars, semicolons or commas.

        Commas stand in titles too. They part where a part is known, or where there are as many parts as titles were asked for; parts that
        make up a known title stay together.
        """
        if line[:1] in "{[":  # JSON with a fault in it
            line = _KEY.sub("", line)
        elif line.count('"') % 2:  # the first quote was put into the LLM's mouth
            line = '"' + line
        if len(quoted := _QUOTED.findall(line)) > 1:
            return [each for each in quoted if re.search(r"\w", each)]
        if len(inline := [part for part in _INLINE.split(line) if part.strip()]) > 1:
            return inline
        for sign in ("|", ";", " / "):
            if sign in line:
                return line.split(sign)
        if self._is_known(line):
            return [line]
        parts = [re.sub(r"^(?:and|or) (?=\S)", "", part.strip()) for part in line.split(",")]
        whole: list[str] = []
        while parts:
            sizes = range(len(parts), 1, -1)
            size = next((size for size in sizes if self._is_known(", ".join(parts[:size]))), 1)
            whole.append(", ".join(parts[:size]))
            parts = parts[size:]
        return whole if len(whole) >= self._answers or any(map(self._is_known, whole)) else [line]

    def _is_known(self, text: str) -> bool:
        return tidy(text.replace(_CUT, "")).casefold() in self._known


class HeldReader:
    """Finds the names in answers of an LLM that is held to them: numbered lines, each a name as an answer can hold it.

    Args:
        answers: names per answer; more are dropped, fewer are fine.
        names: what prompts call the items of the catalogue.
    """

    def __init__(self, answers: int, names: Sequence[str]) -> None:
        self._answers = answers
        self._named = {title_text(name): name for name in names}

    def read(self, raw: str, cut: bool = False) -> list[list[str]]:
        """The names in an answer about a single view, in its order; no title that it is held to is ever cut."""
        lines = (re.sub(r"^\d+\. ", "", line) for line in raw.splitlines())
        return [[self._named[line] for line in lines if line in self._named][: self._answers]]


@lru_cache(maxsize=1)
def _known_titles(names: tuple[str, ...]) -> frozenset[str]:
    """The names as they are found in answers, in small letters; kept, since a server asks with the same catalogue again and again."""
    return frozenset(tidy(name).casefold() for name in names) - {"", UNKNOWN_ITEM}


def from_json(raw: str, views: Sequence[str]) -> list[list[str]]:
    """By view the texts in the JSON of an answer, also where its end is lacking; nothing where it holds no JSON of that kind.

    Of several views, each one's stand under its name; of a single one, under whatever key comes first, or in a list without one. A text
    that is not at its end has `_CUT` behind it.

    >>> from_json('Sure: {"titles": ["Heat", "Babe"]}', ["long"]), from_json('{"titles": ["Heat", "Babe",  ', ["long"])
    ([['Heat', 'Babe']], [['Heat', 'Babe']])
    """
    for opening, closing in sorted((("{", "}"), ("[", "]")), key=lambda pair: raw.find(pair[0])):  # the outer one first
        start, end = raw.find(opening), raw.rfind(closing)
        if start < 0:
            continue
        value = next(_values([raw[start : end + 1], *_closed(raw[start:])]), None)
        if isinstance(value, dict) and len(views) > 1:
            by_name = {key.casefold(): each for key, each in value.items()}
            found = [_texts(by_name.get(view.casefold())) for view in views]
        else:
            lists = value.values() if isinstance(value, dict) else [value]
            found = [next((texts for each in lists if (texts := _texts(each))), []), *([] for _ in views[1:])]
        if any(found):
            return found
    return []


def _values(texts: Iterable[str]) -> Iterator[Any]:
    """What the texts that are JSON say."""
    for text in texts:
        try:
            yield json.loads(text)
        except (ValueError, RecursionError):
            continue


def _closed(text: str) -> list[str]:
    """JSON that was cut, with what is open in it closed: as far as it goes, else behind one of its last values.

    >>> _closed('{"titles": ["Heat",  '), _closed('["Heat"]')
    (['{"titles": ["Heat"]}', '{"titles"}'], [])
    """
    text = text.replace(_CUT, "")
    open_ones: list[str] = []
    ends: deque[str] = deque(maxlen=_ENDS)
    inside = False
    for place, sign in enumerate(_ESCAPED.sub("__", text), 1):
        if sign == '"':
            inside = not inside
        elif inside or sign not in "{}[]":
            continue
        elif sign in "{[":
            open_ones.append("}" if sign == "{" else "]")
        elif open_ones.pop() != sign:
            return []
        if not inside and sign not in "{[":
            ends.append(text[:place] + "".join(reversed(open_ones)))
        if not open_ones:
            return []  # it is closed
    in_text = [f'{text.rstrip(chr(92))}{_CUT}"{"".join(reversed(open_ones))}'] if inside else []
    return [*in_text, *reversed(ends)]


def _texts(value: Any) -> list[str]:
    """The texts in a JSON list, of objects in it their first; quotes in a title as single ones."""
    found: list[str] = []
    for each in value if isinstance(value, list) else [value]:
        text = next((part for part in each.values() if isinstance(part, str)), None) if isinstance(each, dict) else each
        if isinstance(text, str):
            found.append(text.replace('"', "'"))
    return found


def split_joint(raw: str, views: Sequence[str], answers: int = 1) -> list[str]:
    """The raw answer of each view in the answer to a joint request; "" for one that is not there.

    A view's part begins with its name and a colon, or with its name, a number and a colon; of several answers it goes on until the next.
    A first line without a name of a view belongs to the first view, whose name the request itself put before it; where no line has a
    name, and there are as many as were asked for, they belong to the views in their order.
    """
    found: dict[str, list[str]] = {}
    lines = [line.strip() for line in raw.splitlines() if line.strip()]
    labels = [_label(line, views) for line in lines]
    if not any(labels) and len(lines) == len(views) * answers:
        return ["\n".join(lines[first : first + answers]) for first in range(0, len(lines), answers)]
    current = views[0]
    for number, (line, label) in enumerate(zip(lines, labels)):
        if label:
            current, rest = label, line.partition(":")[2].strip()
            part = found.setdefault(label, [])
            if answers > 1 or not part:
                part.append(rest)
        elif number == 0 or answers > 1:
            found.setdefault(current, []).append(line)
    return ["\n".join(found.get(view, [])) for view in views]


def _label(line: str, views: Sequence[str]) -> str | None:
    """The view whose name, maybe with a number, stands before a line's colon."""
    head, colon, _ = line.partition(":")
    words = re.sub(r"\W", "", head).lower() if colon else ""
    named = {re.sub(r"\W", "", view).lower(): view for view in views}
    return named.get(words) or named.get(words.rstrip("0123456789"))
