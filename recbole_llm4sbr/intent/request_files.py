"""Files of requests for a runner of the user's, as `vllm run-batch`, and the file of replies that it writes."""

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import write_whole
from recbole_llm4sbr.intent.batch_rows import BatchRows
from recbole_llm4sbr.intent.batches import openai_backend
from recbole_llm4sbr.intent.questions import Questions
from recbole_llm4sbr.intent.request_lines import Line, reply_lines, request_line
from recbole_llm4sbr.intent.store import Answer, AnswerStore

_ROWS = 500  # questions or answers at once
_FIRST = 10  # lines that are looked at for the form of a file


def write_questions(questions: Questions, path: str | Path) -> int:
    """Write the missing questions that are not under way into a file of requests; the store notes whose answers they will be.

    Returns:
        The number of requests.
    """
    backend, rows, store = openai_backend(questions), BatchRows(questions.store), questions.store
    source = store.source(backend.identity, backend.decoding, questions.template)
    missing, written = questions.missing, 0
    with write_whole(path, "wb") as handle:
        for start in range(0, len(missing), _ROWS):
            numbers = {questions.key(number): number for number in missing[start : start + _ROWS].tolist()}
            states = rows.states(list(numbers))
            keys = [key for key in numbers if key not in states or not states[key].batch]
            rows.note_requested(keys, source)
            handle.writelines(request_line(key, backend.body(questions.request(numbers[key]))) for key in keys)
            written += len(keys)
    return written


class Imported(NamedTuple):
    """What a file of replies came to.

    Attributes:
        new: answers that were stored.
        there: answers to questions that have one, which stays.
        failed: requests that the runner did not answer.
        unknown: replies to requests that this store has not written.
        unreadable: lines that are no replies.
    """

    new: int = 0
    there: int = 0
    failed: int = 0
    unknown: int = 0
    unreadable: int = 0


def holds_replies(path: str | Path) -> bool:
    """Whether a file is one of a runner's replies: one of its first lines has a `custom_id`."""
    try:
        with open(path, "rb") as handle:
            for _ in range(_FIRST):
                try:
                    row = json.loads(handle.readline(1 << 22))
                except (ValueError, RecursionError):
                    continue
                if isinstance(row, dict) and "custom_id" in row:
                    return True
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
    return False


def import_replies(store: AnswerStore, path: str | Path) -> Imported:
    """Store the answers in a runner's file; what is stored already stays, and so does whatever was not asked from here.

    A line says nothing about model and decoding: those are known of the requests that this store has written, and of no other.

    Args:
        store: in whose folder the requests were written.
        path: the file.
    """
    rows, key = BatchRows(store), os.environ.get("OPENAI_API_KEY", "").strip()
    total, some = Imported(), list[Line]()
    unreadable = failed = 0
    with open(path, "rb") as handle:
        for line in reply_lines(handle, key):
            if line is None:
                unreadable += 1
            elif line.reply.failure:
                failed += 1
            else:
                some.append(line)
            if len(some) >= _ROWS:
                total = _stored(store, rows, some, total)
                some.clear()
    return _stored(store, rows, some, total)._replace(failed=failed, unreadable=unreadable)


def _stored(store: AnswerStore, rows: BatchRows, lines: list[Line], total: Imported) -> Imported:
    """Store answers, the first of each key, under the sources of their requests."""
    answers = {line.key: Answer(line.reply.answer, line.reply.cut) for line in reversed(lines)}
    known = rows.requested(list(answers))
    made = int(time.time())
    with store.writing():
        new = sum(store.put_new(key, answers[key], source, made) for key, source in known.items())
    unknown = sum(line.key not in known for line in lines)
    return total._replace(new=total.new + new, unknown=total.unknown + unknown, there=total.there + len(lines) - unknown - new)
