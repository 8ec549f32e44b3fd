"""Ask the LLM in batches of an endpoint: half the price, and answers within a day (docs/llm-backends.md).

A run hands in what is missing and ends; the next one collects. What is under way stands in the answer store before the endpoint hears
of it, so that no question is asked twice, whenever a run is killed and however many run at once.
"""

import logging
import time
from array import array
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from recbole_llm4sbr.base.errors import NotYet, UserError
from recbole_llm4sbr.base.files import make_folder
from recbole_llm4sbr.intent.backends.openai import OpenAIBackend
from recbole_llm4sbr.intent.backends.openai_batch import Batch, BatchEndpoint
from recbole_llm4sbr.intent.batch_maker import BatchMaker, temporary_file
from recbole_llm4sbr.intent.batch_rows import TRIES, BatchRow, BatchRows
from recbole_llm4sbr.intent.progress import BatchProgress
from recbole_llm4sbr.intent.questions import Counts, FailureLog, Questions
from recbole_llm4sbr.intent.request_lines import reply_lines
from recbole_llm4sbr.intent.store import Answer, Asker

log = logging.getLogger(__name__)

PRICE = 0.5  # of an answer, as a share of the usual price
POLL = 30.0  # seconds between two looks at the batches
_WAIT = 1.0  # seconds between two looks at what another process is asking
_STORED = 500  # questions or answers per transaction
_NAMED = 5  # batches that a message names


def ask_in_batches(questions: Questions, failures: Path, max_failure_rate: float, wait: float) -> Counts:
    """Collect what batches have brought and hand in what is still missing, until nothing is.

    Args:
        questions: what there is to ask, of the openai backend.
        failures: JSON lines of what failed and why; written anew, removed when nothing failed.
        max_failure_rate: share of the questions in batches that may fail, each in `TRIES` batches.
        wait: seconds to wait for batches that are under way.

    Raises:
        NotYet: something is under way when that time is over.
        UserError: the endpoint refuses a batch or does not answer, or more than `max_failure_rate` failed.
    """
    counts, rows, backend = questions.counts, BatchRows(questions.store), openai_backend(questions)
    questions.log_counts()
    make_folder(failures.parent)
    failures.unlink(missing_ok=True)
    if len(questions.missing):
        started = time.perf_counter()
        with Asker(questions.store) as asker:
            endpoint = BatchEndpoint(backend)
            maker = BatchMaker(questions, endpoint, backend, rows, asker.owner, failures.parent)
            run = _Run(questions, endpoint, backend, rows, maker, failures)
            try:
                run.walk(wait)
            finally:
                counts.seconds = time.perf_counter() - started
                run.close()
    asked = rows.end_pass(questions.keys(start, start + _STORED) for start in range(0, counts.distinct, _STORED))
    if counts.failures:
        said = f"{counts.failures:,} of {asked:,} questions failed, each in {TRIES} batches"
        log.warning("%s; reasons: %s", said, failures)
        if counts.failures > max_failure_rate * asked:
            raise UserError(
                f"{said}, more than max_failure_rate={max_failure_rate}; the reasons are in {str(failures)!r}, all answers are kept; "
                f"run again to ask for the missing ones, or raise --max_failure_rate"
            )
    return counts


def openai_backend(questions: Questions) -> OpenAIBackend:
    """What makes requests for batches.

    Raises:
        UserError: the backend is another one.
    """
    if not isinstance(questions.backend, OpenAIBackend):
        raise UserError("requests in files are those of an endpoint: add --llm_backend=openai, with --llm and --llm_url")
    return questions.backend


def under_way(questions: Questions) -> int:
    """How many of the missing questions are under way in batches."""
    rows = BatchRows(questions.store)
    if not rows.batches():
        return 0
    pieces = (questions.missing[start : start + _STORED].tolist() for start in range(0, len(questions.missing), _STORED))
    states = (rows.states([questions.key(number) for number in piece]) for piece in pieces)
    return sum(bool(state.batch) for some in states for state in some.values())


def check_none_under_way(questions: Questions) -> None:
    """Refuse to ask one by one what a batch will answer.

    Raises:
        UserError: a batch will.
    """
    if count := under_way(questions):
        raise UserError(
            f"{count:,} of the questions are under way in batches: add --llm_batch=true to collect their answers, or give them up "
            f"with `recbole-llm4sbr answers forget`"
        )


@dataclass
class _Standing:
    """The missing questions of a run: those to hand in, by batch how many are under way, those that failed too often."""

    open: "array[int]" = field(default_factory=lambda: array("q"))  # may be all of them
    under_way: Counter[str] = field(default_factory=Counter)
    given_up: list[tuple[int, str]] = field(default_factory=list)


