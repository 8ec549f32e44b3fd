"""Backend `openai`: any endpoint that speaks OpenAI's chat completions: vLLM, llama.cpp, Ollama, hosted services.

The key comes from the environment (OPENAI_API_KEY) and goes nowhere but into the request; whatever an endpoint says is searched for it
before anyone sees it. Retries with back-off and jitter, and Retry-After, are the openai client's own.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import urlsplit

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.intent.backends import Reply, Request

_HOSTED = "https://api.openai.com/v1"
_LONGEST = 2_000  # characters kept of an answer; the prompts ask for a name
_UNREADABLE = 3  # tries at a reply that arrives but cannot be read


class OpenAIBackend:
    """Answers of a chat completions endpoint, many requests under way at once.

    Args:
        llm: the model's name at the endpoint.
        max_new_tokens: longest answer in tokens.
        url: base address, up to and with `/v1`; None: OPENAI_BASE_URL, else OpenAI's own.
        name: what answers are stored under; None: the model and the endpoint's address.
        extra: more fields of the request body; a field set to None is left out of it.
        concurrency: requests under way at once.
        timeout: seconds to wait for one reply.
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
        self._concurrency, self._url = concurrency, url
        self._openai = openai
        self._client = openai.OpenAI(base_url=url, api_key=self._key or "none", timeout=timeout, max_retries=retries)

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
            UserError: the endpoint refuses the key or does not know the model (401, 403, 404): no request can succeed.
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
        reason = ""
        for _ in range(_UNREADABLE):
            try:
                reply = self._client.post("/chat/completions", body={**self._body, "messages": messages}, cast_to=object)
                return self._read(position, reply)
            except (self._openai.AuthenticationError, self._openai.PermissionDeniedError, self._openai.NotFoundError) as error:
                raise UserError(
                    f"{self._url} refuses: {self._hide(error)}; check OPENAI_API_KEY, --llm and --llm_url"
                ) from None
            except self._openai.OpenAIError as error:  # the client has retried what is worth it
                return Reply(position, failure=self._hide(error))
            except (ValueError, TypeError, LookupError) as error:
                reason = f"the reply cannot be read ({self._hide(error)})"
        return Reply(position, failure=reason)

    def _read(self, position: int, reply: Any) -> Reply:
        choice, usage = reply["choices"][0], reply.get("usage") or {}
        text = (choice["message"].get("content") or "")[:_LONGEST]
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        if not text.strip():
            return Reply(position, "", f"an empty answer (finish_reason {choice.get('finish_reason')!r})", *tokens)
        return Reply(position, text, "", *tokens)

    def _hide(self, error: Exception) -> str:
        """What an error says, on one line, without the key."""
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return (text.replace(self._key, "[key]") if self._key else text)[:300]
