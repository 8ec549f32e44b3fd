"""LLM backends: one method of substance each. A new one is one small file and a line in `BACKENDS` (docs/llm-backends.md)."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from recbole_llm4sbr.errors import UserError

# name -> module and class; heavy imports happen inside the module of the one that is used
BACKENDS = {
    "transformers": ("recbole_llm4sbr.intent.backends.transformers", "TransformersBackend"),
    "echo": ("recbole_llm4sbr.intent.backends.echo", "EchoBackend"),
}


class Request(NamedTuple):
    """One question to an LLM. `answer_start` is put into its mouth where the backend can do that, else left out."""

    system: str
    user: str
    answer_start: str = ""


class LLMBackend(Protocol):
    """What answers requests.

    Attributes:
        identity: what the answers depend on besides the request and `decoding`, for instance model name and weights' checksum.
        decoding: settings of decoding, part of an answer's key.
    """

    identity: str
    decoding: Mapping[str, Any]

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, str]]:
        """Answer all requests in any order; yield (position in `requests`, raw answer) as they come."""
        ...


def make_backend(settings: Mapping[str, Any]) -> LLMBackend:
    """The backend that `llm_backend` names, not loaded yet.

    Raises:
        UserError: no such backend, or its model cannot be found.
    """
    name = settings["llm_backend"]
    if name not in BACKENDS:
        raise UserError(f"llm_backend={name!r} is unknown; choose one of {', '.join(BACKENDS)}")
    module, kind = BACKENDS[name]
    backend: LLMBackend = getattr(importlib.import_module(module), kind)(
        settings["llm"], settings["llm_max_new_tokens"], settings["llm_batch_size"], settings["llm_device"]
    )
    return backend