@dataclass
class _Run:
    """A run's walk over the batches that its missing questions need."""

    questions: Questions
    endpoint: BatchEndpoint
    backend: OpenAIBackend
    rows: BatchRows
    maker: BatchMaker
    failures: Path
    looks: dict[str, Batch] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)

    def walk(self, wait: float) -> None:
        """Collect, hand in and wait until every missing question is answered or given up.

        Raises:
            NotYet, UserError: as `ask_in_batches`.
        """
        until = time.monotonic() + wait
        total = len(self.questions.missing)
        with closing(BatchProgress(total, shown=wait > 0)) as progress:
            while True:
                under = self._standing().under_way
                for row in self.rows.batches():
                    if row.tag in under:
                        self._look_at(row)
                standing = self._standing()
                self._check_refused()
                if standing.open:
                    self.maker.hand_in(standing.open)
                    standing = self._standing()
                self._log_failures(standing)
                waiting = standing.under_way.total()
                if not waiting and not standing.open:
                    return
                done = sum(min(self.looks[tag].done, count) for tag, count in standing.under_way.items() if tag in self.looks)
                progress.show(total - waiting - len(standing.open) + done, f"{_batches(len(standing.under_way))} under way")
                left = until - time.monotonic()
                if waiting and left <= 0:
                    raise NotYet(self._said(standing))
                time.sleep(min(POLL, left) if waiting else _WAIT)  # without a batch, another process asks what is left

    def close(self) -> None:
        """Note the calls and say what was passed over."""
        counts = self.questions.counts
        if counts.calls:
            # without seconds: a day's wait says nothing about the speed of a model
            run = self.questions.store.begin_run(self.maker.source)
            self.questions.store.note_run(run, counts.calls, 0.0, counts.prompt_tokens, counts.answer_tokens)
        if self.passed_over:
            what = ", ".join(f"{count:,} {name}" for name, count in self.passed_over.items())
            log.warning("lines of replies that were passed over: %s", what)

    def _standing(self) -> _Standing:
        found = _Standing()
        missing = self.questions.missing
        for start in range(0, len(missing), _STORED):
            numbers = {self.questions.key(number): number for number in missing[start : start + _STORED].tolist()}
            states = self.rows.states(list(numbers))
            answered = self.questions.store.get(list(numbers), self.questions.since)
            for key, number in numbers.items():
                state = states.get(key)
                if key in answered:
                    continue
                if state is not None and state.batch:
                    found.under_way[state.batch] += 1
                elif state is not None and state.failed >= TRIES:
                    found.given_up.append((number, state.reason))
                else:
                    found.open.append(number)
        return found

    def _look_at(self, row: BatchRow) -> None:
        """Take what a batch has brought, if it has ended."""
        if not row.id and not self.rows.abandoned(row, self.maker.owner):
            return  # another process is making it
        if not row.id and not row.created:
            self.rows.free(row)
            return
        if row.url != self.endpoint.url:
            raise UserError(f"the batch {row.id or row.tag} is under way at {row.url}; collect it with --llm_url={row.url}")
        if not row.id:
            found = self.maker.found(row)
            if found is None:
                self.rows.free(row)
                return
            row = self.maker.made(row, found)
        batch = self.looks[row.tag] = self.endpoint.get(row.id)
        if batch.status == "failed":
            self.rows.free(row)
            self.refused.append(f"{batch.id}: {batch.reason}")
        elif batch.ended:
            self._collect(row, batch)

    def _check_refused(self) -> None:
        if self.refused:
            raise UserError(
                f"{self.endpoint.url} refused {_batches(len(self.refused))} ({self.refused[0]}); none of their requests was run or paid "
                f"for: mend that and run the same command again, which sends them again"
            )

    def _collect(self, row: BatchRow, batch: Batch) -> None:
        """Store the answers of a batch that has ended; its questions without one have failed."""
        counts, keys = self.questions.counts, set(self.rows.questions(row.tag))
        answered: set[bytes] = set()
        reasons: dict[bytes, str] = {}
        waiting: list[tuple[bytes, Answer]] = []
        for file in batch.files:
            with temporary_file(self.failures.parent) as handle:
                self.endpoint.download(file, handle)
                handle.seek(0)
                for line in reply_lines(handle, self.backend.key):
                    if line is None or line.key not in keys:
                        self.passed_over["unreadable" if line is None else "to unknown requests"] += 1
                        continue
                    key, reply = line
                    if key in answered or (reply.failure and key in reasons):
                        self.passed_over["to requests that have a reply"] += 1
                        continue
                    counts.calls += key not in reasons
                    counts.prompt_tokens += reply.prompt_tokens
                    counts.answer_tokens += reply.answer_tokens
                    if reply.failure:
                        reasons[key] = reply.failure
                        continue
                    answered.add(key)
                    waiting.append((key, Answer(reply.answer, reply.cut)))
                    if len(waiting) >= _STORED:
                        self.questions.store.put(waiting, row.source)
                        waiting.clear()
        self.questions.store.put(waiting, row.source)
        failed = self.rows.finish(row.tag, reasons, f"the batch is {batch.status} and has no reply to it")
        why = f" (for one: {next(iter(reasons.values()), 'no reply')})" if failed else ""
        log.info("batch %s, %s: %s answers, %s failed%s", batch.id, batch.status, f"{len(answered):,}", f"{failed:,}", why)

    def _log_failures(self, standing: _Standing) -> None:
        self.questions.counts.failures = len(standing.given_up)
        if standing.given_up:
            with FailureLog(self.failures) as failed:
                for number, reason in standing.given_up:
                    failed.add(self.questions.key(number), reason, self.questions.request(number))

    def _said(self, standing: _Standing) -> str:
        names = [row.id or "one that another process is making" for row in self.rows.batches() if row.tag in standing.under_way]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return (
            f"{standing.under_way.total():,} requests are under way in {_batches(len(names))} ({', '.join(names[:_NAMED])}{more}) at "
            f"{self.endpoint.url}; run the same command again to collect the answers, or add --llm_batch_wait=SECONDS to wait for them"
        )


def _batches(count: int) -> str:
    """So many batches.

    >>> _batches(1), _batches(2)
    ('1 batch', '2 batches')
    """
    return f"{count:,} batch" + ("es" if count != 1 else "")
