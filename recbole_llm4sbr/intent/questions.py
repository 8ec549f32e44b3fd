"""Ask the LLM whatever is not answered yet; every answer is stored as it comes (paper section 4.1.2)."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.files import make_folder
from recbole_llm4sbr.base.wording import duration, printable
from recbole_llm4sbr.intent.backends import LLMBackend, Request
from recbole_llm4sbr.intent.progress import Progress
from recbole_llm4sbr.intent.store import Answer, AnswerStore, Asker, answer_key, shipped_answers

log = logging.getLogger(__name__)

_BATCH = 64  # answers per transaction: the most that a kill can lose of a backend that gives them one by one
_SECONDS = 2.0  # longest time that an answer waits for its transaction
_GIVE_UP = 64  # the run ends when as many calls have failed and none was answered
_IN_A_ROW = 256  # it ends, too, when as many have failed one after the other: credits are spent, or a server is gone
_ROWS = 500  # keys looked up at once
_MANY = 0.5  # share of failed calls from which on it is no advice to allow as many
_REASON = 200  # characters by which reasons are told apart
_TITLE = 16  # tokens of a title, where no run has shown how many
_WAIT = 1.0  # seconds between two looks at what another process is asking


@dataclass
class Counts:
    """What a run of questions came to."""

    prompts: int
    distinct: int
    reused: int = 0
    shipped: int = 0
    calls: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0
    elsewhere: int = 0  # answered meanwhile by another process on the same store


class Questions:
    """Distinct questions and who answers them. Only keys are kept in memory; prompts are built again when they are asked.

    Args:
        backend: what answers.
        requests: the questions, built on demand.
        store: where answers are.
        template: name of the prompt template, noted beside the answers.
        since: ask all that were not answered at this moment or later (seconds since 1970); None: whatever is answered is not asked.

    Attributes:
        number: the distinct question of each request, [len(requests)].
        counts: how many there are, and how many are answered.
        missing: distinct questions that were not answered when this was made.
        since: as given; 0 where it was not.
    """

    def __init__(
        self, backend: LLMBackend, requests: Sequence[Request], store: AnswerStore, template: str, since: int | None = None
    ) -> None:
        self.backend, self.requests, self.store, self.template = backend, requests, store, template
        self._keys, self._first, self.number = _distinct(backend, requests)
        self._shipped: dict[bytes, Answer] = {}
        self.since = since or 0
        known = np.zeros(len(self._keys), bool)
        self.counts = Counts(len(requests), len(self._keys))
        for start in range(0, len(known), _ROWS):
            found = store.get(self.keys(start, start + _ROWS), self.since)
            known[start : start + _ROWS] = [key in found for key in self.keys(start, start + _ROWS)]
        self.counts.reused = int(known.sum())
        if since is None and not known.all():
            self._shipped = shipped_answers(backend.identity, backend.decoding)
            for number in np.flatnonzero(~known).tolist() if self._shipped else ():
                known[number] = self.key(number) in self._shipped
            self.counts.shipped = int(known.sum()) - self.counts.reused
        self.missing = np.flatnonzero(~known)

    def keys(self, start: int, end: int) -> list[bytes]:
        """Keys of a range of distinct questions."""
        return [self.key(number) for number in range(start, min(end, len(self._keys)))]

    def key(self, number: int) -> bytes:
        """The key of a distinct question."""
        return bytes(self._keys[number])

    def request(self, number: int) -> Request:
        """A distinct question."""
        return self.requests[int(self._first[number])]

    def answer(self, position: int) -> Answer | None:
        """What was answered to the request at a position of `requests`; None where nothing was."""
        key = self.key(int(self.number[position]))
        return self.store.get([key]).get(key, self._shipped.get(key))

    def log_counts(self) -> None:
        """Say how many questions there are and how many are answered."""
        counts = self.counts
        log.info(
            "%s prompts, %s distinct: %s answered in the store, %s shipped with the package, %s to ask of %s",
            *(f"{each:,}" for each in (counts.prompts, counts.distinct, counts.reused, counts.shipped, len(self.missing))),
            self.backend.identity,
        )

    def ask(self, failures: Path, max_failure_rate: float = 0.01, prices: tuple[float, float] | None = None) -> Counts:
        """Call the LLM for every missing question, storing answers as they come.

        Args:
            failures: JSON lines of what failed and why; written anew, removed when nothing failed.
            max_failure_rate: share of the calls that may fail.
            prices: of a million prompt and answer tokens, for the cost beside the progress bar.

        Raises:
            UserError: no call succeeds, many fail in a row, or more than `max_failure_rate` of them failed (all others are stored by then).
        """
        counts = self.counts
        self.log_counts()
        failures.unlink(missing_ok=True)
        if not len(self.missing):
            return counts
        source = self.store.source(self.backend.identity, self.backend.decoding, self.template)
        missing, started, run = self.missing, time.perf_counter(), self.store.begin_run(source)

        def note() -> None:
            rate = progress.per_second()  # without the loading of the model, where that is known
            seconds = counts.calls / rate if rate else counts.seconds
            self.store.note_run(run, counts.calls, seconds, counts.prompt_tokens, counts.answer_tokens)

        with (
            closing(Progress(len(missing))) as progress,
            Asker(self.store) as asker,
            _Writer(self.store, source, note) as writer,
            FailureLog(failures) as failed,
        ):
            in_a_row = 0
            while len(missing):
                sent: list[int] = []
                taken: list[int] = []  # another process is asking these; its claims are not waited for with answers in hand
                for reply in self.backend.generate(self._pending(missing, asker.owner, sent, taken, progress)):
                    if reply is None:
                        writer.flush()
                        continue
                    number = sent[reply.position]
                    counts.calls += 1
                    counts.prompt_tokens += reply.prompt_tokens
                    counts.answer_tokens += reply.answer_tokens
                    counts.seconds = time.perf_counter() - started
                    if reason := reply.failure or ("" if reply.answer.strip() else "an empty answer"):
                        counts.failures += 1
                        self.store.release(asker.owner, self.key(number))
                        failed.add(self.key(number), reason, self.request(number))
                        if counts.failures == counts.calls == _GIVE_UP:
                            raise UserError(
                                f"none of the first {_GIVE_UP} calls was answered ({reason}); see {str(failures)!r}"
                            )
                        if (in_a_row := in_a_row + 1) >= _IN_A_ROW:
                            raise UserError(
                                f"{in_a_row} calls in a row failed, the last one with: {reason}; all answers are kept: run the same "
                                f"command again when that is mended, and only the rest is asked"
                            )
                    else:
                        in_a_row = 0
                        writer.put(self.key(number), Answer(reply.answer, reply.cut))
                    writer.came(reply.more)
                    progress.came(reply.prompt_tokens + reply.answer_tokens, reply.more, _postfix(counts, prices))
                writer.flush()
                missing = np.array(taken, np.int64)
                if taken and not sent:
                    progress.wait(f"waiting for {len(taken):,} answers that another process asks for")
                    time.sleep(_WAIT)
        if counts.failures:
            log.warning("%s of %s calls failed; reasons: %s", f"{counts.failures:,}", f"{counts.calls:,}", failures)
        if counts.failures > max_failure_rate * counts.calls:
            advice = ", or raise --max_failure_rate" if counts.failures < _MANY * counts.calls else ""
            raise UserError(
                f"{counts.failures:,} of {counts.calls:,} calls failed, more than max_failure_rate={max_failure_rate}; most often: "
                f"{failed.most_often}; all reasons are in {str(failures)!r}, all answers are kept; run again to ask for the missing "
                f"ones{advice}"
            )
        return counts

    def _pending(
        self, missing: npt.NDArray[np.int64], owner: str, sent: list[int], taken: list[int], progress: Progress
    ) -> Iterator[Request]:
        """The missing questions in session order that nobody has answered meanwhile or is asking, claimed as they are handed out.

        Args:
            missing: distinct questions.
            owner: of the claims.
            sent: to be filled with those handed out, in order.
            taken: to be filled with those that another process is asking.
            progress: moves on for those that another process has answered.
        """
        for start in range(0, len(missing), _BATCH):
            keys = {self.key(number): number for number in missing[start : start + _BATCH].tolist()}
            mine = self.store.claim(list(keys), owner)
            there = self.store.get(list(keys), self.since)  # after the claim: whatever was answered before it is seen
            for key, number in keys.items():
                if key in there:
                    self.counts.elsewhere += 1
                    progress.answered_elsewhere()
                elif key in mine:
                    sent.append(number)
                    yield self.request(number)
                else:
                    taken.append(number)

    def answers(
        self, parse: Callable[[Answer], Sequence[str]], width: int
    ) -> tuple[list[str], npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Names in the answers.

        Args:
            parse: answer -> `width` names, "" where there is none.
            width: names per answer.

        Returns:
            Distinct names in alphabetical order; per distinct question the places of its names there, -1 for none, [Q, width]; and whether
            its answer was cut, [Q].
        """
        places: dict[str, int] = {"": -1}
        numbers, cut = np.full((len(self._keys), width), -1, np.int32), np.zeros(len(self._keys), bool)
        for start in range(0, len(self._keys), _ROWS):
            keys = self.keys(start, start + _ROWS)
            stored = self.store.get(keys)
            for row, key in enumerate(keys, start):
                answer = stored.get(key, self._shipped.get(key))
                if answer is not None:
                    cut[row] = answer.cut
                    numbers[row] = [places.setdefault(name, len(places) - 1) for name in parse(answer)]
        del places[""]
        names = sorted(places)
        order = np.full(len(places) + 1, -1, np.int32)  # the last place serves -1
        order[[places[name] for name in names]] = np.arange(len(names))
        return names, order[numbers], cut


