"""An LLM tuned with low-rank adapters (LoRA, Hu et al. 2021) to continue the run's own prompts with the title of the next item."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.data.rows import read_items
from recbole_llm4sbr.finetune.examples import Pairs
from recbole_llm4sbr.finetune.loop import Step
from recbole_llm4sbr.intent.backends import Request
from recbole_llm4sbr.intent.backends.chat import common, render
from recbole_llm4sbr.intent.backends.transformers import attends_to_all
from recbole_llm4sbr.intent.prompts import UNKNOWN_ITEM, PromptTemplate, item_names

Tokens = npt.NDArray[np.int64]

_IGNORED = -100  # label of a token without a loss


def questions(settings: Mapping[str, Any], pairs: Pairs) -> Iterator[tuple[int, list[Request], str]]:
    """Each pair with the prompts of all views, as `infer` asks them, and the answer: the title of the item that follows.

    An item without a title is no answer. The answer ends as the LLM is stopped: with the quotation that the prompt opens, if it does.
    """
    template = PromptTemplate.load(settings["prompt"])
    items = read_items(dataset_folder(settings) / f"{settings['dataset']}.item")
    named = dict(zip(items["item_id"], item_names(items, settings)))
    names = [named[token] for token in pairs.rows.tokens]
    closing = '"' if template.answer_start.count('"') % 2 else ""
    for pair in range(len(pairs)):
        target = names[pairs.target[pair]]
        if target != UNKNOWN_ITEM:
            shown = [names[click] for click in pairs.clicks(pair)]
            requests = [template.build(shown, view) for view in settings["views"]]
            yield pair, requests, re.sub(r'["\n]', " ", target).strip() + closing


@dataclass(frozen=True)
class Packed:
    """The prompts of a session in all views and their answers as one row of tokens; what the prompts begin with stands there once.

    Attributes:
        tokens: T of them.
        segment: 0 for the common beginning, 1, 2, ... for what follows in each prompt; a token sees the beginning and its own segment.
        place: of each token in its own prompt.
        label: the token that is to be predicted there, or `_IGNORED`.
    """

    tokens: Tokens
    segment: Tokens
    place: Tokens
    label: Tokens


def pack(prompts: Sequence[list[int]], answers: Sequence[list[int]], shared: bool) -> list[Packed]:
    """Prompts and answers as one row, or, where nothing is shared, as a row each.

    >>> pack([[1, 2, 3, 4], [1, 2, 5]], [[7, 0], [8, 0]], shared=True)[0].segment.tolist()
    [0, 0, 1, 1, 1, 1, 2, 2, 2]
    """
    if len(prompts) > 1 and not shared:
        return [row for prompt, answer in zip(prompts, answers) for row in pack([prompt], [answer], shared)]
    start = min(common(prompt, prompts[0]) for prompt in prompts) if len(prompts) > 1 else 0
    tokens, segment, place = list(prompts[0][:start]), [0] * start, list(range(start))
    label = [_IGNORED] * start
    for number, (prompt, answer) in enumerate(zip(prompts, answers), 1):
        rest = [*prompt, *answer][start:]
        tokens += rest
        segment += [number] * len(rest)
        place += range(start, start + len(rest))
        label += [_IGNORED] * (len(prompt) - start - 1) + answer + [_IGNORED]
    return [Packed(*(np.array(each, np.int64) for each in (tokens, segment, place, label)))]


class LoraLLM:
    """A causal language model with adapters, and its examples as tokens.

    Args:
        model: from transformers, its weights frozen here.
        tokenizer: of it.
        examples: of each session its prompts, the answer, and whether it is held out.
        rank: of the adapters.
        batch_tokens: tokens computed at once, padding included.
        checkpointing: compute activations twice in place of keeping them, for little memory.
        share: compute what a session's prompts begin with once; a model that does not attend to all that went before never does.
    """

    what = "cross-entropy per token of the answer"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        examples: Sequence[tuple[Sequence[Request], str, bool]],
        rank: int,
        batch_tokens: int,
        checkpointing: bool = False,
        share: bool = True,
    ) -> None:
        from peft import LoraConfig, get_peft_model

        share = share and attends_to_all(model)
        self._tuned: list[Packed] = []
        self._held_out: list[Packed] = []
        for requests, answer, held_out in examples:
            prompts = tokenizer([render(tokenizer, request) for request in requests], add_special_tokens=False).input_ids
            ending = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            (self._held_out if held_out else self._tuned).extend(pack(prompts, [ending] * len(prompts), share))
        self.lengths = [len(row.tokens) for row in self._tuned]
        # No dropout: its masks took a third of a step on a processor, and one look at each session leaves little to overfit.
        self._config = LoraConfig(
            r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self.model = get_peft_model(model, self._config)
        for module in self.model.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = False  # autocast does it; both would copy every activation twice
        self.device = next(model.parameters()).device
        self._dtype = next(each.dtype for each in model.parameters() if each.is_floating_point())
        self._batch_tokens, self._pad = batch_tokens, tokenizer.pad_token_id
        if checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.enable_input_require_grads()

    def parameters(self) -> list[torch.nn.Parameter]:
        """The adapters."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def step(self, pairs: Sequence[int]) -> Step:
        """Gradients of the mean loss of the answers' tokens, in pieces of at most `batch_tokens`."""
        self.model.train()
        batch = [self._tuned[pair] for pair in pairs]
        answers = sum(int((row.label != _IGNORED).sum()) for row in batch)
        total = 0.0
        for piece in self._pieces(batch):
            loss = self._loss(piece) / answers
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return Step(total, sum(len(row.tokens) for row in batch))

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean loss per token of the held-out answers."""
        self.model.eval()
        answers = sum(int((row.label != _IGNORED).sum()) for row in self._held_out)
        ordered = sorted(self._held_out, key=lambda row: len(row.tokens))
        return sum(float(self._loss(piece)) for piece in self._pieces(ordered)) / answers

    def _loss(self, piece: Sequence[Packed]) -> torch.Tensor:
        """Sum of the cross-entropies of the answers' tokens; only where one is predicted are the words of the vocabulary scored."""
        width = max(len(row.tokens) for row in piece)
        tokens = self._padded([row.tokens for row in piece], width, self._pad)  # [B, L], as are the next ones
        segment = self._padded([row.segment for row in piece], width, -1)
        label = self._padded([row.label for row in piece], width, _IGNORED)
        mine, theirs = segment.unsqueeze(2), segment.unsqueeze(1)
        seen = ((theirs == 0) | (theirs == mine)).tril()  # [B, L, L]; padding sees padding
        mask = torch.zeros_like(seen, dtype=self._dtype).masked_fill(~seen, torch.finfo(self._dtype).min)
        inner = self.model.get_base_model()
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            hidden = inner.base_model(
                input_ids=tokens,
                attention_mask=mask.unsqueeze(1),
                position_ids=self._padded([row.place for row in piece], width, 0),
                use_cache=False,
            ).last_hidden_state  # [B, L, D]
            predicts = label != _IGNORED
            logits = inner.get_output_embeddings()(hidden[predicts])  # [answer tokens, V]
        return torch.nn.functional.cross_entropy(logits.float(), label[predicts], reduction="sum")

    def _padded(self, rows: Sequence[Tokens], width: int, filler: int) -> torch.Tensor:
        """Rows filled up behind their ends, [B, width]."""
        found = np.full((len(rows), width), filler, np.int64)
        for number, row in enumerate(rows):
            found[number, : len(row)] = row
        return torch.from_numpy(found).to(self.device)

    def _pieces(self, rows: Sequence[Packed]) -> Iterator[list[Packed]]:
        piece: list[Packed] = []
        for row in rows:
            if piece and (len(piece) + 1) * max(len(row.tokens), *(len(each.tokens) for each in piece)) > self._batch_tokens:
                yield piece
                piece = []
            piece.append(row)
        if piece:
            yield piece

    def merged_into(self, whole: Any) -> Any:
        """Another copy of the untuned model with the adapters added to its weights."""
        from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

        other = get_peft_model(whole, self._config)
        weights = {name: weight.detach().cpu() for name, weight in get_peft_model_state_dict(self.model).items()}
        set_peft_model_state_dict(other, weights)
        return other.merge_and_unload()


