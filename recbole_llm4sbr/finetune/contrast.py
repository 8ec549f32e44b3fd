"""A text encoder tuned by contrast: what a session looks like in words, against the text of the item that follows (InfoNCE)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from recbole_llm4sbr.data.folders import dataset_folder
from recbole_llm4sbr.data.rows import read_items
from recbole_llm4sbr.finetune.examples import Pairs
from recbole_llm4sbr.finetune.loop import Step
from recbole_llm4sbr.intent.encoder import longest_text, sentence_vectors
from recbole_llm4sbr.intent.prompts import item_texts

TEMPERATURE = 0.05  # as in SimCSE (Gao et al. 2021) and sentence-transformers' default scale of 20
_LAST = 5  # items of a session whose texts make the query
_BETWEEN = "; "


def texts_of(settings: Mapping[str, Any], pairs: Pairs) -> list[str]:
    """What the encoder reads of each of `pairs.rows.tokens`; an empty text where an item has none."""
    items = read_items(dataset_folder(settings) / f"{settings['dataset']}.item")
    texts = dict(zip(items["item_id"], item_texts(items, settings)))
    return [texts[token] for token in pairs.rows.tokens]


def session_query(texts: Sequence[str], clicks: Sequence[int]) -> str:
    """The texts of the last items of a session, the newest last."""
    return _BETWEEN.join(texts[click] for click in clicks[-_LAST:] if texts[click])


class ContrastiveEncoder:
    """A text encoder, and pairs of a query and the item that follows.

    Args:
        model: from transformers; all its weights are trained.
        tokenizer: of it.
        texts: what is read of each item; an item without a text is no target.
        pairs: of the training part.
        queries: place of a pair and a text that stands for its session: the texts of its last items, an answer of the LLM.
        batch: queries that are contrasted together where the held-out loss is computed.
    """

    what = "InfoNCE loss"

    def __init__(
        self, model: Any, tokenizer: Any, texts: Sequence[str], pairs: Pairs, queries: Sequence[tuple[int, str]], batch: int
    ) -> None:
        self.model, self._tokenizer, self._texts, self._batch = model, tokenizer, texts, batch
        self.device = next(model.parameters()).device
        usable = [(pair, text) for pair, text in queries if text and texts[pairs.target[pair]]]
        self._queries = [text for _, text in usable]
        self._pair = np.array([pair for pair, _ in usable], np.int64)
        self._target = pairs.target[self._pair]
        self._pairs = pairs
        held_out = pairs.held_out[self._pair]
        self._tuned, self._held_out = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        self.lengths = [len(self._queries[place]) // 4 for place in self._tuned]  # about four letters a token

    def parameters(self) -> list[torch.nn.Parameter]:
        """All weights that have gradients."""
        return [parameter for name, parameter in self.model.named_parameters() if not name.startswith("pooler.")]

    def step(self, pairs: Sequence[int]) -> Step:
        """Gradients of the mean loss of a batch of queries."""
        self.model.train()
        loss, tokens = self._loss(self._tuned[list(pairs)])
        loss.backward()  # type: ignore[no-untyped-call]
        return Step(float(loss.detach()), tokens)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The mean loss of the held-out queries, always in the same batches."""
        self.model.eval()
        parts = [self._held_out[first : first + self._batch] for first in range(0, len(self._held_out), self._batch)]
        return sum(float(self._loss(part)[0]) * len(part) for part in parts) / len(self._held_out)

    def _loss(self, places: npt.NDArray[np.int64]) -> tuple[torch.Tensor, int]:
        """The mean InfoNCE loss of some queries, and the tokens that were read.

        The candidates of a query are the targets of all queries of the batch, without those that stand in its own session.
        """
        items, own = np.unique(self._target[places], return_inverse=True)
        vectors, read = self._vectors([self._queries[place] for place in places])  # [B, D]
        candidates, more = self._vectors([self._texts[item] for item in items])  # [U, D]
        scores = vectors @ candidates.T / TEMPERATURE  # [B, U]
        scores = scores.masked_fill(torch.from_numpy(self._in_session(places, items)).to(self.device), -torch.inf)
        return torch.nn.functional.cross_entropy(scores, torch.from_numpy(own).to(self.device)), read + more

    def _in_session(self, places: npt.NDArray[np.int64], items: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which items stand in each query's session, but for its own target, [B, U]."""
        rows, row = self._pairs.rows, self._pairs.row[self._pair[places]]
        lengths = rows.starts[row + 1] - rows.starts[row]
        owner = np.repeat(np.arange(len(places)), lengths)
        offset = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        clicks = rows.clicks[np.repeat(rows.starts[row], lengths) + offset]
        column = np.searchsorted(items, clicks)
        there = (column < len(items)) & (items[np.minimum(column, len(items) - 1)] == clicks)
        found = np.zeros((len(places), len(items)), bool)
        found[owner[there], column[there]] = True
        found[np.arange(len(places)), np.searchsorted(items, self._target[places])] = False
        return found

    def _vectors(self, texts: Sequence[str]) -> tuple[torch.Tensor, int]:
        """Unit vectors of texts, [len(texts), D], and the tokens that were read."""
        batch = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=longest_text(self.model), return_tensors="pt"
        ).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=_quick(self.device)):
            found = sentence_vectors(self.model, batch)
        return found.float(), int(batch["attention_mask"].sum())


def _quick(device: torch.device) -> bool:
    from recbole_llm4sbr.intent.backends.transformers import compute_dtype

    return compute_dtype(device) == torch.bfloat16
