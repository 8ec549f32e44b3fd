"""LLM answers: a crash-safe store, files of exported answers, and the answers that come with the package."""

import contextlib
import hashlib
import json
import os
import re
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import PROPERTIES, alive, make_folder, write_whole
from recbole_llm4sbr.base.outputs import ANSWERS, check_output
from recbole_llm4sbr.intent.backends import Request

_APPLICATION_ID = 0x5B124  # marks a SQLite file as ours
_VERSION = 2
_TABLES = """
CREATE TABLE sources (id INTEGER PRIMARY KEY, model TEXT NOT NULL, decoding TEXT NOT NULL, template TEXT NOT NULL,
    UNIQUE (model, decoding, template));
CREATE TABLE answers (key BLOB PRIMARY KEY, answer TEXT NOT NULL, source INTEGER NOT NULL, made INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE cut (key BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE runs (source INTEGER NOT NULL, made INTEGER NOT NULL, calls INTEGER NOT NULL, seconds REAL NOT NULL,
    prompt_tokens INTEGER NOT NULL, answer_tokens INTEGER NOT NULL);
CREATE TABLE claims (key BLOB PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE owners (owner TEXT PRIMARY KEY, seen REAL NOT NULL);
CREATE TABLE batches (tag TEXT PRIMARY KEY, source INTEGER NOT NULL, url TEXT NOT NULL, owner TEXT NOT NULL, made INTEGER NOT NULL,
    created REAL NOT NULL, file TEXT NOT NULL, id TEXT NOT NULL);
CREATE TABLE batched (key BLOB PRIMARY KEY, batch TEXT NOT NULL, failed INTEGER NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS batched_by_batch ON batched (batch);
CREATE TABLE requested (key BLOB PRIMARY KEY, source INTEGER NOT NULL) WITHOUT ROWID;
"""  # cut: the answers that were; the last three: batch_rows.py
_ANSWERS = "SELECT key, answer, EXISTS (SELECT 1 FROM cut WHERE cut.key = answers.key) FROM answers"
_CUT = "cut"  # behind a key and an answer in a file
_ALIVE = 30.0  # seconds that an owner of claims lives without a sign of life
_CHECKSUM = "(sha256 "  # behind the name of a folder or a .gguf file in an identity
_SIGN = 5.0  # seconds between two signs


class Answer(NamedTuple):
    """What an LLM said.

    Attributes:
        text: as it came.
        cut: whether it was not at its end when it had all its tokens; false where that is not known, of answers of earlier versions.
    """

    text: str
    cut: bool = False


def _decoding_text(decoding: Mapping[str, Any]) -> str:
    return json.dumps(dict(decoding), sort_keys=True, ensure_ascii=False)


