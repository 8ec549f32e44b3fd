"""The batch endpoints of an API like OpenAI's: /files and /batches, which answer within a day and at half the price.

A batch that was made twice is paid twice. So the call that makes one is not tried again here: where its outcome is not known, `create`
says so, and `find` looks among the endpoint's batches.
"""

import importlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple, TypeVar

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.wording import printable
from recbole_llm4sbr.intent.backends.openai import OpenAIBackend
from recbole_llm4sbr.intent.request_lines import ENDPOINT

LARGEST_FILE = 500 * 1024 * 1024  # bytes of a file of replies
LONGEST_TRANSFER = 3600.0  # seconds that a file may take
_PIECE = 1 << 20
_MOST_PAGES = 1_000  # of the list of batches
_PER_PAGE = 100
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
_ENDED = ("completed", "expired", "cancelled")
Result = TypeVar("Result")


class Batch(NamedTuple):
    """A batch as the endpoint describes it.

    Attributes:
        id: the endpoint's name of it.
        status: validating, in_progress, finalizing, completed, expired, cancelling, cancelled or failed (none of it was run).
        tag: what we call it; "" where it is not ours.
        file: of its requests.
        files: of its replies and of its errors, those that there are.
        answered, done: requests that have an answer, and those that have an answer or failed.
        reason: why the endpoint refused it.
    """

    id: str
    status: str
    tag: str
    file: str
    files: tuple[str, ...]
    answered: int
    done: int
    reason: str

    @property
    def ended(self) -> bool:
        """Whether all replies that will come are there; answers that are counted but stand in no file are waited for."""
        return self.status in _ENDED and (bool(self.files) or not self.answered)


