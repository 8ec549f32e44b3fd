"""Backend `openai`: any endpoint that speaks OpenAI's chat completions: vLLM, llama.cpp, Ollama, hosted services.

The key comes from the environment (OPENAI_API_KEY) and goes nowhere but into the request; whatever an endpoint says of itself is searched
for it before anyone sees it. Answers are never rewritten: one that holds a key is a failure. Retries with back-off and jitter, and
Retry-After, are the openai client's own; that a reply ends, in time and in size, is seen to here.
"""

import importlib
import json
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.screen import hide_requests
from recbole_llm4sbr.base.wording import printable
from recbole_llm4sbr.intent.backends import Reply, Request
from recbole_llm4sbr.intent.cleaning import without_thoughts

_HOSTED = "https://api.openai.com/v1"
_LONGEST = 4_000  # characters kept of an answer; the prompts ask for names
_SECRET = 12  # characters from which on a key stands in no text by chance
_ANNOUNCED = r"((?<![a-z])(?:bearer|key|token)(?: provided)?[\s:=\"'(]+)"  # what stands before a key
_LARGEST = 4 * 1024 * 1024  # bytes of a reply
_OF_FORMAT = re.compile(
    r"response_?format|json_?\s?schema|structured|guided|grammar", re.I
)  # in what is said of a refused request
_MOST_TOKENS = 2**31  # of one reply; more is not believed
_UNREADABLE = 3  # tries at a reply that arrives but cannot be read
_THERE = 10.0  # seconds for finding out whether anybody listens
_OF_THE_REQUEST = (400, 402, 405, 406, 415, 422)  # say that the request itself is wrong, or not paid for
_OURS = {"model", "messages", "n", "stream"}  # of the request, whatever `llm_extra` says
_PAUSE = 2.0  # seconds without a reply after which the caller hears of it
_REFUSALS = 5  # requests that may be refused before the first one is answered


