"""Backend `echo`: not a language model. It answers with the session's last item, for tests and dry runs."""

from collections.abc import Iterator, Sequence

from recbole_llm4sbr.intent.backends import Request


class EchoBackend:
    """Answers every request with the name on the last numbered line of the prompt."""

    def __init__(self, llm: str = "", max_new_tokens: int = 0, batch_size: int = 32, device: str = "") -> None:
        self.identity = "echo (not a language model)"
        self.decoding: dict[str, object] = {}

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, str]]:
        """Yield (position, last listed item), one by one."""
        for position, request in enumerate(requests):
            numbered = [line for line in request.user.splitlines() if line[:1].isdigit()]
            yield position, numbered[-1].partition(". ")[2] if numbered else ""
