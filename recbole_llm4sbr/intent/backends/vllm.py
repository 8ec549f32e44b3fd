"""Backend `vllm`: vLLM's offline engine with automatic prefix caching, for GPUs (`pip install 'recbole-llm4sbr[vllm]'`).

The engine batches and schedules by itself; here the prompts only stand in an order in which shared beginnings follow each other.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.intent.backends import Reply, Request
from recbole_llm4sbr.intent.backends.chat import local_decoding, tokenize
from recbole_llm4sbr.intent.pretrained import Pretrained, identify, resolve

_BLOCK = 8_192  # requests given to the engine at once


class VLLMBackend:
    """Greedy answers of a causal language model by vLLM.

    Args:
        llm: short name, hub id, local folder or .gguf file.
        max_new_tokens: longest line of an answer in tokens.

    Raises:
        UserError: vLLM is not installed, or the model cannot be found.
    """

    def __init__(self, llm: str, max_new_tokens: int) -> None:
        try:
            import vllm
        except ImportError as error:
            raise UserError(
                f"llm_backend='vllm' cannot load vLLM ({error}); run `pip install 'recbole-llm4sbr[vllm]'` on a machine with a GPU"
            ) from None
        self._vllm = vllm
        self.identity = identify(llm, "llm")
        self._llm = llm
        self.decoding = local_decoding(max_new_tokens)
        self._max_new_tokens = max_new_tokens
        self._engine: Any = None
        self._tokenizer: Any = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "VLLMBackend":
        """As `llm` and `llm_max_new_tokens` say."""
        return cls(settings["llm"], settings["llm_max_new_tokens"])

    @cached_property
    def _source(self) -> Pretrained:
        return resolve(self._llm, "llm")

    def count_tokens(self, requests: Iterable[Request]) -> int:
        """Tokens of the prompts; loads the tokenizer only."""
        self._tokenizer = self._tokenizer or self._source.load_tokenizer()
        return sum(map(len, tokenize(self._tokenizer, requests)))

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Answer all requests, block by block."""
        coming, done = iter(requests), 0
        while block := list(islice(coming, _BLOCK)):
            if self._engine is None:
                self._tokenizer = self._tokenizer or self._source.load_tokenizer()
                where = Path(self._source.where, self._source.gguf_file) if self._source.gguf_file else self._source.where
                self._engine = self._vllm.LLM(model=str(where), enable_prefix_caching=True, seed=0)
            tokens = tokenize(self._tokenizer, block)
            order = sorted(range(len(block)), key=lambda position: tokens[position])
            outputs = self._engine.generate(
                [{"prompt_token_ids": tokens[position]} for position in order],
                [self._sampling(block[position].lines) for position in order],
                use_tqdm=False,
            )
            for position, output in zip(order, outputs, strict=True):
                answer = output.outputs[0]
                yield Reply(
                    done + position, answer.text, "", len(tokens[position]), len(answer.token_ids), position != order[-1]
                )
            done += len(block)

    def _sampling(self, lines: int) -> Any:
        stop = ["\n", '"'] if lines == 1 else None
        return self._vllm.SamplingParams(
            temperature=0, max_tokens=self._max_new_tokens * lines, stop=stop, include_stop_str_in_output=True
        )