class OpenAIBackend:
    """Answers of a chat completions endpoint, many requests under way at once.

    Args:
        llm: the model's name at the endpoint.
        max_new_tokens: longest line of an answer in tokens.
        url: base address, up to and with `/v1`; None: OPENAI_BASE_URL, else OpenAI's own.
        name: what answers are stored under; None: the model and the endpoint's address.
        extra: more fields of the request body; a field set to None is left out of it.
        concurrency: requests under way at once.
        timeout: seconds until a reply must have come, whole.
        retries: tries after the first, on 408, 409, 429, 5xx, lost connections and timeouts.

    Raises:
        UserError: the openai client is not installed, the address holds a password, or a hosted endpoint has no key (with a `name`,
            not before something is asked: answers from elsewhere may stand under it); `extra` has a field that is ours.
    """

    def __init__(
        self,
        llm: str,
        max_new_tokens: int,
        url: str | None = None,
        name: str | None = None,
        extra: Mapping[str, Any] | None = None,
        concurrency: int = 16,
        timeout: float = 120,
        retries: int = 6,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise UserError(
                "llm_backend='openai' needs the openai client; run `pip install 'recbole-llm4sbr[openai]'`"
            ) from None
        hide_requests()
        if ours := _OURS & set(extra or {}):
            raise UserError(f"llm_extra sets {sorted(ours)[0]!r}, which is not its to set; the model is named by --llm")
        url = url or os.environ.get("OPENAI_BASE_URL") or _HOSTED
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"llm_url={url!r} is not an address; write it as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query:
            raise UserError("llm_url holds a password or a query; put the key into the environment variable OPENAI_API_KEY")
        self.key = os.environ.get("OPENAI_API_KEY", "").strip()
        self._lacks_key = not self.key and parts.hostname == urlsplit(_HOSTED).hostname
        if not name:
            self.check_key()
        self.identity = name or f"{llm} at {parts.netloc}{parts.path.rstrip('/')}"
        body = {"model": llm, "temperature": 0, "max_tokens": max_new_tokens, **(extra or {})}
        self._body = {key: value for key, value in body.items() if value is not None}
        self.decoding = {key: value for key, value in self._body.items() if key != "model"}
        self._tokens_per_line = max_new_tokens if "max_tokens" not in (extra or {}) else None
        self._concurrency, self.url = concurrency, url
        self._openai, self._timeout, self.retries = openai, timeout, retries
        self._client = self.make_client(timeout)
        self._answered, self._refusals = False, 0
        self._own_format = "response_format" in (extra or {})

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "OpenAIBackend":
        """As `llm`, `llm_url`, `llm_name`, ... say."""
        return cls(
            settings["llm"],
            settings["llm_max_new_tokens"],
            settings["llm_url"],
            settings["llm_name"],
            settings["llm_extra"],
            settings["llm_concurrency"],
            settings["llm_timeout"],
            settings["llm_retries"],
        )

    def make_client(self, whole: float) -> Any:
        """A client of the endpoint; a reply must have come after `whole` seconds, unless it is streamed."""
        return self._openai.OpenAI(
            base_url=self.url,
            api_key=self.key or "none",
            timeout=self._timeout,
            max_retries=self.retries,
            http_client=_bounded_client(self._openai, self._timeout, whole),
            default_headers={"Accept-Encoding": "identity"},
        )

    def check_key(self) -> None:
        """Refuse to ask OpenAI without a key.

        Raises:
            UserError: there is none.
        """
        if self._lacks_key:
            raise UserError(
                "OpenAI needs a key in the environment variable OPENAI_API_KEY; a server of your own is named by --llm_url"
            )

    def body(self, request: Request) -> dict[str, Any]:
        """The request as the endpoint takes it."""
        messages = [{"role": "system", "content": request.system}] if request.system else []
        messages.append({"role": "user", "content": request.user})
        body = {**self._body, **self._format(request), "messages": messages}
        if self._tokens_per_line:
            body["max_tokens"] = self._tokens_per_line * request.lines
        return body

    def count_tokens(self, requests: Iterable[Request]) -> int | None:
        """None: the endpoint's tokenizer is not known."""
        return None

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply | None]:
        """Yield replies as they come, None where none has come for two seconds; at most `concurrency` requests are under way.

        Raises:
            UserError: nobody listens at the address; the endpoint refuses the key or the requests' JSON schemas, does not know the
                model, or refuses the first requests alike: no request can succeed. What others were answered is yielded before.
        """
        self.check_key()
        self._check_there()
        tasks: SimpleQueue[tuple[int, Request] | None] = SimpleQueue()
        came: SimpleQueue[Reply | Exception] = SimpleQueue()
        workers = under_way = 0
        error: Exception | None = None
        numbered = iter(enumerate(requests))
        try:
            while True:
                while error is None and under_way < self._concurrency and (task := next(numbered, None)) is not None:
                    if workers == under_way:  # a daemon: whoever interrupts a run does not wait for the endpoint
                        threading.Thread(target=self._work, args=(tasks, came), daemon=True).start()
                        workers += 1
                    tasks.put(task)
                    under_way += 1
                if not under_way:
                    break
                try:
                    reply = came.get(timeout=_PAUSE)
                except Empty:
                    yield None
                    continue
                under_way -= 1
                if isinstance(reply, Exception):
                    error = error or reply
                else:
                    yield reply
        finally:
            for _ in range(workers):
                tasks.put(None)
        if error is not None:
            raise error

    def _work(self, tasks: "SimpleQueue[tuple[int, Request] | None]", came: "SimpleQueue[Reply | Exception]") -> None:
        """Ask one request after the other until None comes."""
        while (task := tasks.get()) is not None:
            try:
                came.put(self._ask(*task))
            except Exception as error:
                came.put(error)

    def _check_there(self) -> None:
        """Find out with a single call whether anybody listens; whatever is said there is enough.

        Raises:
            UserError: nobody does, or the address is not known.
        """
        client = self.make_client(min(self._timeout, _THERE)).with_options(max_retries=0, timeout=min(self._timeout, _THERE))
        try:
            client.get("/models", cast_to=object)
        except self._openai.APITimeoutError:
            return  # a server that is slow to say what it has may still answer
        except self._openai.APIConnectionError as error:
            if type(error.__cause__).__name__ == "ConnectError":
                reason = self.hide(printable(str(error.__cause__)))
                raise UserError(f"cannot reach {self.url} ({reason}); is the server running, and is --llm_url right?") from None
        except (self._openai.OpenAIError, ValueError):
            return

    def _refused(self, reason: str) -> None:
        """Count a request that was refused as such (another 4xx than those that are tried again).

        Raises:
            UserError: it is one of several alike, and none was answered.
        """
        self._refusals += 1
        if self._refusals >= _REFUSALS and not self._answered:
            raise UserError(
                f"{self.url} refuses the first {self._refusals} requests: {reason}; check --llm, --llm_extra and "
                f"--llm_max_new_tokens"
            ) from None

    def _ask(self, position: int, request: Request) -> Reply:
        body, reason = self.body(request), ""
        for _ in range(_UNREADABLE):
            try:
                reply = self._client.post("/chat/completions", body=body, cast_to=object)
                self._answered = True
                return read_completion(position, reply, self.key)
            except self._openai.OpenAIError as error:  # the client has retried what is worth it
                if isinstance(error, self._fatal):
                    raise UserError(
                        f"{self.url} refuses: {self.describe(error)}; check OPENAI_API_KEY, --llm and --llm_url"
                    ) from None
                said = self.reason(error, request)
                if getattr(error, "status_code", None) in _OF_THE_REQUEST:
                    self._refused(said)
                return Reply(position, failure=said)
            except (ValueError, TypeError, LookupError, RecursionError) as error:
                reason = f"the reply cannot be read ({self.describe(error)})"
        return Reply(position, failure=reason)

    @property
    def _fatal(self) -> tuple[type[Exception], ...]:
        """Errors that say that no request can succeed; when one has, 403 and 404 are of the request, as where its text is refused."""
        of_all = (self._openai.AuthenticationError,)
        return of_all if self._answered else (*of_all, self._openai.PermissionDeniedError, self._openai.NotFoundError)

    def _format(self, request: Request) -> dict[str, Any]:
        """The field that holds the LLM to the request's JSON schema; none without one, or where `llm_extra` has that field."""
        if not request.schema or self._own_format:
            return {}
        schema = {"name": "titles", "strict": True, "schema": json.loads(request.schema)}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

    def reason(self, error: Exception, request: Request) -> str:
        """Why a request failed.

        Raises:
            UserError: the endpoint takes no JSON schemas: it refuses one (400, 422) and speaks of that.
        """
        said = self.describe(error)
        if self._format(request) and getattr(error, "status_code", 0) in (400, 422):
            if _OF_FORMAT.search(said):
                raise UserError(f"{self.url} takes no JSON schema: {said}; add --llm_json=false to ask for lines") from None
            said += "; if it takes no JSON schema, --llm_json=false asks for lines"
        return said

    def describe(self, error: Exception) -> str:
        """What an error says, on one line, without the key."""
        return self.hide(printable(f"{type(error).__name__}: {error}"))[:300]

    def hide(self, text: str) -> str:
        """What the endpoint says of itself, without the key."""
        return hide_key(text, self.key)


