"""JSON lines of chat requests and of their replies, as OpenAI's batches and `vllm run-batch` have them.

A line of requests has the answer's key, in hexadecimal, as its `custom_id`; the reply to it says the same. Files of replies come from
elsewhere: whatever stands in a line costs that line and no more.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from recbole_llm4sbr.base.wording import printable
from recbole_llm4sbr.intent.backends import Reply
from recbole_llm4sbr.intent.backends.openai import hide_key, read_completion

ENDPOINT = "/v1/chat/completions"
LONGEST_LINE = 4 * 1024 * 1024  # bytes
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


class Line(NamedTuple):
    """A reply, and the key of its question."""

    key: bytes
    reply: Reply


def request_line(key: bytes, body: Mapping[str, Any]) -> bytes:
    """A question as a line of a batch.

    >>> request_line(b"\\x01" * 2, {"model": "m"})
    b'{"custom_id": "0101", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}\\n'
    """
    line = {"custom_id": key.hex(), "method": "POST", "url": ENDPOINT, "body": body}
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def reply_lines(handle: BinaryIO, key: str) -> Iterator[Line | None]:
    """The replies in a file, in its order; None for a line that is none.

    Args:
        handle: the file, open for reading.
        key: that nobody shall see.
    """
    for line in _bounded_lines(handle):
        if line is None or line.strip():
            yield None if line is None else _line(line, key)


def _bounded_lines(handle: BinaryIO) -> Iterator[bytes | None]:
    """Lines of a file; None for one that is too long, which is read in pieces and never held."""
    while line := handle.readline(LONGEST_LINE + 1):
        if len(line) <= LONGEST_LINE:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = handle.readline(LONGEST_LINE)
        yield None


def _line(text: bytes, key: str) -> Line | None:
    try:
        row = json.loads(text)
        question = bytes.fromhex(row["custom_id"])
        response, error = row.get("response"), row.get("error")
    except _UNREADABLE:
        return None
    if not isinstance(response, dict) or response.get("status_code", 200) != 200:
        return Line(question, Reply(0, failure=_reason(response, error, key)))
    try:
        return Line(question, read_completion(0, response["body"], key))
    except _UNREADABLE as unreadable:
        return Line(question, Reply(0, failure=f"the reply cannot be read ({type(unreadable).__name__})"))


def _reason(response: Any, error: Any, key: str) -> str:
    """Why a request failed: what the line says, or the reply in it."""
    said = ""
    if isinstance(response, dict):
        body = response.get("body")
        said = f"status {response.get('status_code')!s:.20}"
        error = (body.get("error") if isinstance(body, dict) else None) or error
    if isinstance(error, dict):
        said = ": ".join(filter(None, [said, *(str(error[each]) for each in ("code", "message") if error.get(each))]))
    return hide_key(printable(said), key)[:300] or "no answer and no reason"
