"""Backend `transformers`: a local causal language model, batched by length, a session's shared beginning computed once.

All views of a session begin with the same item list, so most of a prompt's tokens stand in its sibling too. Prompts with a common
beginning form a group; the beginning's keys and values are computed once per group and repeated for its members.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch

from recbole_llm4sbr.intent.backends import Request
from recbole_llm4sbr.intent.pretrained import Pretrained, resolve_llm

log = logging.getLogger(__name__)

_SHORTEST_SHARED = 24  # tokens; below this a group of its own costs more than it saves


class TransformersBackend:
    """Greedy answers of a causal language model.

    Args:
        llm: short name, hub id, local folder or .gguf file.
        max_new_tokens: longest answer in tokens.
        batch_size: groups (sessions) computed at once; halved when the GPU's memory is too small.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.

    Raises:
        UserError: the model cannot be found or is not a causal language model.
    """

    def __init__(self, llm: str, max_new_tokens: int, batch_size: int, device: str = "auto") -> None:
        self.source: Pretrained = resolve_llm(llm)
        self.identity = self.source.identity
        self.decoding = {"sampling": "greedy", "max_new_tokens": max_new_tokens, "stop": "\n or closing quote"}
        self.batch_size = batch_size
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self._max_new_tokens = max_new_tokens
        self._model: Any = None
        self._tokenizer: Any = None

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, str]]:
        """Answer all requests, in the order that is fastest; yields (position in `requests`, raw answer) batch by batch."""
        if not requests:
            return
        self._load()
        tokens = [self._tokenizer(text, add_special_tokens=False).input_ids for text in map(self._render, requests)]
        groups = _groups(tokens)
        groups.sort(key=lambda group: (len(group.members), group.shared, max(len(tokens[i]) for i in group.members)))
        groups.reverse()  # the longest first: what does not fit into memory shows at once
        for _, same_size in groupby(groups, key=lambda group: len(group.members)):
            waiting = list(same_size)
            while waiting:
                batch, waiting = waiting[: self.batch_size], waiting[self.batch_size :]
                try:
                    yield from self._answer(batch, tokens)
                except torch.cuda.OutOfMemoryError:
                    if self.batch_size == 1:
                        raise
                    torch.cuda.empty_cache()
                    self.batch_size = max(1, self.batch_size // 2)
                    log.warning("out of GPU memory; going on with %d sessions at once", self.batch_size)
                    waiting = batch + waiting

    def _load(self) -> None:
        if self._model is None:
            self._model, self._tokenizer = self.source.load_causal_lm(compute_dtype(self.device), self.device)
            stops = [i for text, i in self._tokenizer.get_vocab().items() if "Ċ" in text or "\n" in text or '"' in text]
            eos = self._model.generation_config.eos_token_id
            self._newline_or_quote = torch.tensor(stops, device=self.device)
            self._ends = eos if isinstance(eos, list) else [eos]

    def _render(self, request: Request) -> str:
        if not self._tokenizer.chat_template:
            return f"{request.system}\n{request.user}\n{request.answer_start}"
        chat = [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}]
        text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        return str(text) + request.answer_start

    @torch.inference_mode()
    def _answer(self, batch: Sequence["_Group"], tokens: Sequence[list[int]]) -> Iterator[tuple[int, str]]:
        from transformers import DynamicCache

        members = [i for group in batch for i in group.members]
        size = len(batch[0].members)
        rest, rest_mask = self._pad([tokens[i][group.shared :] for group in batch for i in group.members])
        cache, ids, mask = None, rest, rest_mask
        if batch[0].shared:
            head, head_mask = self._pad([tokens[group.members[0]][: group.shared] for group in batch])
            cache = DynamicCache(config=self._model.config)
            positions = (head_mask.cumsum(1) - 1).clamp(min=0)
            self._model.base_model(
                input_ids=head, attention_mask=head_mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            cache.batch_repeat_interleave(size)
            ids = torch.cat([head.repeat_interleave(size, 0), rest], 1)
            mask = torch.cat([head_mask.repeat_interleave(size, 0), rest_mask], 1)
        output = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=self._max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            stopping_criteria=[self._stop],
            pad_token_id=self._tokenizer.pad_token_id,
        )
        answers = self._tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
        yield from zip(members, answers, strict=True)

    def _stop(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Rows whose newest token ends a line or a quotation are done: an answer is one line."""
        return torch.isin(ids[:, -1], self._newline_or_quote)

    def _pad(self, rows: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, width - len(tokens) :] = torch.tensor(tokens)
            mask[row, width - len(tokens) :] = 1
        return ids.to(self.device), mask.to(self.device)


class _Group:
    """Positions of prompts that share their first `shared` tokens."""

    def __init__(self, members: list[int], shared: int) -> None:
        self.members = members
        self.shared = shared


def _groups(tokens: Sequence[list[int]]) -> list[_Group]:
    """Group prompts whose neighbours in lexical order share at least half of their tokens, at most four to a group."""
    order = sorted(range(len(tokens)), key=lambda i: tokens[i])
    groups: list[_Group] = []
    for position in order:
        mine = tokens[position]
        if groups and len(groups[-1].members) < 4:
            group = groups[-1]
            shared = _common(mine, tokens[group.members[-1]])
            shared = min(shared, group.shared) if group.shared else shared
            if shared >= max(_SHORTEST_SHARED, len(mine) // 2):
                group.members.append(position)
                group.shared = shared
                continue
        groups.append(_Group([position], 0))
    return groups


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning, leaving at least one token of each."""
    end = min(len(a), len(b)) - 1
    for i in range(end):
        if a[i] != b[i]:
            return i
    return max(end, 0)


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor computes in it, else float32 (on CPUs without it bfloat16 is several times slower)."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        if getattr(torch.cpu, name, lambda: False)():
            return torch.bfloat16
    return torch.float32
