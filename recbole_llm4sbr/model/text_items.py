"""The text tower (`items: text`): an item table that is a trained projection of the items' texts, with no numbers of any item's own.

After the adaptor of UniSRec (Hou et al., KDD 2022: whitened text vectors through a linear map) and the text model of EnsRec
(arXiv:2512.17820). docs/backbones.md has the figures behind the form.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm4sbr.model.text_space import Components, TextSpace


class TextItems(nn.Module):
    """Stands in the place of a model's `nn.Embedding` of items: it is called with item ids, and has a `weight`.

    Texts are whitened, so that no few directions that all titles share outweigh the others, and scaled to length 1 on average, so that a
    step of the optimizer moves an item about as far as it moves a row of a table. There is no bias: padding and an item without a text
    lie at zero, where the mean of all texts lies.

    Args:
        vectors: text vectors by item, zeros for padding and for items without a text, [n_items, D].
        own: the table that the model made, whose size and spread are kept, [n_items, H].
        start: `item_init`: of a `random` projection, or of one under which the table starts as an id table under `text` or `pca` does.
    """

    def __init__(self, vectors: Tensor, own: Tensor, start: str) -> None:
        super().__init__()
        found = Components.of(vectors[vectors.abs().sum(1) > 0], vectors.size(1))
        rank, size, spread = len(found.variances), own.size(1), float(own[1:].std())
        self.num_embeddings, self.embedding_dim, self.padding_idx = len(vectors), size, 0
        self.space = TextSpace(found, vectors, rank**-0.5)
        self.project = nn.Linear(rank, size, bias=False)
        if start == "random":
            nn.init.normal_(self.project.weight, std=spread)
        else:
            first = found.variances[:size]
            scale = first if start == "text" else first.mean()
            nn.init.zeros_(self.project.weight)
            with torch.no_grad():
                self.project.weight.diagonal()[:] = (first / scale).sqrt() * rank**0.5 * spread
        self._sharing = False
        self._table: tuple[Any, Tensor] | None = None

    def forward(self, items: Tensor) -> Tensor:
        """Embeddings of items [...], [..., H]."""
        return nn.functional.embedding(items, self.weight)

    @property
    def weight(self) -> Tensor:
        """The item table, [n_items, H]; in training of the items that training has. Within `shared`, and without gradients, it is
        projected once for all that read it."""
        if torch.is_grad_enabled() and not self._sharing:
            return self._projected()
        made_of = self.project.weight
        state = (
            made_of._version, made_of.device, made_of.dtype, len(self.space.places), self.training, torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(), torch.is_autocast_enabled(made_of.device.type),
        )  # fmt: skip
        if self._table is None or self._table[0] != state:
            self._table = state, self._projected()
        return self._table[1]

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Within a step: the clicks and the scores read one table, through which one gradient goes back."""
        self._sharing = True
        try:
            yield
        finally:
            self._sharing = False
            if torch.is_grad_enabled():  # a graph must not outlive its step
                self._table = None

    def _projected(self) -> Tensor:
        table: Tensor = self.project(self.space())
        return table

    def __getstate__(self) -> dict[str, Any]:
        """A copy does without the table at hand, which may hang in a graph."""
        return {**self.__dict__, "_table": None}
