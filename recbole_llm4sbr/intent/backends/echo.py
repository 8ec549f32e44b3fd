"""Backend `echo`: not a language model. It answers with the session's last items, for tests and trials of the line."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from recbole_llm4sbr.intent.backends import Reply, Request


class EchoBackend:
    """Answers every request with the name on the last numbered line of the prompt; where several lines are wanted, with those before it
    too, the newest first."""

    identity = "echo (not a language model)"
    decoding: Mapping[str, Any] = {}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "EchoBackend":
        """It has no settings."""
        return cls()

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Yield replies one by one; tokens are words."""
        for position, request in enumerate(requests):
            numbered = [line for line in request.user.splitlines() if line[:1].isdigit()]
            names = [line.partition(". ")[2] for line in numbered[: -request.lines - 1 : -1]] or [""]
            answer = "\n".join(names + names[-1:] * (request.lines - len(names)))
            yield Reply(position, answer, "", len(request.user.split()), len(answer.split()))

    def count_tokens(self, requests: Iterable[Request]) -> int:
        """Words of the questions."""
        return sum(len(request.user.split()) for request in requests)
