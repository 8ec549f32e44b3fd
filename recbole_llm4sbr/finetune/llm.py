"""An LLM tuned to continue the run's own prompts with the next title, by low-rank adapters (LoRA, Hu et al. 2021) or as a whole."""

import logging
from collections.abc import Iterator, Sequence
from types import MethodType
from typing import Any, Literal

import numpy as np
import psutil
import torch

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.finetune.loop import Step
from recbole_llm4sbr.finetune.packing import IGNORED, Example, Packed, Tokens, count, pack, places_of
from recbole_llm4sbr.intent.backends.chat import render, tokens_behind
from recbole_llm4sbr.intent.backends.transformers import attends_to_all

log = logging.getLogger(__name__)

_SCORED = 128  # tokens whose scores of the whole vocabulary are in memory at once


class TunableLLM:
    """A causal language model, and its examples as tokens.

    Args:
        model: from transformers; with adapters its weights are frozen here.
        tokenizer: of it.
        examples: what it is tuned on, and what is held out.
        rank: of the adapters; 0: none, all weights are tuned.
        batch_tokens: tokens computed at once, padding included.
        list_weight: of the loss on the session's own list in the prompts, each item after those before it; 0: the answers alone.
        checkpointing: compute activations twice in place of keeping them, for little memory.
        share: compute what a session's prompts begin with once; a model that does not attend to all that went before never does.
    """

    what = "cross-entropy per token of the answer"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        examples: Sequence[Example],
        rank: int,
        batch_tokens: int,
        list_weight: float = 0.0,
        checkpointing: bool = False,
        share: bool = True,
    ) -> None:
        self.device = next(model.parameters()).device
        self.searches_beams = attends_to_all(model)  # `infer` can ask it for its likeliest titles
        share = share and self.searches_beams
        on_cpu = self.device.type == "cpu"
        self.keeps_attention = on_cpu
        if on_cpu:
            # Backwards, torch's fused attention took a third of a step on a processor, and this takes a twentieth.
            model.set_attn_implementation("eager")
        self._tuned: list[Packed] = []
        self._held_out: list[Packed] = []
        without_list = 0
        for example in examples:
            texts = [render(tokenizer, request) for request in example.requests]
            read = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
            prompts, lists = read.input_ids, [range(0)] * len(texts)
            if list_weight and tokenizer.is_fast:
                lists = [places_of(*each) for each in zip(read.offset_mapping, texts, example.lists)]
            (answer,) = tokens_behind(tokenizer, example.requests[0].answer_start, [example.answer])  # as `infer` asks for it
            ending = [*answer, tokenizer.eos_token_id]
            without_list += any(part and not places for part, places in zip(example.lists, lists))
            rows = self._held_out if example.held_out else self._tuned
            rows += pack(prompts, [ending] * len(prompts), lists, share)
        if list_weight and without_list:
            log.warning(
                "in the prompts of %s of %s sessions the list was not found among the tokens: its loss is left out there",
                f"{without_list:,}", f"{len(examples):,}",
            )  # fmt: skip
        self.lengths = [len(row.tokens) for row in self._tuned]
        self._rank, self._inner = rank, model
        self.model = self._adapted(model) if rank else model
        # A step of a weight in bfloat16 is often rounded to nothing, so that whole weights are tuned in float32.
        rounded = not rank and any(each.dtype != torch.float32 for each in model.parameters())
        self._whole = [torch.nn.Parameter(each.detach().float()) for each in model.parameters()] if rounded else []
        self._dtype = next(each.dtype for each in model.parameters() if each.is_floating_point())
        self._batch_tokens, self._list_weight, self._pad = batch_tokens, list_weight, tokenizer.pad_token_id
        if checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.enable_input_require_grads()

    def _adapted(self, model: Any) -> Any:
        """The model with adapters on every linear layer, which are what is trained."""
        from peft import get_peft_model
        from peft.tuners.lora import Linear

        adapted = get_peft_model(model, _adapters(self._rank))
        for module in adapted.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = False  # autocast does it; both would copy every activation twice
            if self.device.type == "cpu" and isinstance(module, Linear) and type(module.get_base_layer()) is torch.nn.Linear:
                module.forward = MethodType(_by_whole_weight, module)
        return adapted

    def parameters(self) -> list[torch.nn.Parameter]:
        """The adapters, or all weights."""
        return self._whole or [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def step(self, pairs: Sequence[int]) -> Step:
        """Gradients of the mean loss of the answers' tokens, and of that of the lists', in pieces of at most `batch_tokens`.

        The vocabulary is scored for some hundred tokens at a time, whose gradients of the hidden states are put together.
        """
        self.model.train()
        self._round()
        batch = [self._tuned[pair] for pair in pairs]
        answers, listed = count(batch, "answer"), max(count(batch, "listed"), 1)
        total = 0.0
        for piece in self._pieces(batch):
            hidden = self._hidden(piece)
            leaf = hidden.detach().requires_grad_()
            for loss in self._losses(leaf, piece, "answer"):
                (loss / answers).backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach()) / answers
            for loss in self._losses(leaf, piece, "listed") if self._list_weight else ():
                (loss * (self._list_weight / listed)).backward()  # type: ignore[no-untyped-call]
            hidden.backward(leaf.grad)  # type: ignore[no-untyped-call]
        for whole, rounded in zip(self._whole, self._inner.parameters()):
            whole.grad, rounded.grad = None if rounded.grad is None else rounded.grad.float(), None
        if not self._rank:
            torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        return Step(total, sum(len(row.tokens) for row in batch))

    @torch.no_grad()
    def _round(self) -> None:
        """Take whole weights over into the model that computes."""
        for whole, rounded in zip(self._whole, self._inner.parameters()):
            rounded.copy_(whole)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean loss per token of the held-out answers."""
        self.model.eval()
        self._round()
        ordered = sorted(self._held_out, key=lambda row: len(row.tokens))
        losses = (loss for piece in self._pieces(ordered) for loss in self._losses(self._hidden(piece), piece, "answer"))
        return sum(map(float, losses)) / count(ordered, "answer")

    def _hidden(self, piece: Sequence[Packed]) -> torch.Tensor:
        """The last hidden state of each token, [B, L, D]."""
        width = max(len(row.tokens) for row in piece)
        tokens = self._padded([row.tokens for row in piece], width, self._pad)  # [B, L], as is the next one
        segment = self._padded([row.segment for row in piece], width, -1)
        mine, theirs = segment.unsqueeze(2), segment.unsqueeze(1)
        seen = ((theirs == 0) | (theirs == mine)).tril()  # [B, L, L]; padding sees padding
        mask = torch.zeros_like(seen, dtype=self._dtype).masked_fill(~seen, torch.finfo(self._dtype).min)
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            hidden: torch.Tensor = self._inner.base_model(
                input_ids=tokens,
                attention_mask=mask.unsqueeze(1),
                position_ids=self._padded([row.place for row in piece], width, 0),
                use_cache=False,
            ).last_hidden_state
        return hidden

    def _losses(self, hidden: torch.Tensor, piece: Sequence[Packed], of: Literal["answer", "listed"]) -> Iterator[torch.Tensor]:
        """Sums of the cross-entropies of the tokens of answers or lists; only where one is predicted is the vocabulary scored."""
        label = self._padded([getattr(row, of) for row in piece], hidden.shape[1], IGNORED).flatten()
        for places in torch.split((label != IGNORED).nonzero().squeeze(1), _SCORED):
            with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
                logits = self._inner.get_output_embeddings()(hidden.flatten(0, 1)[places])  # [places, V]
            scores = _scaled(logits.float(), self._inner.config.get_text_config())
            yield torch.nn.functional.cross_entropy(scores, label[places], reduction="sum")

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
        """Another copy of the untuned model with the tuned weights, or with the adapters added to its own."""
        if not self._rank:
            with torch.no_grad():
                for weight, tuned in zip(whole.parameters(), self.parameters(), strict=True):
                    weight.copy_(tuned)
            return whole
        from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

        other = get_peft_model(whole, _adapters(self._rank))
        weights = {name: weight.detach().cpu() for name, weight in get_peft_model_state_dict(self.model).items()}
        set_peft_model_state_dict(other, weights)
        return other.merge_and_unload()


def _adapters(rank: int) -> Any:
    """No dropout: its masks took a third of a step on a processor, and one look at each session leaves little to overfit."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def _by_whole_weight(layer: Any, values: torch.Tensor) -> torch.Tensor:
    """What an adapted layer computes, by the sum of its weight and its adapter, rounded as the tuned model is when it is written.

    On a processor that is a fifth of a step quicker than peft's way, which takes the values through the adapter beside the weight
    (`benchmarks/tuning.py`).
    """
    weight = layer.base_layer.weight
    delta = layer.get_delta_weight(layer.active_adapters[0])
    return torch.nn.functional.linear(values, weight + delta.to(weight.dtype), layer.base_layer.bias)


