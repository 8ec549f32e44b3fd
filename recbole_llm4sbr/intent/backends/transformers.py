"""Backend `transformers`: a local causal language model, batched by length, a session's shared beginning computed once.

All views of a session begin with the same item list, so most of a prompt's tokens stand in its sibling too. Prompts with a common
beginning form a group; the beginning's keys and values are computed once per group and repeated for its members.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.facts import beams
from recbole_llm4sbr.intent.backends import Reply, Request
from recbole_llm4sbr.intent.backends.beams import likeliest
from recbole_llm4sbr.intent.backends.chat import (
    Group,
    common,
    continuations,
    group,
    held_decoding,
    local_decoding,
    title_text,
    tokenize,
)
from recbole_llm4sbr.intent.backends.title_tree import TitleTree, likeliest_titles
from recbole_llm4sbr.intent.pretrained import Pretrained, identify, resolve

log = logging.getLogger(__name__)

_BLOCK = 8_192  # requests that are tokenized, sorted and grouped together
_FIRST = 4  # prompts of the first batch: it shows soon that the model answers
_SCORED = 30  # tokens whose memory the scores of the next one take
_CPU_TOKENS, _GPU_TOKENS = 16_384, 131_072  # tokens of a batch where the user gives no number


class TransformersBackend:
    """Answers of a causal language model: the greedy one, or the likeliest few as numbered lines.

    Args:
        llm: short name, hub id, local folder or .gguf file.
        max_new_tokens: longest line of an answer in tokens.
        batch_tokens: prompt tokens computed at once, padding included; 0: as suits the device. Halved when the GPU's memory is too
            small.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        beams: titles that an answer gives, by beam search; 1: the greedy answer.
        share: compute the common beginning of prompts once.

    Raises:
        UserError: the model cannot be found or is not a causal language model.
    """

    def __init__(
        self, llm: str, max_new_tokens: int, batch_tokens: int = 0, device: str = "auto", beams: int = 1, share: bool = True
    ) -> None:
        self.identity = identify(llm, "llm")
        self._llm = llm
        self.decoding = local_decoding(max_new_tokens, beams)
        self._beams = beams
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.batch_tokens = batch_tokens or (_CPU_TOKENS if self.device.type == "cpu" else _GPU_TOKENS)
        self._share = share
        self._max_new_tokens = max_new_tokens
        self._titles: Sequence[str] | None = None  # that answers are held to
        self._trees: dict[str, TitleTree] = {}  # of them, by how an answer begins
        self._first = True  # whether no batch was answered yet
        self._model: Any = None
        self._tokenizer: Any = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "TransformersBackend":
        """As `llm`, `llm_max_new_tokens`, `llm_batch_tokens`, `llm_device` and `llm_beams` say."""
        how = (settings["llm_max_new_tokens"], settings["llm_batch_tokens"], settings["llm_device"], beams(settings))
        return cls(settings["llm"], *how)

    def hold_to(self, titles: Sequence[str]) -> None:
        """Answer with these titles alone, and of each request with none that it excludes."""
        self._titles, self.decoding = titles, held_decoding(self._beams, titles)

    @cached_property
    def source(self) -> Pretrained:
        """Where the model is; an embedded one is fetched when it is first asked for, not to know what it has answered."""
        return resolve(self._llm, "llm")

    def count_tokens(self, requests: Iterable[Request]) -> int:
        """Tokens of the prompts; loads the tokenizer only."""
        self._tokenizer = self._tokenizer or self.source.load_tokenizer()
        return sum(map(len, tokenize(self._tokenizer, requests)))

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Answer all requests, block by block in the order that is fastest; yields batch by batch."""
        coming, done = iter(requests), 0
        while block := list(islice(coming, _BLOCK)):
            for lines in sorted({request.lines for request in block}):
                places = [place for place, request in enumerate(block) if request.lines == lines]
                for reply in self._answer_block([block[place] for place in places]):
                    yield reply._replace(position=done + places[reply.position])
            done += len(block)

    def _answer_block(self, block: Sequence[Request]) -> Iterator[Reply]:
        """Answer requests that want the same number of lines, batch by batch.

        Args:
            block: requests; replies name their places in it.
        """
        self.load()
        tokens = tokenize(self._tokenizer, block)
        groups = group(tokens) if self._share else [Group([], [position], [0]) for position in range(len(tokens))]
        rest = {id(each): max(len(tokens[i]) - shared for i, shared in zip(each.members, each.shared)) for each in groups}
        # The longest first: what does not fit into memory shows at once. Prompts alone in their group stand by themselves.
        waiting = sorted(groups, key=lambda each: (len(each.members) == 1, rest[id(each)] + len(each.chain)), reverse=True)
        while waiting:
            if self._first and len(waiting[0].members) > _FIRST:
                waiting = _halves(waiting[0], _FIRST, rest) + waiting[1:]
            count = self._fitting(waiting, rest, _FIRST if self._first else None)
            batch, waiting = waiting[:count], waiting[count:]
            try:
                yield from self._answer(batch, tokens, block)
                self._first = False
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                if len(batch) == 1:
                    half = len(batch[0].members) // 2
                    if not half:
                        raise
                    batch = _halves(batch[0], half, rest)
                self.batch_tokens //= 2
                log.warning("out of GPU memory; going on with batches of %s tokens", f"{self.batch_tokens:,}")
                waiting = batch + waiting

    def _fitting(self, waiting: Sequence[Group], rest: Mapping[int, int], most: int | None = None) -> int:
        """How many of the first groups make a batch; at least one.

        A batch of R prompts costs R * (C + T) tokens with padding: C is the longest chain of its groups, T the longest rest of a prompt
        behind what it shares. That stays within `batch_tokens`, and prompts alone in their group are not put beside groups of several.
        A beam, whose scores of the whole vocabulary are in memory, counts as much as some tokens.

        Args:
            waiting: groups in the order in which they are answered.
            rest: by `id` of a group its longest rest, in tokens.
            most: prompts in the batch; None for any number.
        """
        rows = chain = tail = 0
        scores = _SCORED * self._beams if self._beams > 1 else 0
        for count, each in enumerate(waiting):
            rows, chain, tail = rows + len(each.members), max(chain, len(each.chain)), max(tail, rest[id(each)])
            alone = len(each.members) == 1
            much = rows * (chain + tail + scores) > self.batch_tokens or (most is not None and rows > most)
            if count and (much or alone != (len(waiting[0].members) == 1)):
                return count
        return len(waiting)

    def load(self) -> None:
        """Load model and tokenizer, once."""
        if self._model is None:
            self._model, self._tokenizer = self.source.load_causal_lm(compute_dtype(self.device), self.device)
            if self._beams > 1:
                check_full_attention(self._model, self._llm)
            self._share = self._share and attends_to_all(self._model)
            vocabulary = self._tokenizer.get_vocab().items()
            newlines = [i for text, i in vocabulary if "Ċ" in text or "\n" in text or text == "<0x0A>"]
            quotes = [i for text, i in vocabulary if '"' in text]
            ends = self._model.generation_config.eos_token_id
            self._ends = torch.tensor(ends if isinstance(ends, list) else [-1 if ends is None else ends], device=self.device)
            self._newline = torch.tensor(newlines, device=self.device)
            self._newline_or_quote = torch.tensor(newlines + quotes, device=self.device)

    @torch.inference_mode()
    def _answer(self, batch: Sequence[Group], tokens: Sequence[list[int]], block: Sequence[Request]) -> Iterator[Reply]:
        """Answer the prompts of a batch of groups, what they share computed once.

        With G groups of R prompts in all, columns of the cache are filled in three steps:

            root    tokens with which all chains of the batch begin      computed for 1 row,   then repeated for G
            chains  what follows in each group's chain, padded on the left  computed for G rows,  then repeated for R
            rest    what follows in each prompt, padded on the left         computed for R rows, with the first new token

        A prompt's mask hides those columns of its group's chain that it does not share; positions count only what is seen, so that the
        arithmetic is that of the prompt alone.

        Args:
            batch: groups.
            tokens: token ids of every prompt of the block; `Group.members` are places in it.
            block: the requests, all for the same number of lines.
        """
        from transformers import DynamicCache

        members = [i for each in batch for i in each.members]
        shared = [length for each in batch for length in each.shared]
        ids, mask = self._pad([tokens[i][length:] for i, length in zip(members, shared)])  # [R, T] each
        cache = None
        if any(shared):
            cache = DynamicCache(config=self._model.config)
            root = min(common(each.chain, batch[0].chain) for each in batch) if len(batch) > 1 else 0
            beginning = torch.tensor([list(batch[0].chain[:root])], device=self.device)  # [1, root]
            chains, chain_mask = self._pad([each.chain[root:] for each in batch])  # [G, C - root] each
            if root:
                self._prefill(beginning, torch.ones_like(beginning), cache)
                cache.batch_select_indices(torch.zeros(len(batch), dtype=torch.long, device=self.device))
                beginning = beginning.expand(len(batch), -1)  # [G, root]
                chains, chain_mask = torch.cat([beginning, chains], 1), torch.cat([torch.ones_like(beginning), chain_mask], 1)
            self._prefill(chains[:, root:], chain_mask, cache)
            row = torch.tensor([number for number, each in enumerate(batch) for _ in each.members], device=self.device)  # [R]
            cache.batch_select_indices(row)
            # A member sees of its group's chain what it shares; positions go on behind that, wherever the columns stand.
            seen = chain_mask[row] * (chain_mask[row].cumsum(1) <= torch.tensor(shared, device=self.device).unsqueeze(1))
            ids, mask = torch.cat([chains[row], ids], 1), torch.cat([seen, mask], 1)  # [R, C + T] each
        cache = DynamicCache(config=self._model.config) if cache is None else cache
        if self._beams > 1:
            titles = self._likeliest(ids, mask, cache, [block[position] for position in members])
            for position, (mine, count, short) in zip(members, titles, strict=True):
                answer = "\n".join(f"{number}. {title}" for number, title in enumerate(mine, 1))
                yield Reply(position, answer, "", len(tokens[position]), count, more=position != members[-1], cut=short)
            return
        made, cut = self._greedy(ids, mask, cache, block[0].lines)
        counts = (made != self._tokenizer.pad_token_id).sum(1).tolist()
        answers = self._tokenizer.batch_decode(made, skip_special_tokens=True)
        for position, answer, count, short in zip(members, answers, counts, cut.tolist(), strict=True):
            yield Reply(position, answer, "", len(tokens[position]), count, more=position != members[-1], cut=short)

    def _greedy(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any, lines: int) -> tuple[torch.Tensor, torch.Tensor]:
        """New tokens of each row, padded behind its end, [B, T]. Unlike `generate`, rows that are done leave the batch.

        Args:
            ids, mask: the whole prompts, [B, L], and 1 where a column is seen; the cache holds the first columns of them.
            cache: their keys and values, per layer [B, heads, columns, size of a head].
            lines: lines of an answer.

        Returns:
            Token ids, the padding id behind an answer's end, [B, T] with T at most `max_new_tokens * lines`; and which answers are not at
            their end there, [B].
        """
        most, pad = self._max_new_tokens * lines, self._tokenizer.pad_token_id
        made = torch.full((len(ids), most), pad, device=self.device)
        row = torch.arange(len(ids), device=self.device)  # where in `made` each row of the batch goes
        new = ids[:, cache.get_seq_length() :]  # [B, columns that are not computed yet], later [B, 1]
        ended = torch.zeros(len(ids), dtype=torch.bool, device=self.device)
        cut = ~ended
        for step in range(most):
            token = self._next(new, mask, cache).argmax(-1)
            made[row, step] = token.masked_fill(ended, pad)
            ended = ended | torch.isin(token, self._ends) | self.stop(lines, 0)(made[row, : step + 1], None)
            cut[row] = ~ended
            done = int(ended.sum())
            if done == len(row):
                return made[:, : step + 1], cut
            if 4 * done > len(row):  # copying the cache costs less than computing a quarter of it in vain
                alive = (~ended).nonzero().squeeze(1)
                cache.batch_select_indices(alive)
                row, token, mask, ended = row[alive], token[alive], mask[alive], ended[alive]
            new = token.unsqueeze(1)
            mask = torch.cat([mask, torch.ones_like(new)], 1)
        return made, cut

    def _likeliest(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: Any, requests: Sequence[Request]
    ) -> Iterator[tuple[list[str], int, bool]]:
        """The likeliest titles of each row, the best first; how many tokens they have; whether the only one that is given was cut.

        Titles that are not at their end count in the search and are left out, but for the likeliest where no title is at its end.

        Args:
            ids, mask, cache: as in `_greedy`.
            requests: of the rows.
        """
        first = torch.log_softmax(self._next(ids[:, cache.get_seq_length() :], mask, cache).float(), -1)
        if self._titles is not None:
            tree = self._tree(requests[0].answer_start)
            allowed = tree.allowed([request.excluded for request in requests])
            places = likeliest_titles(_Beams(self._model, cache), first, mask, tree, allowed, self._beams).tokens.squeeze(2)
            for row in places.tolist():
                chosen = [place for place in row if place >= 0]
                yield [title_text(tree.titles[place]) for place in chosen], sum(tree.length[place] for place in chosen), False
            return
        stops = torch.unique(torch.cat([self._newline_or_quote, self._ends[self._ends >= 0]]))
        pad = self._tokenizer.pad_token_id
        found = likeliest(_Beams(self._model, cache), first, mask, stops, self._beams, self._max_new_tokens, pad)
        counts = (found.tokens != pad).sum((1, 2)).tolist()
        texts = self._tokenizer.batch_decode(found.tokens.flatten(0, 1), skip_special_tokens=True)
        titles = np.array([re.split(r'["\n]', text)[0].strip() for text in texts], object).reshape(-1, self._beams)
        ended = torch.isin(found.tokens, stops).any(2).cpu().numpy()
        for mine, whole, count in zip(titles, ended, counts):
            kept = list(dict.fromkeys(filter(None, mine[whole])))
            yield kept or mine[:1].tolist(), count, not kept

    def _tree(self, start: str) -> TitleTree:
        """The titles that answers are held to, as tokens behind the beginning of an answer."""
        if start not in self._trees:
            titles = list(self._titles or ())
            tokens = continuations(self._tokenizer, start, titles)
            in_no_title = torch.cat([self._newline, self._ends])[0]
            self._trees[start] = TitleTree(titles, tokens, int(in_no_title), self.device)
        return self._trees[start]

    def _next(self, new: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
        """Scores of the token behind the last of the new ones, [B, V]; arguments as in `_prefill`."""
        extra = {"logits_to_keep": 1} if self._model._supports_logits_to_keep() else {}
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.size(1) :]
        output = self._model(
            input_ids=new, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, **extra
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _prefill(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> None:
        """Compute keys and values of tokens into the cache.

        Args:
            ids: tokens that are not in the cache yet, [B, N].
            mask: 1 where a column is seen, with the columns of the cache, [B, cached + N].
            cache: changed in place; afterwards it holds cached + N columns.
        """
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.size(1) :]
        self._model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )

    def stop(self, lines: int, start: int) -> Callable[..., torch.Tensor]:
        """Criterion of rows that have what was asked: one line or a closed quotation, or that many lines behind column `start`."""

        def done(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            if lines == 1:
                return torch.isin(ids[:, -1], self._newline_or_quote)
            return torch.isin(ids[:, start:], self._newline).sum(1) >= lines

        return done

    def _pad(self, rows: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids padded on the left to the longest row, and 1 where a token stands, both [rows, longest]."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, width - len(tokens) :] = torch.tensor(tokens)
            mask[row, width - len(tokens) :] = 1
        return ids.to(self.device), mask.to(self.device)


@dataclass
class _Beams:
    """A model with the cache of prompts that it has read, as `beams.Model` has it."""

    model: Any
    cache: Any

    def grow(self, tokens: torch.Tensor, seen: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """A further token of each beam."""
        mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=seen.device)  # added to the attention's scores
        mask = mask.masked_fill(~seen, torch.finfo(self.model.dtype).min).unsqueeze(1)
        output = self.model(
            input_ids=tokens, attention_mask=mask, position_ids=places, past_key_values=self.cache, use_cache=True
        )
        return torch.log_softmax(output.logits.float(), -1)

    def keep(self, prompts: torch.Tensor) -> None:
        """Prompts that are not done."""
        self.cache.batch_select_indices(prompts)


def _halves(whole: Group, first: int, rest: dict[int, int]) -> list[Group]:
    """A group as two, the first with so many members; `rest`, as in `_fitting`, gets to know them."""
    parts = [Group(whole.chain, whole.members[a], whole.shared[a]) for a in (slice(first), slice(first, None))]
    rest |= {id(part): rest[id(whole)] for part in parts}
    return parts


def attends_to_all(model: Any) -> bool:
    """Whether every token attends to all before it that are not masked, by their positions alone.

    A sliding window, a recurrent state or ALiBi, which counts columns, does not skip what is masked.
    """
    config = model.config.get_text_config()
    windowed = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if windowed else "full_attention"])
    counts = getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt", "gpt_neo")
    return kinds == {"full_attention"} and not counts and not getattr(model, "_is_stateful", False)


def check_full_attention(model: Any, name: str) -> None:
    """Refuse beam search for a model whose beams cannot be columns of one row.

    Raises:
        UserError: names the model.
    """
    if not attends_to_all(model):
        raise UserError(f"llm_beams=true needs an LLM whose tokens attend to all before them, unlike {name!r}; leave it out")


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor computes in it, else float32 (on CPUs without it bfloat16 is several times slower)."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        if getattr(torch.cpu, name, lambda: False)():
            return torch.bfloat16
    return torch.float32