def memory_needed(config: Any, weights: int, batch_tokens: int, rank: int, checkpointing: bool) -> int:
    """An estimate of the bytes that tuning takes: weights, adapters with their optimizer, and activations.

    Args:
        config: of the model.
        weights: bytes of the model's weights.
        batch_tokens: tokens computed at once.
        rank: of the adapters.
        checkpointing: whether activations are computed twice.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", 4 * hidden)
    of_a_layer = 2 * (
        22 * hidden + 8 * inner
    )  # bytes a token that autograd keeps; measured on SmolLM2-135M, 1.5 MB in 30 layers
    kept = 2 * hidden * layers + of_a_layer if checkpointing else of_a_layer * layers
    adapters = 4 * layers * rank * (8 * hidden + 3 * (hidden + inner)) * 4  # weights, gradients, two moments of Adam
    return int(weights + adapters + batch_tokens * kept)


def check_memory(needed: int, device: torch.device) -> str:
    """Say how much memory tuning takes, and refuse what cannot fit.

    Raises:
        UserError: names both figures and the remedy.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    said = f"about {needed / 2**30:.1f} GB of memory, {free / 2**30:.1f} GB are free"
    if needed > free:
        raise UserError(f"tuning needs {said}; lower --batch_tokens, add --checkpointing, or take a smaller model")
    return said
