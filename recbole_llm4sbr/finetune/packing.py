"""Examples for tuning an LLM: a session's prompts and the title of its next item, packed into one row of tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.data.rows import read_items
from recbole_llm4sbr.finetune.examples import Pairs
from recbole_llm4sbr.intent.backends import Request
from recbole_llm4sbr.intent.backends.chat import closing_quote, common, title_text
from recbole_llm4sbr.intent.prompts import UNKNOWN_ITEM, PromptTemplate, item_names

Tokens = npt.NDArray[np.int64]

IGNORED = -100  # label of a token without a loss


@dataclass(frozen=True)
class Example:
    """A pair as the LLM reads it.

    Attributes:
        pair: its place.
        held_out: whether it is held out.
        requests: the prompts of all views, as `infer` asks them.
        lists: the part of each prompt that shows the session's items.
        answer: the title of the item that follows.
    """

    pair: int
    held_out: bool
    requests: list[Request]
    lists: list[str]
    answer: str


def questions(settings: Mapping[str, Any], pairs: Pairs) -> Iterator[Example]:
    """The pairs as examples.

    An item without a title is no answer. The answer ends as the LLM is stopped: with the quotation that the prompt opens, if it does.
    """
    template = PromptTemplate.load(settings["prompt"])
    items = read_items(dataset_folder(settings) / f"{settings['dataset']}.item")
    named = dict(zip(items["item_id"], item_names(items, settings)))
    names = [named[token] for token in pairs.rows.tokens]
    closing = closing_quote(template.answer_start)
    for pair in range(len(pairs)):
        target = names[pairs.target[pair]]
        if target != UNKNOWN_ITEM:
            shown = [names[click] for click in pairs.clicks(pair)]
            requests = [template.build(shown, view) for view in settings["views"]]
            lists = [template.listed(shown, template.views[view].window) for view in settings["views"]]
            answer = title_text(target) + closing
            yield Example(pair, bool(pairs.held_out[pair]), requests, lists, answer)


@dataclass(frozen=True)
class Packed:
    """The prompts of a session in all views and their answers as one row of tokens; what the prompts begin with stands there once.

    Attributes:
        tokens: T of them.
        segment: 0 for the common beginning, 1, 2, ... for what follows in each prompt; a token sees the beginning and its own segment.
        place: of each token in its own prompt.
        answer: the token of an answer that is to be predicted there, or `IGNORED`.
        listed: the token of the session's list that is to be predicted there, or `IGNORED`.
    """

    tokens: Tokens
    segment: Tokens
    place: Tokens
    answer: Tokens
    listed: Tokens


def pack(prompts: Sequence[list[int]], answers: Sequence[list[int]], lists: Sequence[range], shared: bool) -> list[Packed]:
    """Prompts and answers as one row, or, where nothing is shared, as a row each.

    Args:
        prompts: token ids of each.
        answers: token ids of each, the end of the answer included.
        lists: places of each prompt at which the session's items stand.
        shared: whether what the prompts begin with is to stand there once.

    >>> row = pack([[1, 2, 3, 4], [1, 2, 5]], [[7, 0], [8, 0]], [range(1, 3), range(1, 2)], shared=True)[0]
    >>> row.segment.tolist()
    [0, 0, 1, 1, 1, 1, 2, 2, 2]
    >>> row.answer.tolist(), row.listed.tolist()
    ([-100, -100, -100, 7, 0, -100, 8, 0, -100], [2, -100, -100, -100, -100, -100, -100, -100, -100])
    """
    if len(prompts) > 1 and not shared:
        each = zip(prompts, answers, lists)
        return [row for prompt, answer, places in each for row in pack([prompt], [answer], [places], shared)]
    start = min(common(prompt, prompts[0]) for prompt in prompts) if len(prompts) > 1 else 0
    tokens, segment, place = list(prompts[0][:start]), [0] * start, list(range(start))
    asked, listed = [IGNORED] * start, _next(prompts[0], lists[0])[: max(start - 1, 0)] + [IGNORED] * (start > 0)
    for number, (prompt, answer, places) in enumerate(zip(prompts, answers, lists), 1):
        rest = [*prompt, *answer][start:]
        tokens += rest
        segment += [number] * len(rest)
        place += range(start, start + len(rest))
        asked += [IGNORED] * (len(prompt) - start - 1) + answer + [IGNORED]
        listed += _next(prompt, places)[start:] + [IGNORED] * len(answer)
    return [Packed(*(np.array(each, np.int64) for each in (tokens, segment, place, asked, listed)))]


def _next(prompt: list[int], places: range) -> list[int]:
    """At each place of a prompt the token behind it, where that one stands at one of the places; else `IGNORED`."""
    return [prompt[place] if place in places else IGNORED for place in range(1, len(prompt))] + [IGNORED]


def places_of(offsets: Sequence[tuple[int, int]], text: str, part: str) -> range:
    """The places of the tokens of a text that lie in some of its lines; none where those are not found.

    Args:
        offsets: of each token its first character and the one behind it.
        text: that was tokenized.
        part: the lines.
    """
    start = text.find(f"\n{part}\n") + 1
    if not start:
        return range(0)
    inside = [place for place, (first, end) in enumerate(offsets) if first >= start and first < end <= start + len(part)]
    return range(inside[0], inside[-1] + 1) if inside else range(0)


def count(rows: Sequence[Packed], of: Literal["answer", "listed"]) -> int:
    """How many tokens of answers or lists are predicted."""
    return sum(int((getattr(row, of) != IGNORED).sum()) for row in rows)
