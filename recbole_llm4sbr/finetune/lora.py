"""An LLM tuned with low-rank adapters (LoRA, Hu et al. 2021) to continue the run's own prompts with the title of the next item."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import psutil
import torch

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.data.rows import read_items
from recbole_llm4sbr.finetune.examples import Pairs
from recbole_llm4sbr.finetune.loop import Step
from recbole_llm4sbr.intent.backends import Request
from recbole_llm4sbr.intent.backends.chat import render
from recbole_llm4sbr.intent.prompts import UNKNOWN_ITEM, PromptTemplate, item_names

_IGNORED = -100  # label of a token without a loss


def questions(settings: Mapping[str, Any], pairs: Pairs) -> Iterator[tuple[int, Request, str]]:
    """Each pair with the prompt of each view, as `infer` asks it, and the answer: the title of the item that follows.

    An item without a title is no answer. The answer ends as the LLM is stopped: with the quotation that the prompt opens, if it does.
    """
    template = PromptTemplate.load(settings["prompt"])
    items = read_items(dataset_folder(settings) / f"{settings['dataset']}.item")
    named = dict(zip(items["item_id"], item_names(items, settings)))
    names = [named[token] for token in pairs.rows.tokens]
    closing = '"' if template.answer_start.count('"') % 2 else ""
    for pair in range(len(pairs)):
        target = names[pairs.target[pair]]
        if target == UNKNOWN_ITEM:
            continue
        shown = [names[click] for click in pairs.clicks(pair)]
        for view in settings["views"]:
            yield pair, template.build(shown, view), re.sub(r'["\n]', " ", target).strip() + closing


class LoraLLM:
    """A causal language model with adapters, and its examples as tokens.

    Args:
        model: from transformers, its weights frozen here.
        tokenizer: of it.
        examples: prompt and answer, and whether it is held out.
        rank: of the adapters.
        batch_tokens: tokens computed at once, padding included.
        checkpointing: compute activations twice in place of keeping them, for little memory.
    """

    what = "cross-entropy per token of the answer"

    def __init__(
        self, model: Any, tokenizer: Any, examples: Sequence[tuple[Request, str, bool]], rank: int, batch_tokens: int,
        checkpointing: bool = False,
    ) -> None:  # fmt: skip
        from peft import LoraConfig, get_peft_model

        end = tokenizer.eos_token_id
        self._tokens: list[tuple[list[int], int]] = []  # tokens of prompt and answer, and how many are the prompt's
        self._held_out: list[tuple[list[int], int]] = []
        for part in _blocks(examples, 4096):
            prompts = tokenizer([render(tokenizer, request) for request, _, _ in part], add_special_tokens=False).input_ids
            answers = tokenizer([answer for _, answer, _ in part], add_special_tokens=False).input_ids
            for prompt, answer, (_, _, held_out) in zip(prompts, answers, part):
                (self._held_out if held_out else self._tokens).append((prompt + answer + [end], len(prompt)))
        self.lengths = [len(tokens) for tokens, _ in self._tokens]
        self._config = LoraConfig(
            r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self.model = get_peft_model(model, self._config)
        self.device = next(model.parameters()).device
        self._dtype = next(model.parameters()).dtype
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
        batch = [self._tokens[pair] for pair in pairs]
        answers = sum(len(tokens) - prompt for tokens, prompt in batch)
        total = 0.0
        for piece in self._pieces(batch):
            loss = self._loss(piece) / answers
            loss.backward()
            total += float(loss.detach())
        return Step(total, sum(len(tokens) for tokens, _ in batch))

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean loss per token of the held-out answers."""
        self.model.eval()
        answers = sum(len(tokens) - prompt for tokens, prompt in self._held_out)
        ordered = sorted(self._held_out, key=lambda example: len(example[0]))
        return sum(float(self._loss(piece)) for piece in self._pieces(ordered)) / answers

    def _loss(self, piece: Sequence[tuple[list[int], int]]) -> torch.Tensor:
        """Sum of the cross-entropies of the answers' tokens; only where one is predicted are the words of the vocabulary scored."""
        width = max(len(tokens) for tokens, _ in piece)
        ids = torch.full((len(piece), width), self._pad)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, _IGNORED)
        for row, (tokens, prompt) in enumerate(piece):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
            labels[row, prompt - 1 : len(tokens) - 1] = ids[row, prompt : len(tokens)]
        ids, mask, labels = (each.to(self.device) for each in (ids, mask, labels))
        inner = self.model.get_base_model()
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            hidden = inner.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # [B, L, D]
            predicts = labels != _IGNORED
            logits = inner.get_output_embeddings()(hidden[predicts])  # [answer tokens, V]
        return torch.nn.functional.cross_entropy(logits.float(), labels[predicts], reduction="sum")

    def _pieces(self, examples: Sequence[tuple[list[int], int]]) -> Iterator[list[tuple[list[int], int]]]:
        piece: list[tuple[list[int], int]] = []
        for example in examples:
            if piece and (len(piece) + 1) * max(len(example[0]), *(len(tokens) for tokens, _ in piece)) > self._batch_tokens:
                yield piece
                piece = []
            piece.append(example)
        if piece:
            yield piece

    def merged_into(self, whole: Any) -> Any:
        """Another copy of the untuned model with the adapters added to its weights."""
        from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

        other = get_peft_model(whole, self._config)
        weights = {name: weight.detach().cpu() for name, weight in get_peft_model_state_dict(self.model).items()}
        set_peft_model_state_dict(other, weights)
        return other.merge_and_unload()


def _blocks(values: Sequence[Any], size: int) -> Iterator[list[Any]]:
    coming = iter(values)
    while block := list(islice(coming, size)):
        yield block


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
    of_a_layer = 2 * (14 * hidden + 5 * inner)  # bytes a token: inputs of all products and norms, in two bytes each
    kept = 2 * hidden * layers + of_a_layer if checkpointing else of_a_layer * layers
    adapters = 4 * layers * rank * (8 * hidden + 3 * (hidden + inner)) * 4  # weights, gradients, two moments of Adam
    return weights + adapters + batch_tokens * kept


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
