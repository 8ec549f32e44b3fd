"""A GRU over the clicks that there are and not over padding, for processors: PyTorch's own goes over all places of a padded batch.

On a GPU cuDNN has a kernel for it, and `torch.nn.GRU` stays as it is.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def pack_gru(gru: nn.GRU, lengths: Callable[[], Tensor | None]) -> None:
    """Let a GRU of a model of RecBole skip padding; its parameters and their names stay.

    Args:
        gru: changed in place if its batches come first, it has one direction and no dropout between layers; else left alone.
        lengths: gives the clicks per row of the batch at hand, [B]; None to go over all places.
    """
    if not gru.batch_first or gru.bidirectional or gru.dropout:
        return
    whole = gru.forward

    def forward(values: Tensor, start: Tensor | None = None) -> Any:
        """As `nn.GRU`, but outputs are zero behind the last click."""
        length = lengths()
        if length is None or start is not None or values.device.type != "cpu":
            return whole(values, start)
        return _run(gru, values, length)

    gru.forward = forward  # type: ignore[method-assign,assignment]


def _run(gru: nn.GRU, values: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [B, L, H], zero behind the last click, and each layer's last state [layers, B, H], of padded clicks [B, L, D]."""
    order = torch.argsort(length, descending=True)
    steps = torch.arange(values.size(1), device=values.device)
    there = length[order] > steps.unsqueeze(1)  # [L, B]; in each step the first rows
    row, step = order.expand_as(there)[there], steps.unsqueeze(1).expand_as(there)[there]  # [N], step by step
    padded, sizes, last = values, there.sum(1), []
    with torch.autocast(values.device.type, enabled=False):
        packed = values[row, step].to(gru.all_weights[0][0].dtype)
        for layer in range(gru.num_layers):
            w_ih, w_hh, *biases = gru.all_weights[layer]
            b_ih, b_hh = biases or (None, None)
            packed = _Recurrence.apply(linear(packed, w_ih, b_ih), w_hh, b_hh, sizes)  # type: ignore[no-untyped-call]
            padded = packed.new_zeros(*values.shape[:2], packed.size(1)).index_put((row, step), packed)
            last.append(padded[torch.arange(len(length), device=values.device), length - 1])
    return padded, torch.stack(last)


class _Recurrence(torch.autograd.Function):
    """States of a GRU layer (Cho et al. 2014, in PyTorch's form), [N, H], with the gradient written by hand.

    With s = W h + b for the state h before, r = sigmoid(i_r + s_r), z = sigmoid(i_z + s_z) and n = tanh(i_n + r s_n), the new state is
    n + z (h - n). All derivatives of a step are its own state's times numbers that are known from the way forward: those are multiplied
    for all steps at once.

    Args of `apply`:
        inputs: i_r, i_z, i_n of each click, step by step, [N, 3H].
        weight, bias: W [3H, H], and b [3H] or None.
        sizes: how many rows have a click in each step, never rising, [L].
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, sizes: Tensor) -> Tensor:
        count, size = len(inputs), weight.size(1)
        states, new = inputs.new_empty(count, size), inputs.new_empty(count, size)
        said, gates = inputs.new_empty(count, 3 * size), inputs.new_empty(count, 2 * size)  # s; r and z
        before = inputs.new_zeros(count, size)
        across, state = weight.T.contiguous(), before[: _pieces(sizes)[0].stop]
        for at in _pieces(sizes):
            if at.start:
                state = before[at].copy_(state[: at.stop - at.start])
            step, gate = said[at], gates[at]
            torch.mm(state, across, out=step) if bias is None else torch.addmm(bias, state, across, out=step)
            torch.add(inputs[at, : 2 * size], step[:, : 2 * size], out=gate).sigmoid_()
            torch.addcmul(inputs[at, 2 * size :], gate[:, :size], step[:, 2 * size :], out=new[at]).tanh_()
            state = torch.lerp(new[at], state, gate[:, size:], out=states[at])
        ctx.save_for_backward(weight, sizes, said[:, 2 * size :], gates, new, before)
        ctx.has_bias = bias is not None
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, sizes, said, gates, new, before = ctx.saved_tensors
        size = weight.size(1)
        r, z = gates[:, :size], gates[:, size:]
        by_n = (1 - z) * (1 - new * new)
        by_z = (before - new) * z * (1 - z)
        by_r = by_n * said * r * (1 - r)
        by_said = torch.stack([by_r, by_z, by_n * r], 1)  # d new state / d s, [N, 3, H]
        by_state, later = grads[0].clone(), None
        for at in reversed(_pieces(sizes)):
            state, step = by_state[at], by_said[at]
            if later is not None:
                state[: len(later)] += later
            step.mul_(state.unsqueeze(1))
            if at.start:
                later = torch.addmm(state * z[at], step.flatten(1), weight)
        by_inputs = torch.stack([by_r, by_z, by_n], 1).mul_(by_state.unsqueeze(1)).flatten(1)
        said = by_said.flatten(1)
        return by_inputs, said.T @ before, said.sum(0) if ctx.has_bias else None, None


def _pieces(sizes: Tensor) -> list[slice]:
    """Where each step's clicks are among all, steps without a click left out."""
    ends = [int(end) for end in sizes.cumsum(0)]
    return [slice(start, end) for start, end in zip([0, *ends], ends) if end > start]
