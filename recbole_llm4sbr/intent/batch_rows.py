"""What the answer store knows of questions that are asked by files: in batches of an endpoint, or by a runner of the user's.

A question in a batch has a row in `batched`: `batch` is the tag of the batch in which it is under way, or empty; `failed` counts the
batches in a row in which it got no answer. The rows of answered questions stay until the run that collects the last of them is through
(`end_pass`), which knows from them how many were asked. A batch has its row in `batches` before anything of it reaches the endpoint;
`created` says when the call that makes it began (0: not yet), `id` is what the endpoint calls it (empty: not known yet).
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from recbole_llm4sbr.intent.store import AnswerStore, is_alive

TRIES = 2  # batches in which a question may fail before the run gives it up


class BatchRow(NamedTuple):
    """A batch in the store; the attributes are the columns of its table."""

    tag: str
    source: int
    url: str
    owner: str
    made: int
    created: float
    file: str
    id: str


class State(NamedTuple):
    """A question that stands in a batch, or did: as its row in `batched`."""

    batch: str
    failed: int
    reason: str


class BatchRows:
    """Batches and their questions in an answer store; each method is one transaction.

    Args:
        store: the store.
    """

    def __init__(self, store: AnswerStore) -> None:
        self._store = store

    def states(self, keys: Sequence[bytes]) -> dict[bytes, State]:
        """What is known of those of the questions that stand in a batch or did."""
        query = f"SELECT key, batch, failed, reason FROM batched WHERE key IN ({','.join('?' * len(keys))})"
        return {key: State(*rest) for key, *rest in self._store.rows(query, keys)}

    def batches(self) -> list[BatchRow]:
        """All batches that are under way or were to be made, oldest first."""
        return [BatchRow(*row) for row in self._store.rows("SELECT * FROM batches ORDER BY made, rowid")]

    def questions(self, tag: str) -> list[bytes]:
        """Keys of the questions in a batch."""
        return [key for (key,) in self._store.rows("SELECT key FROM batched WHERE batch = ?", (tag,))]

    def abandoned(self, row: BatchRow, owner: str) -> bool:
        """Whether a batch without an id was left by a process that has ended."""
        seen = self._store.rows("SELECT seen FROM owners WHERE owner = ?", (row.owner,))
        return not row.id and row.owner != owner and not (seen and is_alive(row.owner, seen[0][0]))

    def reserve(self, row: BatchRow, keys: Sequence[bytes], since: int) -> set[bytes]:
        """Put questions into a batch that is to be made, and note the batch with the first of them.

        Returns:
            Those that are in it now: not answered since then, not under way, not given up, and not being asked by another process.
        """
        with self._store.writing() as db:
            taken = {key for key, state in self.states(keys).items() if state.batch or state.failed >= TRIES}
            mine = set(keys) - taken - self._store.get(keys, since).keys() - self._store.claimed(keys, row.owner)
            if mine:
                db.execute("INSERT OR IGNORE INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
                put = "INSERT INTO batched VALUES (?, ?, 0, '') ON CONFLICT (key) DO UPDATE SET batch = excluded.batch"
                db.executemany(put, ((key, row.tag) for key in mine))
        return mine

    def creating(self, row: BatchRow) -> bool:
        """Note that a batch is being made of an uploaded file; false where another process has given the batch up meanwhile."""
        query = "UPDATE batches SET file = ?, created = ? WHERE tag = ? AND owner = ? AND id = ''"
        with self._store.writing() as db:
            return bool(db.execute(query, (row.file, row.created, row.tag, row.owner)).rowcount)

    def created(self, tag: str, batch: str) -> None:
        """Note what the endpoint calls a batch."""
        with self._store.writing() as db:
            db.execute("UPDATE batches SET id = ? WHERE tag = ?", (batch, tag))

    def free(self, row: BatchRow) -> None:
        """Forget a batch, unless it has got another id meanwhile; its questions may be asked again, as if it had not been."""
        with self._store.writing() as db:
            if db.execute("DELETE FROM batches WHERE tag = ? AND id = ?", (row.tag, row.id)).rowcount:
                db.execute("UPDATE batched SET batch = '' WHERE batch = ?", (row.tag,))

    def finish(self, tag: str, reasons: Mapping[bytes, str], otherwise: str) -> int:
        """Forget a batch whose answers are stored; its questions without one have failed once more.

        Args:
            tag: of the batch.
            reasons: why, by key.
            otherwise: why, where no reason is given.

        Returns:
            The number of those that failed; 0 also where another process was quicker.
        """
        with self._store.writing() as db:
            made = self._store.rows("SELECT made FROM batches WHERE tag = ?", (tag,))
            if not made:
                return 0
            answered = "EXISTS (SELECT 1 FROM answers WHERE answers.key = batched.key AND answers.made >= ?)"
            update = f"UPDATE batched SET batch = '', failed = 0, reason = '' WHERE batch = ? AND {answered}"
            db.execute(update, (tag, made[0][0]))
            failed = self.questions(tag)
            update = "UPDATE batched SET batch = '', failed = failed + 1, reason = ? WHERE key = ?"
            db.executemany(update, ((reasons.get(key, otherwise), key) for key in failed))
            db.execute("DELETE FROM batches WHERE tag = ?", (tag,))
        return len(failed)

    def end_pass(self, keys: Iterable[Sequence[bytes]]) -> int:
        """Forget what is not under way of these questions, so that what failed may be asked anew.

        Returns:
            The number of those that were asked.
        """
        with self._store.writing() as db:
            count = 0
            for some in keys:
                query = f"DELETE FROM batched WHERE batch = '' AND key IN ({','.join('?' * len(some))})"
                count += db.execute(query, some).rowcount
            return count

    def forget(self, model: str) -> int:
        """Give up the batches of every model whose name holds `model`; the number of questions in them."""
        sources = {id for (id,) in self._store.rows("SELECT id FROM sources WHERE instr(model, ?)", (model,))}
        batches = [row for row in self.batches() if row.source in sources]
        count = sum(len(self.questions(row.tag)) for row in batches)
        for row in batches:
            self.free(row)
        return count

    def note_requested(self, keys: Sequence[bytes], source: int) -> None:
        """Note that questions were written into a file, and under which source their answers belong."""
        with self._store.writing() as db:
            db.executemany("INSERT OR REPLACE INTO requested VALUES (?, ?)", ((key, source) for key in keys))

    def requested(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        """The sources of those of the questions that were written into a file."""
        query = f"SELECT key, source FROM requested WHERE key IN ({','.join('?' * len(keys))})"
        return dict(self._store.rows(query, keys))


def new_tag() -> str:
    """A name that no other batch has."""
    return uuid.uuid4().hex