@dataclass
class _Writer:
    """Answers on their way into the store; on leaving, also by an error, all that came are there."""

    store: AnswerStore
    source: int
    note: Callable[[], None]  # called with every transaction
    waiting: list[tuple[bytes, Answer]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)
    batch: bool = False

    def put(self, key: bytes, answer: Answer) -> None:
        self.waiting.append((key, answer))

    def came(self, more: bool) -> None:
        """After every reply: store what waits when its batch is complete, or it is much, or it has waited long."""
        ended, self.batch = self.batch and not more, more
        if ended or len(self.waiting) >= _BATCH or time.monotonic() - self.since > _SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            self.store.put(self.waiting, self.source)
            self.waiting.clear()
        self.note()
        self.since = time.monotonic()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


@dataclass
class FailureLog:
    """JSON lines of failures, made with the first one."""

    path: Path
    handle: TextIO | None = None
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def most_often(self) -> str:
        """The reason that came most often, and how many times."""
        ((reason, times),) = self.reasons.most_common(1)
        return f"{reason} ({times:,} times)"

    def add(self, key: bytes, reason: str, request: Request) -> None:
        """Write one down."""
        self.reasons[reason[:_REASON]] += 1
        if self.handle is None:
            make_folder(self.path.parent)
            self.handle = open(self.path, "w", encoding="utf-8")  # noqa: SIM115  (closed in __exit__)
        self.handle.write(json.dumps({"reason": reason, "prompt": request.user, "key": key.hex()}, ensure_ascii=False) + "\n")
        self.handle.flush()

    def __enter__(self) -> "FailureLog":
        """The log, which has no file yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close its file."""
        if self.handle:
            self.handle.close()


