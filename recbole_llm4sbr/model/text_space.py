"""The items' texts as principal components: what `item_init`, `fusion: late` and the text tower (`items: text`) are made of."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Components:
    """Principal components of text vectors.

    Attributes:
        mean: of the vectors, [D].
        directions: unit vectors by falling variance, in double precision, [D, R].
        variances: of the vectors along each direction, likewise, [R].
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor

    @classmethod
    def of(cls, vectors: Tensor, size: int) -> "Components":
        """The first `size` components of vectors [N, D]; fewer where the vectors span fewer dimensions."""
        mean = vectors.mean(0)
        centred = (vectors - mean).double()
        variances, directions = torch.linalg.eigh(centred.T @ centred / max(len(centred), 1))  # [D], [D, D], in rising order
        variances, directions = variances.flip(0)[:size], directions.flip(1)[:, :size]
        kept = variances > 1e-10 * variances.max().clamp(min=1e-30)
        return cls(mean, directions[:, kept], variances[kept])

    def scale(self, whiten: bool) -> Tensor:
        """What components are divided by: each by its own deviation, or all by one number, so that their mean variance is 1."""
        return (self.variances if whiten else self.variances.mean()).sqrt()


def project_texts(vectors: Tensor, size: int, whiten: bool) -> Tensor:
    """Principal components of text vectors.

    Args:
        vectors: of the catalogue's items that have a text, [N, D].
        size: components wanted.
        whiten: scale every component to unit variance; else scale all by one number, so that their mean variance is 1.

    Returns:
        [N, R] with R at most `size`: fewer when the vectors span fewer dimensions.
    """
    found = Components.of(vectors, size)
    projected: Tensor = ((vectors - found.mean).double() @ found.directions / found.scale(whiten)).to(vectors.dtype)
    return projected


class TextSpace(nn.Module):
    """Where items lie by their texts: whitened principal components of the texts that training has.

    The components are kept in checkpoints, since computed anew one might come with the other sign. The items' places are not: they are
    computed of the vectors, so that items can be added after training without a word to the components.

    Args:
        components: of the texts.
        vectors: text vectors by item, zeros for padding and for items without a text, [n_items, D].
        spread: standard deviation of every component.
    """

    mean: Tensor
    basis: Tensor
    vectors: Tensor
    places: Tensor

    def __init__(self, components: Components, vectors: Tensor, spread: float) -> None:
        super().__init__()
        self._trained = len(vectors)
        self.register_buffer("mean", components.mean)  # [D]
        basis = components.directions / components.scale(whiten=True) * spread
        self.register_buffer("basis", basis.to(vectors.dtype))  # [D, R]
        self.register_buffer("vectors", vectors, persistent=False)
        self.register_buffer("places", self._placed(), persistent=False)
        self.register_load_state_dict_post_hook(_place_anew)  # type: ignore[no-untyped-call]

    @property
    def size(self) -> int:
        """Components, R."""
        return int(self.basis.size(1))

    def forward(self) -> Tensor:
        """The places of all items, in training of those that training has; zeros for padding and items without a text, [n_items, R]."""
        return self.places[: self._trained] if self.training else self.places

    def add(self, vectors: Tensor) -> None:
        """Place further items behind the others, by their text vectors [C, D]."""
        self.vectors = torch.cat([self.vectors, vectors.to(self.vectors)])
        self.places = self._placed()

    def _placed(self) -> Tensor:
        known = self.vectors.abs().sum(1, keepdim=True) > 0
        placed = (self.vectors - self.mean).double() @ self.basis.double()
        return (placed * known).to(self.vectors.dtype)


def _place_anew(space: nn.Module, _: object) -> None:
    """After a checkpoint is loaded: its components, and not those of before, say where items lie."""
    space.places = space._placed()  # type: ignore[operator,assignment]
