"""Make batches of questions at an endpoint, so that a kill at any moment leaves behind what says whether one was made."""

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.intent.backends.openai import OpenAIBackend
from recbole_llm4sbr.intent.backends.openai_batch import Batch, BatchEndpoint
from recbole_llm4sbr.intent.batch_rows import BatchRow, BatchRows, new_tag
from recbole_llm4sbr.intent.questions import Questions
from recbole_llm4sbr.intent.request_lines import request_line

log = logging.getLogger(__name__)

MOST_REQUESTS = 50_000  # in a batch, as OpenAI has it
MOST_BYTES = 200 * 10**6  # of a file of requests, likewise
SETTLED = 60.0  # seconds after which a batch that was being made stands in the endpoint's list, or was not made
LOOK = 2.0  # seconds between two looks for it
_MADE = 3  # tries to make a batch whose making has no known outcome
_RESERVED = 500  # questions per transaction


@dataclass
class _Filling:
    """A file of requests on its way to become a batch; questions are reserved in the store before they are written."""

    rows: BatchRows
    row: BatchRow
    since: int
    handle: BinaryIO
    waiting: dict[bytes, bytes] = field(default_factory=dict)
    requests: int = 0
    size: int = 0
    reserved: int = 0

    def takes(self, line: bytes) -> bool:
        """Whether the limits allow another line."""
        return not self.requests or (self.requests < MOST_REQUESTS and self.size + len(line) <= MOST_BYTES)

    def add(self, key: bytes, line: bytes) -> None:
        """Take a line."""
        self.waiting[key] = line
        self.requests, self.size = self.requests + 1, self.size + len(line)
        if len(self.waiting) >= _RESERVED:
            self.flush()

    def flush(self) -> None:
        """Reserve the questions that wait, and write those that are ours."""
        mine = self.rows.reserve(self.row, list(self.waiting), self.since) if self.waiting else set()
        self.handle.writelines(line for key, line in self.waiting.items() if key in mine)
        self.reserved += len(mine)
        self.waiting.clear()


@dataclass
class BatchMaker:
    """Makes batches of the questions of a run.

    Attributes:
        questions: of the run.
        endpoint: where batches are made.
        backend: makes the requests.
        rows: where each batch is noted, before the endpoint hears of it and after.
        owner: of the batches that are being made.
        folder: where files may stand while they are uploaded.
    """

    questions: Questions
    endpoint: BatchEndpoint
    backend: OpenAIBackend
    rows: BatchRows
    owner: str
    folder: Path

    @cached_property
    def source(self) -> int:
        """Under what the answers are kept."""
        return self.questions.store.source(self.backend.identity, self.backend.decoding, self.questions.template)

    def hand_in(self, numbers: Sequence[int]) -> None:
        """Make batches of the questions, as few as the limits allow."""
        filling = self._filling()
        try:
            for number in numbers:
                key, request = self.questions.key(number), self.questions.request(number)
                line = request_line(key, self.backend.body(request))
                if not filling.takes(line):
                    self._make(filling)
                    filling = self._filling()
                filling.add(key, line)
            self._make(filling)
        finally:
            filling.handle.close()

    def _filling(self) -> "_Filling":
        row = BatchRow(new_tag(), self.source, self.endpoint.url, self.owner, int(time.time()), 0.0, "", "")
        return _Filling(self.rows, row, self.questions.since, temporary_file(self.folder))

    def _make(self, filling: "_Filling") -> None:
        """Upload the requests and make a batch of them.

        Raises:
            UserError: the endpoint does neither; no batch was made.
        """
        filling.flush()
        with filling.handle:
            if not filling.reserved:
                return  # other processes are asking them
            filling.handle.seek(0)
            with self._freed_when_refused(filling.row):
                file = self.endpoint.upload(filling.handle)
        for _ in range(_MADE):
            row = filling.row._replace(file=file, created=time.time())
            if not self.rows.creating(row):
                return  # another process took this one for dead, and asks its questions
            with self._freed_when_refused(row):
                batch = self.endpoint.create(row.file, row.tag)
            batch = batch or self.found(row)  # an error leaves it to the next run
            if batch is not None:
                self.made(row, batch)
                log.info("%s requests handed in as batch %s", f"{filling.reserved:,}", batch.id)
                return
        self.rows.free(row)
        raise UserError(
            f"{self.endpoint.url} did not make a batch in {_MADE} tries and says not why; run the same command again"
        )

    @contextmanager
    def _freed_when_refused(self, row: BatchRow) -> Iterator[None]:
        try:
            yield
        except UserError:
            self.rows.free(row)
            raise

    def found(self, row: BatchRow) -> Batch | None:
        """The batch whose making has no known outcome; None where it was not made. Waits until the endpoint's list must have it."""
        said = False
        while True:
            late = not 0 <= time.time() - row.created <= SETTLED
            found = self.endpoint.find(row.tag, row.file)
            if found or late:
                return found
            if not said:
                log.info("a batch may just have been made; looking for it at %s for up to %.0f s", self.endpoint.url, SETTLED)
                said = True
            time.sleep(LOOK)

    def made(self, row: BatchRow, batch: Batch) -> BatchRow:
        """Note that a batch was made."""
        self.rows.created(row.tag, batch.id)
        return row._replace(id=batch.id)


def temporary_file(folder: Path) -> BinaryIO:
    """A file that is gone with the process, however it ends."""
    return tempfile.TemporaryFile(dir=folder)
