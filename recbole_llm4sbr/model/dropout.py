"""Dropout whose mask is quick to draw: on a processor PyTorch spends more time on it than on a product with a layer's weights.

One random number of 64 bits decides about four values, so that a share is rounded to 1/65,536. On a GPU PyTorch's own is used.
"""

import torch
from torch import Tensor, nn

_STEPS = 65_536


def dropout(values: Tensor, share: float) -> Tensor:
    """`values` with a share of their numbers set to zero at random, the others divided by what is kept; in training only.

    >>> sorted(set(dropout(torch.ones(1000), 0.5).tolist()))
    [0.0, 2.0]
    """
    dropped = round(share * _STEPS)
    if values.device.type != "cpu" or not 0 < dropped < _STEPS:
        return nn.functional.dropout(values, share)
    words = torch.empty((values.numel() + 3) // 4, dtype=torch.int64, device=values.device).random_(-(2**63), None)
    kept = words.view(torch.int16)[: values.numel()].view(values.shape) >= dropped - _STEPS // 2
    return values * kept.to(values.dtype).mul_(_STEPS / (_STEPS - dropped))


class Dropout(nn.Dropout):
    """`nn.Dropout` by `dropout`."""

    def forward(self, values: Tensor) -> Tensor:
        """`values`, in training with a share `p` of them dropped."""
        return dropout(values, self.p) if self.training else values


def quicken_dropout(model: nn.Module) -> None:
    """Put `Dropout` in the place of every `nn.Dropout` within a model."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p).train(child.training))
