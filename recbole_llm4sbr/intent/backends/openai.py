"""Backend `openai`: any endpoint that speaks OpenAI's chat completions: vLLM, llama.cpp, Ollama, hosted services.

The key comes from the environment (OPENAI_API_KEY) and goes nowhere but into the request; whatever an endpoint says is searched for it
before anyone sees it. Retries with back-off and jitter, and Retry-After, are the openai client's own; that a reply ends, in time and in
size, is seen to here.
"""

import importlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import urlsplit

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.screen import hide_requests
from recbole_llm4sbr.base.wording import printable
from recbole_llm4sbr.intent.backends import Reply, Request

_HOSTED = "https://api.openai.com/v1"
_LONGEST = 4_000  # characters kept of an answer; the prompts ask for names
_LARGEST = 4 * 1024 * 1024  # bytes of a reply
_OF_FORMAT = re.compile(
    r"response_?format|json_?\s?schema|structured|guided|grammar", re.I
)  # in what is said of a refused request
_MOST_TOKENS = 2**31  # of one reply; more is not believed
_UNREADABLE = 3  # tries at a reply that arrives but cannot be read


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
        UserError: the openai client is not installed, the address holds a password, or a hosted endpoint has no key.
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
        url = url or os.environ.get("OPENAI_BASE_URL") or _HOSTED
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"llm_url={url!r} is not an address; write it as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query:
            raise UserError("llm_url holds a password or a query; put the key into the environment variable OPENAI_API_KEY")
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not self._key and parts.hostname == urlsplit(_HOSTED).hostname:
            raise UserError(
                "OpenAI needs a key in the environment variable OPENAI_API_KEY; a server of your own is named by --llm_url"
            )
        self.identity = name or f"{llm} at {parts.netloc}{parts.path.rstrip('/')}"
        body = {"model": llm, "temperature": 0, "max_tokens": max_new_tokens, **(extra or {})}
        self._body = {key: value for key, value in body.items() if value is not None}
        self.decoding = {key: value for key, value in self._body.items() if key != "model"}
        self._tokens_per_line = max_new_tokens if "max_tokens" not in (extra or {}) else None
        self._own_format = "response_format" in (extra or {})
        self._concurrency, self._url = concurrency, url
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=url,
            api_key=self._key or "none",
            timeout=timeout,
            max_retries=retries,
            http_client=_bounded_client(openai, timeout),
            default_headers={"Accept-Encoding": "identity"},
        )

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

    def count_tokens(self, requests: Iterable[Request]) -> int | None:
        """None: the endpoint's tokenizer is not known."""
        return None

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Yield replies as they come; at most `concurrency` requests are under way.

        Raises:
            UserError: the endpoint refuses the key or the requests' JSON schemas, or does not know the model: no request can succeed.
        """
        pool = ThreadPoolExecutor(self._concurrency)
        waiting: set[Future[Reply]] = set()
        try:
            for position, request in enumerate(requests):
                waiting.add(pool.submit(self._ask, position, request))
                if len(waiting) >= self._concurrency:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (each.result() for each in done)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (each.result() for each in done)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, position: int, request: Request) -> Reply:
        messages = [{"role": "system", "content": request.system}] if request.system else []
        messages.append({"role": "user", "content": request.user})
        body = {**self._body, **self._format(request), "messages": messages}
        if self._tokens_per_line:
            body["max_tokens"] = self._tokens_per_line * request.lines
        reason = ""
        for _ in range(_UNREADABLE):
            try:
                reply = self._client.post("/chat/completions", body=body, cast_to=object)
                return self._read(position, reply)
            except (self._openai.AuthenticationError, self._openai.PermissionDeniedError, self._openai.NotFoundError) as error:
                raise UserError(
                    f"{self._url} refuses: {self._describe(error)}; check OPENAI_API_KEY, --llm and --llm_url"
                ) from None
            except self._openai.OpenAIError as error:  # the client has retried what is worth it
                return Reply(position, failure=self._reason(error, request))
            except (ValueError, TypeError, LookupError, RecursionError) as error:
                reason = f"the reply cannot be read ({self._describe(error)})"
        return Reply(position, failure=reason)

    def _format(self, request: Request) -> dict[str, Any]:
        """The field that holds the LLM to the request's JSON schema; none without one, or where `llm_extra` has that field."""
        if not request.schema or self._own_format:
            return {}
        schema = {"name": "titles", "strict": True, "schema": json.loads(request.schema)}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

    def _reason(self, error: Exception, request: Request) -> str:
        """Why a request failed.

        Raises:
            UserError: the endpoint takes no JSON schemas: it refuses one (400, 422) and speaks of that.
        """
        said = self._describe(error)
        if self._format(request) and getattr(error, "status_code", 0) in (400, 422):
            if _OF_FORMAT.search(said):
                raise UserError(f"{self._url} takes no JSON schema: {said}; add --llm_json=false to ask for lines") from None
            said += "; if it takes no JSON schema, --llm_json=false asks for lines"
        return said

    def _read(self, position: int, reply: Any) -> Reply:
        """The answer in a chat completion.

        Raises:
            ValueError, TypeError, LookupError: it has another form.
        """
        choice = reply["choices"][0]
        content = choice["message"]["content"]
        if isinstance(content, list):  # parts of text
            content = "".join(part["text"] for part in content)
        if content is not None and not isinstance(content, str):
            raise TypeError(f"the content is a {type(content).__name__}")
        text = self._hide((content or "")[:_LONGEST]).encode("utf-8", "replace").decode()  # half a surrogate pair is no text
        usage = reply.get("usage")
        tokens = _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens")
        if not text.strip():
            reason = self._hide(printable(str(choice.get("finish_reason"))))[:100]
            return Reply(position, "", f"an empty answer (finish_reason {reason!r})", *tokens)
        return Reply(position, text, "", *tokens)

    def _describe(self, error: Exception) -> str:
        """What an error says, on one line, without the key."""
        return self._hide(printable(f"{type(error).__name__}: {error}"))[:300]

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _tokens(usage: Any, name: str) -> int:
    """A number of tokens as an endpoint counts them; 0 where it says nothing that can be believed."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return int(value) if isinstance(value, int | float) and 0 <= value < _MOST_TOKENS else 0


def _bounded_client(openai: Any, timeout: float) -> Any:
    """An HTTP client whose replies end: after `timeout` seconds altogether, and after `_LARGEST` bytes.

    A reply that is too large, or compressed although that was not asked for (a few bytes could become gigabytes), is taken as an error
    that is not worth another try.
    """

    class Bounded(openai.DefaultHttpxClient):  # type: ignore[misc, name-defined]
        def send(self, request: Any, **given: Any) -> Any:
            httpx = importlib.import_module(type(request).__module__.partition(".")[0])  # httpx or httpx2, as the client has it
            deadline = time.monotonic() + timeout
            response = super().send(request, **given | {"stream": True})
            try:
                data = bytearray()
                coding = response.headers.get("Content-Encoding", "identity")
                for piece in response.iter_raw() if coding == "identity" else ():
                    data += piece
                    if time.monotonic() > deadline:
                        raise httpx.ReadTimeout(f"the reply took longer than {timeout:g} s", request=request)
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
