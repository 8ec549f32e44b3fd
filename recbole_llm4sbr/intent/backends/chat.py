"""What the local engines share: how a request becomes tokens, where an answer ends, which prompts stand together."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recbole_llm4sbr.intent.backends import Request


def local_decoding(max_new_tokens: int, beams: int = 1) -> Mapping[str, Any]:
    """The decoding of all local engines; they share their answers."""
    sampling = "greedy" if beams == 1 else f"{beams} likeliest by beam search"
    return {"sampling": sampling, "max_new_tokens": max_new_tokens, "stop": "\n or closing quote"}


def held_decoding(beams: int, titles: Iterable[str]) -> Mapping[str, Any]:
    """The decoding of a local engine that is held to titles."""
    digest = hashlib.sha256("\n".join(sorted(set(titles))).encode("utf-8", "surrogatepass")).hexdigest()
    return {"sampling": f"{beams} likeliest titles of a catalogue by beam search", "catalogue": digest[:16]}


def render(tokenizer: Any, request: Request) -> str:
    """The text of a request in the model's chat form, or plainly where it has none, up to the beginning of the answer."""
    if not tokenizer.chat_template:
        return f"{tokenizer.bos_token or ''}{request.system}\n{request.user}\n{request.answer_start}"
    chat = [{"role": "system", "content": request.system}] if request.system else []
    chat.append({"role": "user", "content": request.user})
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return str(text) + request.answer_start


def tokenize(tokenizer: Any, requests: Iterable[Request]) -> list[list[int]]:
    """Token ids of each request."""
    texts = [render(tokenizer, request) for request in requests]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False).input_ids if texts else []
    return ids


def continuations(tokenizer: Any, start: str, titles: Sequence[str]) -> list[list[int]]:
    """Token ids of each title behind the beginning of an answer, with the quote that closes it where the beginning opens one."""
    return tokens_behind(tokenizer, start, [title_text(title) + closing_quote(start) for title in titles])


def tokens_behind(tokenizer: Any, start: str, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text behind a beginning; where a tokenizer draws that into them, those of the texts alone."""
    behind = tokenizer([start + text for text in texts], add_special_tokens=False).input_ids if start else []
    begun = tokenizer(start, add_special_tokens=False).input_ids if start else []
    if all(ids[: len(begun)] == begun for ids in behind) and behind:
        return [ids[len(begun) :] for ids in behind]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False).input_ids if texts else []
    return ids


def closing_quote(start: str) -> str:
    """What ends an answer that begins so: the quote that is open, if one is."""
    return '"' if start.count('"') % 2 else ""


def title_text(title: str) -> str:
    """A title as an answer can hold it: without quotes and line ends, which would end it."""
    return re.sub(r'["\n]', " ", title).strip()


@dataclass
class Group:
    """Prompts that share beginnings of one chain of tokens: views of a session, and prefixes of it.

    Attributes:
        chain: tokens computed once for all members.
        members: positions of the prompts.
        shared: how many tokens of the chain each member begins with; at least one token of a prompt is left over.
    """

    chain: list[int]
    members: list[int]
    shared: list[int]


def group(tokens: Sequence[list[int]], largest: int = 32, least: int = 16) -> list[Group]:
    """Put prompts that begin alike into groups.

    In lexical order the views of a session stand together, and so do its prefixes, whose item lists are beginnings of each other. The
    chain of a group is the longest beginning that two of its members have in common.

    Args:
        tokens: token ids of each prompt.
        largest: prompts in a group.
        least: tokens beyond the beginning of all prompts that a member must share, and at least half of it.

    Two prompts that share three tokens make a group, a third one stands alone:

    >>> [(each.members, each.chain, each.shared) for each in group([[1, 2, 3, 4], [1, 2, 3, 5], [7, 8]], least=2)]
    [([0, 1], [1, 2, 3], [3, 3]), ([2], [], [0])]
    """
    order = sorted(range(len(tokens)), key=lambda i: tokens[i])
    root = common(tokens[order[0]], tokens[order[-1]]) if order else 0
    groups: list[Group] = []
    for position in order:
        mine, last = tokens[position], groups[-1] if groups else None
        needed = root + max(least, (len(mine) - root) // 2)
        if last and len(last.members) < largest:
            with_last = common(mine, tokens[last.members[-1]])
            along = min(with_last, common(mine, last.chain))
            extends = along == len(last.chain)
            if max(along, with_last if extends else 0) >= needed:
                if extends:
                    last.chain = mine[:with_last]
                last.members.append(position)
                continue
        groups.append(Group(mine[:root], [position], []))
    for each in groups:
        each.shared = [common(tokens[i], each.chain) for i in each.members]
    return groups


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning, leaving at least one token of `a`.

    >>> common([1, 2, 3], [1, 2, 9]), common([1, 2], [1, 2, 9])
    (2, 1)
    """
    end = min(len(a) - 1, len(b))
    for i in range(end):
        if a[i] != b[i]:
            return i
    return end