def _scaled(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """What some models do behind their output layer: Cohere and Granite scale the scores, Gemma 2 bounds them."""
    logits = logits * (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    most = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / most) * most if most else logits


def memory_needed(
    config: Any, weights: int, parameters: int, batch_tokens: int, rank: int, checkpointing: bool, width: int
) -> int:
    """An estimate of the bytes that tuning takes: weights, what is trained with its optimizer, and activations.

    Args:
        config: of the model.
        weights: bytes of the model's weights.
        parameters: how many they are.
        batch_tokens: tokens computed at once.
        rank: of the adapters; 0: none, all weights are tuned.
        checkpointing: whether activations are computed twice.
        width: tokens of the longest row, each of which keeps its attention to all others, as each layer keeps its weights with the
            adapters added; 0 where neither is kept.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", 4 * hidden)
    of_a_layer = 2 * (
        22 * hidden + 8 * inner
    )  # bytes a token that autograd keeps; measured on SmolLM2-135M, 1.5 MB in 30 layers
    of_a_layer += 8 * config.num_attention_heads * width
    kept = 2 * hidden * layers + of_a_layer if checkpointing else of_a_layer * layers
    tuned = layers * rank * (8 * hidden + 3 * (hidden + inner)) if rank else parameters
    # Weights, gradients, two moments of Adam; of whole weights the best ones and rounded gradients too.
    copies = 4 if rank else 6
    summed = weights if rank and width and not checkpointing else 0
    lost = 1.4 if width else 1.0  # on a processor glibc keeps pieces between tensors; of SmolLM2-135M 14.5 GB after 460 steps
    return int(weights + summed + 4 * copies * tuned + lost * batch_tokens * kept)


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