class BatchEndpoint:
    """Batches of the endpoint of a backend.

    Args:
        backend: has the address, the key and the way to read a reply.

    Raises:
        UserError: the key is missing. Every method raises one when the endpoint refuses or does not answer.
    """

    def __init__(self, backend: OpenAIBackend) -> None:
        import openai

        backend.check_key()
        self._openai, self._backend, self.url = openai, backend, backend.url.rstrip("/")
        self._client = backend.make_client(LONGEST_TRANSFER)
        self._once = self._client.with_options(max_retries=0)
        # what the HTTP client beneath raises where a streamed reply breaks off
        httpx = importlib.import_module(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])
        self._broken_off: type[Exception] = httpx.HTTPError

    def upload(self, requests: BinaryIO) -> str:
        """Upload a file of requests; returns its id. A file alone costs nothing."""
        file = ("requests.jsonl", requests, "application/jsonl")
        return self._ask("upload a file", lambda: self._id(self._client.files.create(file=file, purpose="batch").id))

    def create(self, file: str, tag: str) -> Batch | None:
        """Make a batch of an uploaded file; None where it is not known whether it was made."""
        body = {"input_file_id": file, "endpoint": ENDPOINT, "completion_window": "24h", "metadata": {"tag": tag}}

        def once() -> Batch | None:
            try:
                return self._read(self._once.post("/batches", body=body, cast_to=object))
            except self._openai.APIStatusError as error:
                if error.status_code in (408, 409) or error.status_code >= 500:
                    return None
                raise
            except (self._openai.APIConnectionError, self._openai.APIResponseValidationError, *_UNREADABLE):
                return None

        for tries in range(self._backend.retries):
            try:
                return self._ask("make a batch", once, passing=(self._openai.RateLimitError,))
            except self._openai.RateLimitError:
                time.sleep(min(2.0**tries, 30.0))
        return self._ask("make a batch", once)

    def find(self, tag: str, file: str) -> Batch | None:
        """The batch that we call so, or that was made of this file; None where the endpoint has none."""
        after = ""
        for _ in range(_MOST_PAGES):
            page = self._ask("list batches", lambda after=after: self._page(after))  # type: ignore[misc]
            for batch in page:
                if tag == batch.tag or file == batch.file:
                    return batch
            if not page or page[-1].id == after:
                return None
            after = page[-1].id
        raise UserError(
            f"{self.url} lists more than {_MOST_PAGES * _PER_PAGE:,} batches, so that ours cannot be looked up there"
        )

    def _page(self, after: str) -> list[Batch]:
        wanted = {"limit": _PER_PAGE, **({"after": after} if after else {})}
        page = self._client.get("/batches", cast_to=object, options={"params": wanted})
        return [self._read(each) for each in page["data"]]

    def get(self, batch: str) -> Batch:
        """What has become of a batch."""
        forget = f"batch {batch} (`answers forget` gives up what is under way)"
        return self._ask(f"look at {forget}", lambda: self._read(self._client.get(f"/batches/{batch}", cast_to=object)))

    def download(self, file: str, into: BinaryIO) -> None:
        """Write a file of replies into an open one, from its beginning."""

        def once() -> None:
            into.seek(0)
            into.truncate()
            deadline = time.monotonic() + LONGEST_TRANSFER
            with self._client.files.with_streaming_response.content(file) as response:
                for piece in response.iter_bytes(_PIECE):
                    into.write(piece)
                    if into.tell() > LARGEST_FILE or time.monotonic() > deadline:
                        raise ValueError(f"it is larger than {LARGEST_FILE // 2**20} MB, or takes longer than an hour")

        what = f"give the file {file} (`answers forget` gives up the batches under way)"
        for tries in range(self._backend.retries):
            try:
                return self._ask(what, once, passing=(self._broken_off,))
            except self._broken_off:
                time.sleep(min(0.1 * 2.0**tries, 10.0))
        return self._ask(what, once)

    def _ask(self, what: str, call: Callable[[], Result], passing: tuple[type[Exception], ...] = ()) -> Result:
        """What a call returns; its errors in words, but for those that pass.

        Raises:
            UserError: the endpoint refuses, does not answer, or what it says cannot be read.
        """
        try:
            return call()
        except passing:
            raise
        except (self._openai.OpenAIError, self._broken_off, *_UNREADABLE) as error:
            unknown = isinstance(error, self._openai.NotFoundError)
            hint = "; an endpoint without batches answers so too: leave out --llm_batch there" if unknown else ""
            said = self._backend.describe(error)
            raise UserError(
                f"{self.url} does not {what}: {said}{hint}; what is under way is kept, run the same command again to go on"
            ) from None

    def _read(self, reply: Any) -> Batch:
        """A batch in the endpoint's words.

        Raises:
            ValueError, TypeError, LookupError, AttributeError: they have another form.
        """
        counts, metadata = reply.get("request_counts"), reply.get("metadata")
        files = [reply.get(name) for name in ("output_file_id", "error_file_id")]
        answered, failed = _count(counts, "completed"), _count(counts, "failed")
        return Batch(
            self._id(reply["id"]),
            self._backend.hide(printable(str(reply["status"])))[:40],
            str(metadata.get("tag", "")) if isinstance(metadata, Mapping) else "",
            str(reply.get("input_file_id")),
            tuple(self._id(each) for each in files if each),
            answered,
            answered + failed,
            self._backend.hide(printable(_messages(reply.get("errors"))))[:300],
        )

    def _id(self, value: Any) -> str:
        """An id as it may stand in an address, a message and the store.

        Raises:
            ValueError: it has another form, or holds the key.
        """
        if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,199}", value):
            raise ValueError("an id of another form")
        if self._backend.hide(value) != value:
            raise ValueError("an id that holds the key")
        return value


def _count(counts: Any, name: str) -> int:
    value = counts.get(name) if isinstance(counts, Mapping) else 0
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0


def _messages(errors: Any) -> str:
    """What an endpoint says about a batch that it refused: the first of its errors, with their number."""
    found = errors.get("data") if isinstance(errors, Mapping) else None
    if not isinstance(found, list) or not found or not isinstance(found[0], Mapping):
        return "it gives no reason"
    return f"{found[0].get('code')}: {found[0].get('message')}" + (f" ({len(found)} errors)" if len(found) > 1 else "")
