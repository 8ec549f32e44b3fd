"""Backend `vllm`: vLLM's offline engine with automatic prefix caching (`pip install 'recbole-llm4sbr[vllm]'`).

The engine batches and schedules by itself, in the order in which requests reach it. Prompts reach it in lexical order, in which shared
beginnings follow each other, so that its cache still holds them; a limited number wait in it, and every step's answers are handed on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.intent.backends import Reply, Request
from recbole_llm4sbr.intent.backends.chat import local_decoding, tokenize
from recbole_llm4sbr.intent.pretrained import Pretrained, identify, resolve

_BLOCK = 8_192  # requests that are put in order together
_WAITING = 1_024  # requests in the engine at once; what is computed when a run is killed is lost


class VLLMBackend:
    """Greedy answers of a causal language model by vLLM.

    Args:
        llm: short name, hub id, local folder or .gguf file.
        max_new_tokens: longest line of an answer in tokens.
        engine: further arguments of vLLM's `LLM`, as `{"tensor_parallel_size": 2}`.

    Raises:
        UserError: vLLM is not installed, or the model cannot be found.
    """

    def __init__(self, llm: str, max_new_tokens: int, engine: Mapping[str, Any] | None = None) -> None:
        try:
            import vllm
        except ImportError as error:
            raise UserError(
                f"llm_backend='vllm' cannot load vLLM ({error}); run `pip install 'recbole-llm4sbr[vllm]'` on a machine with a GPU, or see "
                f"docs/llm-backends.md for one without"
            ) from None
        self._vllm = vllm
        self.identity = identify(llm, "llm")
        self.decoding = local_decoding(max_new_tokens)
        self._llm, self._max_new_tokens, self._arguments = llm, max_new_tokens, dict(engine or {})
        self._engine: Any = None
        self._tokenizer: Any = None
        self._count = 0  # requests that the engine was given

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "VLLMBackend":
        """As `llm`, `llm_max_new_tokens` and the settings that begin with `vllm_` say."""
        engine = {
            "tensor_parallel_size": settings["vllm_tensor_parallel"],
            "dtype": settings["vllm_dtype"],
            "gpu_memory_utilization": settings["vllm_memory"],
            "max_model_len": settings["vllm_max_tokens"] or None,
        }
        return cls(settings["llm"], settings["llm_max_new_tokens"], engine)

    @cached_property
    def _source(self) -> Pretrained:
        return resolve(self._llm, "llm")

    def count_tokens(self, requests: Iterable[Request]) -> int:
        """Tokens of the prompts; loads the tokenizer only."""
        self._tokenizer = self._tokenizer or self._source.load_tokenizer()
        return sum(map(len, tokenize(self._tokenizer, requests)))

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Answer all requests; what is done after a step of the engine is yielded together.

        Raises:
            UserError: vLLM cannot start its engine with this model and these settings.
        """
        coming, done = iter(requests), 0
        while block := list(islice(coming, _BLOCK)):
            tokens = tokenize(self._started_tokenizer(), block)
            order = sorted(range(len(block)), key=lambda position: tokens[position])
            for replies in self._answer(block, tokens, order):
                yield from (reply._replace(position=done + reply.position) for reply in replies)
            done += len(block)

    def _answer(self, block: Sequence[Request], tokens: Sequence[list[int]], order: Iterable[int]) -> Iterator[list[Reply]]:
        """Answer the requests of a block in this order; what is done after a step of the engine."""
        engine, waiting = self._engine, iter(order)
        places: dict[str, int] = {}  # of what is in the engine, by the name that it wants for each
        try:
            while True:
                for place in islice(waiting, _WAITING - len(places)):
                    self._count += 1
                    places[str(self._count)] = place
                    engine.add_request(
                        str(self._count), {"prompt_token_ids": tokens[place]}, self._sampling(block[place].lines)
                    )
                if not places:
                    return
                ended = [(places.pop(each.request_id), each.outputs[0]) for each in engine.step() if each.finished]
                yield [
                    Reply(
                        place,
                        each.text,
                        "",
                        len(tokens[place]),
                        len(each.token_ids),
                        more=number < len(ended),
                        cut=each.finish_reason == "length",
                    )
                    for number, (place, each) in enumerate(ended, 1)
                ]
        finally:
            if places:  # whoever reads has stopped
                engine.abort_request(list(places))

    def _started_tokenizer(self) -> Any:
        """The tokenizer, when the engine has loaded the model."""
        self._tokenizer = self._tokenizer or self._source.load_tokenizer()
        if self._engine is None:
            where = Path(self._source.where, self._source.gguf_file) if self._source.gguf_file else self._source.where
            try:
                model = self._vllm.LLM(model=str(where), enable_prefix_caching=True, seed=0, **self._arguments)
            except (ValueError, RuntimeError) as error:
                raise UserError(
                    f"vLLM cannot start with {self._llm!r}: {' '.join(str(error).split())[:300]}; see the settings that begin with "
                    f"--vllm_, or take --llm_backend=transformers"
                ) from None
            self._engine = model.llm_engine
        return self._tokenizer

    def _sampling(self, lines: int) -> Any:
        from vllm.sampling_params import RequestOutputKind

        return self._vllm.SamplingParams(
            temperature=0,
            max_tokens=self._max_new_tokens * lines,
            stop=["\n", '"'] if lines == 1 else None,
            include_stop_str_in_output=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
