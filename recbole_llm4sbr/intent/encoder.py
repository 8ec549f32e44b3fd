"""Text encoder: mean pooling over tokens, unit length (paper eq. 2-3, which takes BERT)."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from recbole_llm4sbr.data.features import Vectors
from recbole_llm4sbr.intent import check_allowed
from recbole_llm4sbr.intent.pretrained import resolve


class TextEncoder(Protocol):
    """What makes vectors of texts."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of texts, [len(texts), D]."""
        ...


class NamesOfItems:
    """Vectors of names: of an item's name the item's own vector, which is made of its text; other names are encoded.

    Args:
        encoder: of other names.
        names: of the items; of several that are called alike the first one counts.
        vectors: of the items, in the order of their names, [M, D].
    """

    def __init__(self, encoder: TextEncoder, names: Sequence[str], vectors: Vectors) -> None:
        self._encoder, self._vectors = encoder, vectors
        self._place = {name: place for place, name in reversed(list(enumerate(names)))}

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of names, [len(texts), D]."""
        others = [name for name in texts if name not in self._place]
        encoded = dict(zip(others, self._encoder.encode(others))) if others else {}
        rows = [encoded[name] if name in encoded else self._vectors[self._place[name]] for name in texts]
        return np.array(rows, np.float32).reshape(len(texts), self._vectors.shape[1])


class Encoder:
    """Sentence vectors of a BERT-like model.

    Args:
        name: short name, hub id or local folder.
        batch_size: texts at once.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.

    Raises:
        UserError: the model cannot be found or is not a text encoder.
    """

    def __init__(self, name: str, batch_size: int = 64, device: str = "auto") -> None:
        check_allowed("an encoder")
        self._source = resolve(name, "encoder")
        self.identity = self._source.identity
        self._device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self._batch_size = batch_size
        self._model, self._tokenizer = self._source.load_encoder(self._device)
        self.dim = int(self._model.config.hidden_size)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors [len(texts), dim]; an empty text gets zeros. Longer texts are cut at the model's limit (at most 256 tokens).

        Equal texts have the very same vector, in whatever batches they stood.
        """
        vectors = np.zeros((len(texts), self.dim), np.float32)
        order = sorted((i for i in range(len(texts)) if texts[i]), key=lambda i: len(texts[i]))
        limit = longest_text(self._model)
        with tqdm(total=len(order), unit="text", desc="encoder", disable=len(order) < 5000, mininterval=0.5) as bar:
            for start in range(0, len(order), self._batch_size):
                rows = order[start : start + self._batch_size]
                batch = self._tokenizer(
                    [texts[i] for i in rows], padding=True, truncation=True, max_length=limit, return_tensors="pt"
                )
                batch = batch.to(self._device)
                vectors[rows] = sentence_vectors(self._model, batch).float().cpu().numpy()
                bar.update(len(rows))
        first: dict[str, int] = {}
        return vectors[[first.setdefault(text, row) for row, text in enumerate(texts)]]


def longest_text(model: Any) -> int:
    """Tokens of the longest text that is read whole."""
    return min(256, int(model.config.max_position_embeddings) - 2)


def sentence_vectors(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Unit vectors of tokenized texts: the mean over their tokens, [B, D].

    Args:
        model: an encoder of transformers.
        batch: what its tokenizer returned, `attention_mask` among it.
    """
    hidden = model(**batch).last_hidden_state  # [B, L, D]
    mask = batch["attention_mask"].unsqueeze(-1)  # [B, L, 1]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