def _distinct(
    backend: LLMBackend, requests: Sequence[Request]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Keys of the distinct requests in order of first appearance [Q, 2], where each first appears [Q], and each request's number [N]."""
    keys = np.empty((len(requests), 2), np.uint64)
    for position, request in enumerate(requests):
        keys[position] = np.frombuffer(answer_key(backend.identity, backend.decoding, request), np.uint64)
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: equal keys stand in order of appearance
    new = np.r_[True, (keys[order][1:] != keys[order][:-1]).any(1)] if len(order) else np.zeros(0, bool)
    first = order[new]
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(new) - 1
    by_appearance = np.argsort(first)
    rank = np.empty(len(first), np.int64)
    rank[by_appearance] = np.arange(len(first))
    first = first[by_appearance]
    return keys[first], first, rank[number]


def cost(counts: Counts, prices: tuple[float, float]) -> float:
    """Price of the tokens so far, in the currency of `prices` (per million prompt and answer tokens)."""
    return (counts.prompt_tokens * prices[0] + counts.answer_tokens * prices[1]) / 1e6


def _postfix(counts: Counts, prices: tuple[float, float] | None) -> str:
    text = f"{counts.reused + counts.shipped:,} reused, {counts.failures:,} failed"
    return text + (f", cost {cost(counts, prices):,.2f}" if prices else "")


def estimate(
    questions: Questions, prices: tuple[float, float] | None, examples: int = 3, batch_price: float | None = None
) -> str:
    """What asking would mean, in words, without a call: prompts, tokens, time, cost, and examples.

    Args:
        questions: what there is to ask.
        prices: of a million prompt and answer tokens.
        examples: how many to show.
        batch_price: the share of the price that batches cost; None where the backend has none.
    """
    counts, missing = questions.counts, questions.missing
    lines = [
        f"{counts.prompts:,} prompts, {counts.distinct:,} distinct; answered already: {counts.reused:,} in the store, "
        f"{counts.shipped:,} shipped; to ask of {questions.backend.identity}: {len(missing):,}"
    ]
    if len(missing):
        some = missing[np.linspace(0, len(missing) - 1, min(len(missing), 1000)).astype(int)]
        sample = [questions.request(number) for number in some]
        try:
            counted = questions.backend.count_tokens(sample)
        except UserError as error:
            counted = None
            lines.append(f"the LLM is not at hand: {error}")
        tokens = counted if counted is not None else sum(len(request.user) + len(request.system) for request in sample) / 4
        tokens = tokens / len(sample) * len(missing)
        exact = "" if counted is not None else " (a quarter of the characters: the tokenizer is not at hand)"
        lines.append(f"prompt tokens: about {tokens:,.0f}{exact}")
        speed = questions.store.speed(questions.backend.identity, questions.backend.decoding)
        titles = sum(request.lines for request in sample) / len(sample)
        if speed:
            lines.append(
                f"time: about {duration(len(missing) / speed[0])}, at {speed[0]:.1f} prompts/s as in this model's last run here"
            )
        else:
            lines.append("time: not known, this model has not run here yet; try --max_sessions=100 first")
        if prices:
            answer_tokens = len(missing) * (speed[1] if speed and titles == 1 else _TITLE * titles)
            price = (tokens * prices[0] + answer_tokens * prices[1]) / 1e6
            in_batches = f"; in batches (--llm_batch=true) about {price * batch_price:,.2f}" if batch_price else ""
            lines.append(f"cost: about {price:,.2f}{in_batches}")
        for number in missing[np.linspace(0, len(missing) - 1, min(len(missing), examples)).astype(int)]:
            system, user, start, *_ = questions.request(number)
            example = f"--- an example ---\n{system}\n\n{user}\n\n{start}"
            lines += ["", *(printable(line) for line in example.split("\n"))]
    return "\n".join(lines)