def answer_key(identity: str, decoding: Mapping[str, Any], request: Request) -> bytes:
    """128-bit key of everything that an answer depends on; of a model folder that is its checksum, whatever the folder is called."""
    if identity.endswith(")"):
        identity = identity[max(identity.rfind(_CHECKSUM), 0) :]
    asked = [*request[:3], *([request.lines] if request.lines > 1 else []), *([request.schema] if request.schema else [])]
    asked += [{"excluded": sorted(request.excluded)}] if request.excluded else []
    parts = json.dumps([identity, dict(decoding), asked], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(parts.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class AnswerStore:
    """Answers by key in one SQLite file; several processes may use it at once, and a kill at any moment leaves it whole.

    Args:
        path: the file.
        make: make it when it is not there.

    Raises:
        UserError: the file is not an answer store, is of another version, or is not there and shall not be made.
    """

    def __init__(self, path: str | Path, make: bool = True) -> None:
        self.path = Path(path)
        if make:
            make_folder(self.path.parent)
        elif not self.path.is_file():
            raise UserError(f"there is no answer store {str(self.path)!r}; name the folder that holds it with --atomic_path")
        try:
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            self._use_wal()
            self._db.execute("PRAGMA synchronous=FULL")  # answers cost money; one sync per batch costs nothing
            self._open()
        except sqlite3.DatabaseError as error:
            raise UserError(f"{str(self.path)!r} is not an answer store ({error}); move it away and run again") from None

    def _use_wal(self) -> None:
        """Switch to a write-ahead log. Here SQLite does not wait for another process that is just doing the same."""
        for tries in range(100, -1, -1):
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or tries == 0:
                    raise
                time.sleep(0.1)

    def _open(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master")}
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if not tables:
            self._db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version={_VERSION}")
        elif application != _APPLICATION_ID or version != _VERSION:
            self._db.execute("ROLLBACK")
            raise UserError(f"{str(self.path)!r} is a database of another kind or version; move it away and run again")
        elif not tables >= {"sources", "answers", "runs"}:
            self._db.execute("ROLLBACK")
            raise UserError(f"{str(self.path)!r} has lost a table; move it away and run again")
        for statement in filter(str.strip, _TABLES.split(";")):
            self._db.execute(statement.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS"))
        self._db.execute("COMMIT")

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All that is written inside is stored, or nothing of it; no other process writes meanwhile."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """What a query finds."""
        return self._db.execute(query, values).fetchall()

    def get(self, keys: Sequence[bytes], since: int = 0) -> dict[bytes, Answer]:
        """The stored answers among `keys` that were made at `since` (seconds since 1970) or later."""
        found: dict[bytes, Answer] = {}
        for start in range(0, len(keys), 500):
            some = keys[start : start + 500]
            query = f"{_ANSWERS} WHERE made >= ? AND key IN ({','.join('?' * len(some))})"
            found |= {key: Answer(text, bool(cut)) for key, text, cut in self._db.execute(query, [since, *some])}
        return found

    def claim(self, keys: Sequence[bytes], owner: str) -> set[bytes]:
        """Take questions for asking; those that another living owner has taken, and those under way in a batch, are left out.

        Args:
            keys: of the questions.
            owner: whose they become, as `Asker.owner`.
        """
        with self.writing() as db:
            query = f"SELECT key FROM batched WHERE batch != '' AND key IN ({','.join('?' * len(keys))})"
            mine = set(keys) - self.claimed(keys, owner) - {key for (key,) in self.rows(query, keys)}
            db.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?)", ((key, owner) for key in mine))
        return mine

    def claimed(self, keys: Sequence[bytes], owner: str) -> set[bytes]:
        """Those of the questions that a living owner other than this one has taken."""
        marks = ",".join("?" * len(keys))
        query = f"SELECT key, owner, seen FROM claims JOIN owners USING (owner) WHERE owner != ? AND key IN ({marks})"
        rows = self.rows(query, [owner, *keys])
        alive = {each: is_alive(each, seen) for _, each, seen in rows}
        return {key for key, each, _ in rows if alive[each]}

    def live(self, owner: str) -> None:
        """A sign of life of an owner of claims."""
        self._db.execute("INSERT OR REPLACE INTO owners VALUES (?, ?)", (owner, time.time()))

    def release(self, owner: str, key: bytes | None = None) -> None:
        """Give up an owner's claim to a question, or all its claims."""
        if key is not None:
            self._db.execute("DELETE FROM claims WHERE owner = ? AND key = ?", (owner, key))
        else:
            self._db.execute("DELETE FROM claims WHERE owner = ?", (owner,))
            self._db.execute("DELETE FROM owners WHERE owner = ?", (owner,))

    def source(self, model: str, decoding: Mapping[str, Any], template: str) -> int:
        """The number under which answers of this model, decoding and prompt template are kept."""
        row = model, _decoding_text(decoding), template
        self._db.execute("INSERT OR IGNORE INTO sources (model, decoding, template) VALUES (?, ?, ?)", row)
        query = "SELECT id FROM sources WHERE model = ? AND decoding = ? AND template = ?"
        return int(self._db.execute(query, row).fetchone()[0])

    def put(self, answers: Iterable[tuple[bytes, Answer]], source: int) -> None:
        """Store (key, answer) pairs, all or none, replacing what is there."""
        made, answers = int(time.time()), list(answers)
        rows = [(key, answer.text.encode("utf-8", "replace").decode(), source, made) for key, answer in answers]
        with self.writing() as db:
            db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", rows)
            db.executemany("DELETE FROM cut WHERE key = ?", ((key,) for key, _ in answers))
            db.executemany("INSERT INTO cut VALUES (?)", ((key,) for key, answer in answers if answer.cut))
            db.executemany("DELETE FROM claims WHERE key = ?", ((key,) for key, _ in answers))

    def put_new(self, key: bytes, answer: Answer, source: int, made: int) -> bool:
        """Store an answer, inside of `writing`, unless its question has one; whether it had none."""
        new = self._db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", (key, answer.text, source, made)).rowcount
        if new and answer.cut:
            self._db.execute("INSERT OR IGNORE INTO cut VALUES (?)", (key,))
        return bool(new)

    def begin_run(self, source: int) -> int:
        """The number of a new run, for `note_run`."""
        return int(self._db.execute("INSERT INTO runs VALUES (?, ?, 0, 0, 0, 0)", (source, int(time.time()))).lastrowid or 0)

    def note_run(self, run: int, calls: int, seconds: float, prompt_tokens: int, answer_tokens: int) -> None:
        """Note what a run has come to so far, so that a kill does not lose it; `--dry_run` estimates from it."""
        row = calls, seconds, prompt_tokens, answer_tokens, run
        self._db.execute("UPDATE runs SET calls = ?, seconds = ?, prompt_tokens = ?, answer_tokens = ? WHERE rowid = ?", row)

    def speed(self, model: str, decoding: Mapping[str, Any]) -> tuple[float, float] | None:
        """Calls per second and answer tokens per call of the newest run of 20 calls or more, of a model so decoded; None without one."""
        query = (
            "SELECT calls / seconds, 1.0 * answer_tokens / calls FROM runs JOIN sources ON source = id "
            "WHERE model = ? AND decoding = ? AND calls >= 20 AND seconds > 0 ORDER BY made DESC LIMIT 1"
        )
        found: tuple[float, float] | None = self._db.execute(query, (model, _decoding_text(decoding))).fetchone()
        return found

    def statistics(self) -> list[dict[str, Any]]:
        """One row per model, decoding and template: answers, distinct answers, first and last day, runs' calls and seconds."""
        query = (
            "SELECT model, decoding, template, count(key), count(DISTINCT answer), min(answers.made), max(answers.made), "
            "(SELECT sum(calls) FROM runs WHERE runs.source = id), (SELECT sum(seconds) FROM runs WHERE runs.source = id) "
            "FROM sources LEFT JOIN answers ON answers.source = id GROUP BY id ORDER BY model, template"
        )
        names = ("model", "decoding", "template", "answers", "distinct", "first", "last", "calls", "seconds")
        rows = [dict(zip(names, row, strict=True)) for row in self._db.execute(query)]
        for row in rows:
            for name in ("first", "last"):
                row[name] = datetime.fromtimestamp(row[name], UTC).strftime("%Y-%m-%d") if row[name] else "-"
        return rows

    def export(self, path: str | Path, model: str, template: str, decoding: str = "", overwrite: bool = False) -> int:
        """Write the answers of one model, decoding and template into a file that `import_answers` and `shipped_answers` read.

        Args:
            path: the file.
            model: part of the model's name; "" for any.
            template: name of the template; "" for any.
            decoding: part of what `statistics` has under this name, as `greedy`; "" for any.
            overwrite: as for `check_output`; an earlier export of the same kind of answers is replaced without it.

        Returns:
            The number of answers.

        Raises:
            UserError: nothing fits, or more than one model, decoding and template do; the file must not be written.
        """
        source, name, of_decoding, prompt = self._one_source(model, template, decoding)
        rows = self._db.execute(f"{_ANSWERS} WHERE source = ? ORDER BY key", (source,))
        (count,) = self._db.execute("SELECT count(*) FROM answers WHERE source = ?", (source,)).fetchone()
        kind = {"model": name, "decoding": json.loads(of_decoding), "template": prompt}
        # An export of other answers stays: they may be dropped here by now.
        same = replace(ANSWERS, head=re.escape(_first_line(kind).removesuffix("}}\n")))
        check_output("file", path, same, [self.path], overwrite)
        date = datetime.now(UTC).strftime("%Y-%m-%d")
        answers = ((key.hex(), Answer(text, bool(cut))) for key, text, cut in rows)
        write_answers(path, kind | {"date": date, "answers": count}, answers)
        return int(count)

    def import_answers(self, path: str | Path) -> int:
        """Take over the answers of an exported file, all or none; what is stored already stays as it is.

        Returns:
            The number of answers that were new.

        Raises:
            UserError: the file is not such a file.
        """
        before = len(self)
        provenance, rows = read_answers(path)
        with self.writing():
            source = self.source(provenance["model"], provenance["decoding"], provenance.get("template", ""))
            made = int(time.time())
            for key, answer in rows:
                self.put_new(bytes.fromhex(key), answer, source, made)
        return len(self) - before

    def drop(self, model: str, template: str, decoding: str = "") -> int:
        """Remove the answers of every model whose name holds `model`, with the template ("" for any) and decodings that hold `decoding`.

        Raises:
            UserError: nothing fits.
        """
        count = 0
        sources = self._sources(model, template, decoding)
        with self.writing() as db:
            for source, *_ in sources:
                db.execute("DELETE FROM cut WHERE key IN (SELECT key FROM answers WHERE source = ?)", (source,))
                count += db.execute("DELETE FROM answers WHERE source = ?", (source,)).rowcount
                db.execute("DELETE FROM runs WHERE source = ?", (source,))
                db.execute("DELETE FROM requested WHERE source = ?", (source,))
                db.execute("DELETE FROM sources WHERE id = ? AND id NOT IN (SELECT source FROM batches)", (source,))
        return count

    def _one_source(self, model: str, template: str, decoding: str) -> tuple[int, str, str, str]:
        sources = self._sources(model, template, decoding)
        # an attempt that failed at once leaves a source without an answer
        sources = [
            each for each in sources if self.rows("SELECT 1 FROM answers WHERE source = ? LIMIT 1", each[:1])
        ] or sources[:1]
        if len(sources) > 1:
            raise UserError(
                "more than one kind of answers fits: "
                + "; ".join(f"{name}, template {prompt}, {decoding}" for _, name, decoding, prompt in sources)
                + "; say which with --llm, --prompt and --decoding (as --decoding=greedy)"
            )
        return sources[0]

    def _sources(self, model: str, template: str, decoding: str) -> list[tuple[int, str, str, str]]:
        query = (
            "SELECT id, model, decoding, template FROM sources "
            "WHERE instr(model, ?) AND (? = '' OR template = ?) AND instr(decoding, ?)"
        )
        sources = self._db.execute(query, (model, template, template, decoding)).fetchall()
        if not sources:
            like = f" and decoding like {decoding!r}" if decoding else ""
            raise UserError(
                f"{str(self.path)!r} holds no answers of a model named like {model!r} and template {template or 'any'!r}{like}; "
                f"`answers stats` shows what it holds"
            )
        return sources

    def __len__(self) -> int:
        """Number of answers."""
        return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()


class Asker:
    """An owner of claims in a store, alive until it is left: no other process asks what it has claimed."""

    def __init__(self, store: AnswerStore) -> None:
        self.owner = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
        self._store, self._over = store, threading.Event()
        self._thread = threading.Thread(target=self._signs, daemon=True)

    def _signs(self) -> None:
        store = AnswerStore(self._store.path)  # a connection belongs to one thread
        while not self._over.wait(_SIGN):
            with contextlib.suppress(sqlite3.Error):  # a late sign does no harm
                store.live(self.owner)
        store.close()

    def __enter__(self) -> "Asker":
        """Begin to give signs of life."""
        self._store.live(self.owner)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give up all claims."""
        self._over.set()
        self._thread.join()
        self._store.release(self.owner)


def is_alive(owner: str, seen: float) -> bool:
    """Whether an owner of claims still works: seen lately and, on this machine, a process that is there."""
    host, pid, _ = owner.split()
    if time.time() - seen > _ALIVE:
        return False
    if host != socket.gethostname():
        return True
    return alive(int(pid))


def shipped_answers(identity: str, decoding: Mapping[str, Any], folder: Path = PROPERTIES / "answers") -> dict[bytes, Answer]:
    """Answers that came with the package, of files made by exactly this model and decoding; read once in a process, not to be changed."""
    return _shipped(identity, json.dumps(dict(decoding), sort_keys=True), folder)


@lru_cache(maxsize=4)
def _shipped(identity: str, decoding: str, folder: Path) -> dict[bytes, Answer]:
    answers: dict[bytes, Answer] = {}
    for path in sorted(folder.glob("*.jsonl")):
        provenance, rows = read_answers(path)
        if provenance["model"] == identity and provenance["decoding"] == json.loads(decoding):
            answers.update((bytes.fromhex(key), answer) for key, answer in rows)
    return answers


def write_answers(path: str | Path, provenance: Mapping[str, Any], answers: Iterable[tuple[str, Answer]]) -> None:
    """Write a file of answers: a line of provenance, then per line a JSON list of key (hexadecimal), raw answer and, if it was, `cut`."""
    with write_whole(path) as handle:
        handle.write(_first_line(provenance))
        rows = ([key, answer.text, *[_CUT] * answer.cut] for key, answer in answers)
        handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _first_line(provenance: Mapping[str, Any]) -> str:
    return json.dumps({"provenance": dict(provenance)}, ensure_ascii=False) + "\n"


def read_answers(path: str | Path) -> tuple[dict[str, Any], Iterator[tuple[str, Answer]]]:
    """Provenance and (key, raw answer) rows of a file that `write_answers` wrote.

    Raises:
        UserError: the file cannot be read or is not such a file; for a bad row, its number, when it is reached.
    """

    def rows() -> Iterator[tuple[str, Answer]]:
        with open(path, encoding="utf-8") as lines:
            next(lines)
            for number, line in enumerate(lines, 2):
                try:
                    key, answer, *rest = json.loads(line)
                    if len(bytes.fromhex(key)) != 16 or not isinstance(answer, str) or rest not in ([], [_CUT]):
                        raise ValueError
                except (ValueError, TypeError, RecursionError):
                    raise UserError(f"{str(path)!r}, line {number}, is not a key and an answer; take an intact copy") from None
                yield key, Answer(answer, bool(rest))

    try:
        with open(path, encoding="utf-8") as lines:
            provenance = json.loads(next(lines))["provenance"]
            _ = provenance["model"], dict(provenance["decoding"])
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, StopIteration, RecursionError):
        raise UserError(
            f"{str(path)!r} is not a file of exported answers (its first line names no model and decoding)"
        ) from None
    return provenance, rows()
