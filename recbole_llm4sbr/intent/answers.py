"""LLM answers: a crash-safe store, the answers that come with the package, and cleaning."""

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recbole_llm4sbr.errors import UserError
from recbole_llm4sbr.files import PROPERTIES, make_folder, write_whole
from recbole_llm4sbr.intent.backends import Request

_APPLICATION_ID = 0x5B124  # marks a SQLite file as ours
_VERSION = 1


def answer_key(identity: str, decoding: Mapping[str, Any], request: Request) -> str:
    """128-bit key of everything that an answer depends on, in hexadecimal."""
    parts = json.dumps([identity, dict(decoding), list(request)], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()


class AnswerStore:
    """Answers by key in one SQLite file; several processes may use it at once, and a kill at any moment leaves it whole.

    Args:
        path: the file, made when it is not there.

    Raises:
        UserError: the file is not an answer store, or is of a newer version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        make_folder(self.path.parent)
        try:
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")  # answers cost money; one sync per batch costs nothing
            self._open()
        except sqlite3.DatabaseError as error:
            raise UserError(f"{str(self.path)!r} is not an answer store ({error}); move it away and run again") from None

    def _open(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if tables == 0:
            self._db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version={_VERSION}")
            self._db.execute(
                "CREATE TABLE answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL, model TEXT NOT NULL, "
                "template TEXT NOT NULL, made TEXT NOT NULL) WITHOUT ROWID"
            )
        elif application != _APPLICATION_ID or version != _VERSION:
            self._db.execute("ROLLBACK")
            raise UserError(f"{str(self.path)!r} is a database of another kind or version; move it away and run again")
        self._db.execute("COMMIT")

    def get(self, keys: Sequence[str]) -> dict[str, str]:
        """The stored answers among `keys`."""
        found: dict[str, str] = {}
        for start in range(0, len(keys), 500):
            some = keys[start : start + 500]
            query = f"SELECT key, answer FROM answers WHERE key IN ({','.join('?' * len(some))})"
            found.update(self._db.execute(query, some).fetchall())
        return found

    def put(self, answers: Iterable[tuple[str, str]], model: str, template: str) -> None:
        """Store (key, answer) pairs, all or none, replacing what is there."""
        made = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)",
            [(key, answer, model, template, made) for key, answer in answers],
        )
        self._db.execute("COMMIT")

    def __len__(self) -> int:
        """Number of answers."""
        return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def shipped_answers(identity: str, decoding: Mapping[str, Any], folder: Path = PROPERTIES / "answers") -> dict[str, str]:
    """Answers that came with the package, of files made by exactly this model and decoding.

    A file's first line is its provenance, every further line a JSON list of key and raw answer.
    """
    answers: dict[str, str] = {}
    for path in sorted(folder.glob("*.jsonl")):
        with open(path, encoding="utf-8") as lines:
            provenance = json.loads(next(lines))["provenance"]
            if provenance["model"] == identity and provenance["decoding"] == dict(decoding):
                answers.update(json.loads(line) for line in lines)
    return answers


def write_shipped(path: str | Path, provenance: Mapping[str, Any], answers: Mapping[str, str]) -> None:
    """Write a file of answers to ship, in the form `shipped_answers` reads."""
    with write_whole(path) as handle:
        handle.write(json.dumps({"provenance": dict(provenance)}, ensure_ascii=False) + "\n")
        for key in sorted(answers):
            handle.write(json.dumps([key, answers[key]], ensure_ascii=False) + "\n")


# Applied in this order, again and again until nothing changes: what stands before a name ...
_BEFORE = [
    r"[\s\-*#>•·]+",  # bullets and headings
    r"(?:item |movie |product )?\(?\d{1,3}[.):]\s+",  # numbering, "3. "
    r"(?:final |my |the )?(?:answer|guess|output|response|recommendation"  # "My guess is ", "Title: "
    r"|(?:movie|product|item|book|song)(?: title| name)?|title|name)\s*(?:is|:|would be)[\s:]*",
    r"(?:sure|certainly|okay|ok|of course)[,!.:]+\s*",
    r"[\"“”'‘’`*_]+(?=.*[\"“”'‘’`*_])",  # an opening quote that is closed later
]
_REFUSAL = re.compile(
    r"^(?:as an ai|i'?m sorry|sorry|i am sorry|i can(?:no|')t|i don'?t|unfortunately|n/?a$|none$|unknown$)", re.I
)
_PLACEHOLDER = re.compile(r"^(?:movie|product|item|thing|title|name|answer)(?: (?:title|name))?(?: #?\d+)?$", re.I)


def clean(raw: str, qualifiers: Sequence[str] = ()) -> str:
    """The name in a raw answer, or an empty string when there is none (an echo of the question, a refusal, nothing).

    Args:
        raw: what the LLM said, without `answer_start`.
        qualifiers: the template's qualifiers; an answer that repeats the beginning of one is no answer.
    """
    text = next((line.strip() for line in raw.splitlines() if line.strip()), "")
    before = None
    while before != text:
        before = text
        for pattern in _BEFORE:
            text = re.sub(rf"^{pattern}", "", text, flags=re.I)
    text = re.split(r"[\"“”]", text)[0]  # what follows a closing quote is talk
    text = re.sub(r"[\s.,;:!*_`'’]+$", "", re.sub(r"\s+", " ", text))
    words = re.findall(r"\w+", text.lower())
    if not words or _REFUSAL.match(text) or _PLACEHOLDER.match(text):
        return ""
    for qualifier in qualifiers:
        asked = re.findall(r"\w+", qualifier.lower())
        begins = len(words) > 1 and words[:4] == asked[: len(words[:4])]
        if begins or (len(words) > 2 and f" {' '.join(words)} " in f" {' '.join(asked)} "):
            return ""
    return text
