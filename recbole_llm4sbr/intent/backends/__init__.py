"""LLM backends: one method of substance each. A new one is one small file and a line in `BACKENDS` (docs/llm-backends.md)."""

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.intent import check_allowed

# name -> module and class; heavy imports happen inside the module of the one that is used
BACKENDS = {
    "transformers": ("recbole_llm4sbr.intent.backends.transformers", "TransformersBackend"),
    "vllm": ("recbole_llm4sbr.intent.backends.vllm", "VLLMBackend"),
    "openai": ("recbole_llm4sbr.intent.backends.openai", "OpenAIBackend"),
    "ray": ("recbole_llm4sbr.intent.backends.ray", "RayBackend"),
    "echo": ("recbole_llm4sbr.intent.backends.echo", "EchoBackend"),
}


class Request(NamedTuple):
    """One question to an LLM.

    Attributes:
        system, user: the two messages.
        answer_start: put into the LLM's mouth where the backend can do that, else left out.
        lines: lines of an answer; a backend may stop when it has them.
        schema: a JSON schema of the answer as text, for a backend that can hold the LLM to one; "" for an answer in plain text.
        excluded: titles that are no answers, for a backend that is held to a catalogue (`llm_titles=new`).
    """

    system: str
    user: str
    answer_start: str = ""
    lines: int = 1
    schema: str = ""
    excluded: tuple[str, ...] = ()


class Reply(NamedTuple):
    """What came back for the request at `position`: an answer, or the reason why there is none; tokens where they are known.

    `more` says that further replies of the same batch follow at once; behind the last one a batch is stored. `cut` says that the answer was
    not at its end when it had all the tokens that it may have.
    """

    position: int
    answer: str = ""
    failure: str = ""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    more: bool = False
    cut: bool = False


class LLMBackend(Protocol):
    """What answers requests.

    Attributes:
        identity: what the answers depend on besides the request and `decoding`, for instance model name and weights' checksum.
        decoding: settings of decoding, part of an answer's key.
    """

    identity: str
    decoding: Mapping[str, Any]

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "LLMBackend":
        """The backend as the settings say, its model not loaded yet."""
        ...

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply | None]:
        """Answer all requests in any order; yield replies as they come, and None where none has come for a while.

        A failure is a reply; an exception ends the run.
        """
        ...

    def count_tokens(self, requests: Iterable[Request]) -> int | None:
        """Tokens of the requests' prompts, without calling the LLM; None where the tokenizer is not at hand."""
        ...


class HeldBackend(LLMBackend, Protocol):
    """A backend whose answers can be held to the titles of a catalogue."""

    def hold_to(self, titles: Sequence[str]) -> None:
        """Answer with these titles alone from now on; `decoding` says so. Called once, before anything is asked."""
        ...


def make_backend(settings: Mapping[str, Any], titles: Sequence[str] = ()) -> LLMBackend:
    """The backend that `llm_backend` names, not loaded yet.

    Args:
        settings: of the run.
        titles: what prompts call the items of the catalogue; read unless `llm_titles` is `any`.

    Raises:
        UserError: no such backend, or its model cannot be found.
    """
    check_allowed("an LLM")
    name = settings["llm_backend"]
    if name not in BACKENDS:
        raise UserError(f"llm_backend={name!r} is unknown; choose one of {', '.join(BACKENDS)}")
    module, kind = BACKENDS[name]
    backend: LLMBackend = getattr(importlib.import_module(module), kind).from_settings(settings)
    if settings["llm_titles"] != "any":
        cast(HeldBackend, backend).hold_to(titles)
    return backend