def hide_key(text: str, key: str) -> str:
    """A message without a key in it; answers, which are data, are not changed so.

    A key of `_SECRET` characters is hidden wherever it stands. A shorter one, as servers of one's own take, is hidden as a whole word; one
    of up to two characters, which may well be a word of the message, only where something like "key" or "Bearer" announces it.

    >>> hide_key("Bearer sk-1", "sk-1"), hide_key("no key k, ok", "k"), hide_key("a token limit", "a"), hide_key("as it is", "")
    ('Bearer [key]', 'no key [key], ok', 'a token limit', 'as it is')
    """
    if not key or len(key) >= _SECRET:
        return text.replace(key, "[key]") if key else text
    whole = rf"(?<![\w-]){re.escape(key)}(?![\w-])"
    if len(key) > 2:
        return re.sub(whole, "[key]", text)
    return re.sub(rf"(?i:{_ANNOUNCED}){whole}", r"\1[key]", text)


def read_completion(position: int, reply: Any, key: str) -> Reply:
    """The answer in a chat completion, as it came; a failure where it is empty or holds the key.

    Args:
        position: of its request.
        reply: JSON from an endpoint, of any form.
        key: that nobody shall see.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: it has another form.
    """
    choice = reply["choices"][0]
    content = choice["message"]["content"]
    if isinstance(content, list):  # parts of text
        content = "".join(part["text"] for part in content)
    if content is not None and not isinstance(content, str):
        raise TypeError(f"the content is a {type(content).__name__}")
    answer = without_thoughts(content or "")
    text = answer[:_LONGEST].encode("utf-8", "replace").decode()  # half a surrogate pair is no text
    usage = reply.get("usage")
    tokens = _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens")
    finish = choice.get("finish_reason")
    if not text.strip():
        reason = hide_key(printable(str(finish)), key)[:100]
        what = "thoughts without an answer; raise --llm_max_new_tokens" if (content or "").strip() else "an empty answer"
        return Reply(position, "", f"{what} (finish_reason {reason!r})", *tokens)
    if len(key) >= _SECRET and key in answer:
        return Reply(position, "", "the answer holds the key of OPENAI_API_KEY", *tokens)
    return Reply(position, text, "", *tokens, cut=finish == "length" or len(answer) > _LONGEST)


def _tokens(usage: Any, name: str) -> int:
    """A number of tokens as an endpoint counts them; 0 where it says nothing that can be believed."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return int(value) if isinstance(value, int | float) and 0 <= value < _MOST_TOKENS else 0


def _bounded_client(openai: Any, timeout: float, whole: float) -> Any:
    """An HTTP client whose replies end: after `whole` seconds altogether, and after `_LARGEST` bytes.

    A reply that is too large, or compressed although that was not asked for (a few bytes could become gigabytes), is taken as an error
    that is not worth another try. Whoever streams a reply sees to its end himself; that of a failure is bounded all the same.
    """

    class Bounded(openai.DefaultHttpxClient):  # type: ignore[misc, name-defined]
        def send(self, request: Any, **given: Any) -> Any:
            httpx = importlib.import_module(type(request).__module__.partition(".")[0])  # httpx or httpx2, as the client has it
            deadline = time.monotonic() + whole
            response = super().send(request, **given | {"stream": True})
            coding = response.headers.get("Content-Encoding", "identity")
            if given.get("stream") and coding == "identity" and response.status_code == 200:
                return response
            try:
                data = bytearray()
                for piece in response.iter_raw() if coding == "identity" else ():
                    data += piece
                    if time.monotonic() > deadline:
                        raise httpx.ReadTimeout(f"the reply took longer than {whole:g} s", request=request)
                    if len(data) > _LARGEST:
                        break
            finally:
                response.close()
            if coding != "identity" or len(data) > _LARGEST:
                size = f"larger than {_LARGEST // 2**20} MB" if coding == "identity" else f"compressed ({coding})"
                text = json.dumps({"error": {"message": f"the reply is {size}"}})
                return httpx.Response(413, text=text, request=request)
            return httpx.Response(response.status_code, headers=response.headers, content=bytes(data), request=request)

    return Bounded(timeout=timeout)
