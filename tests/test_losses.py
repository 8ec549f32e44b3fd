import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm4sbr.model.losses import alignment, alignment_uniformity, uniformity


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def pairs(size, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(size, 5)), rng.normal(size=(size, 5))


@given(st.integers(2, 9), st.integers(0, 1000))
def test_losses_equal_the_formula_written_in_numpy(size, seed):
    x, y = pairs(size, seed)
    ux, uy = unit(x), unit(y)
    align = np.mean([np.sum((a - b) ** 2) for a, b in zip(ux, uy)])
    kernels = [np.exp(-2 * np.sum((ux[i] - ux[j]) ** 2)) for i in range(size) for j in range(i + 1, size)]
    tx, ty = torch.tensor(x), torch.tensor(y)
    np.testing.assert_allclose(alignment(tx, ty), align, rtol=1e-9)
    np.testing.assert_allclose(uniformity(tx), np.log(np.mean(kernels)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        alignment_uniformity(tx, ty), alignment(tx, ty) + (uniformity(tx) + uniformity(ty)) / 2, rtol=1e-9
    )


@given(st.integers(2, 9), st.integers(0, 1000))
def test_rows_of_weight_zero_do_not_count(size, seed):
    x, y = map(torch.tensor, pairs(size, seed))
    keep = torch.arange(size) % 3 != 0
    assert torch.allclose(
        alignment(x, y, keep.double()), alignment(x[keep], y[keep]) if keep.any() else torch.zeros(()).double()
    )
    assert torch.allclose(uniformity(x, keep.double()), uniformity(x[keep]))


def test_hand_numbers():
    x = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    assert torch.allclose(alignment(x, x), torch.zeros(()))
    assert torch.allclose(alignment(x, -x), torch.tensor(4.0))
    assert torch.allclose(uniformity(x), torch.tensor(-4.0))  # |a - b|^2 = 2, t = 2


def test_one_row_equal_rows_and_no_row_give_finite_values_and_gradients():
    for rows, weight in ((1, None), (3, None), (3, torch.zeros(3)), (3, torch.tensor([1.0, 0, 0]))):
        x = torch.ones(rows, 4, requires_grad=True)
        loss = alignment_uniformity(x, x * 2, weight)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(x.grad).all()
    assert uniformity(torch.ones(1, 4)) == 0


def test_views_at_once_give_what_each_gives_alone():
    h, t = torch.randn(2, 3, 6, 4)
    weight = torch.tensor([[1.0] * 6, [1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0]])
    expected = [alignment_uniformity(*each) for each in zip(h, t, weight)]
    torch.testing.assert_close(alignment_uniformity(h, t, weight), torch.stack(expected))


def test_losses_of_several_views_are_those_of_each_view():
    torch.manual_seed(2)
    x, y = torch.randn(3, 7, 5), torch.randn(3, 7, 5)
    torch.testing.assert_close(alignment(x, y), torch.stack([alignment(a, b) for a, b in zip(x, y)]))
    torch.testing.assert_close(uniformity(x), torch.stack([uniformity(a) for a in x]))


@given(st.integers(1, 6), st.integers(0, 1000))
def test_the_gradient_of_alignment_and_uniformity_is_that_of_their_formula(size, seed):
    torch.manual_seed(seed)
    h, t = (torch.randn(2, size, 4, dtype=torch.double, requires_grad=True) for _ in "ht")
    weight = (torch.rand(2, size) < 0.7).double()
    written = alignment(h, t, weight) + (uniformity(h, weight) + uniformity(t, weight)) / 2
    upstream = torch.randn(2, dtype=torch.double)
    found = torch.autograd.grad(alignment_uniformity(h, t, weight), (h, t), upstream)
    for one, other in zip(found, torch.autograd.grad(written, (h, t), upstream)):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)
