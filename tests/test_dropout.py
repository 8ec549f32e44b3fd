import pytest
import torch

from recbole_llm4sbr.model.dropout import Dropout, dropout, quicken_dropout


@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_so_many_numbers_are_dropped_and_the_mean_stays(share):
    torch.manual_seed(0)
    values = torch.rand(400, 501) + 1  # an odd number of values
    found = dropout(values, share)
    dropped = found == 0
    assert dropped.float().mean().item() == pytest.approx(share, abs=0.005)
    torch.testing.assert_close(found[~dropped], values[~dropped] / (1 - share), rtol=1e-3, atol=0)
    assert found.mean().item() == pytest.approx(values.mean().item(), rel=0.02)
    columns = dropped.float().mean(0)  # no column is favoured, and neighbours know nothing of each other
    assert columns.std().item() == pytest.approx((share * (1 - share) / 400) ** 0.5, rel=0.2)
    together = (dropped[:, 1:] & dropped[:, :-1]).float().mean().item()
    assert together == pytest.approx(share**2, abs=0.01)


def test_the_gradient_passes_where_a_number_was_kept():
    values = torch.ones(50, requires_grad=True)
    found = dropout(values, 0.4)
    found.sum().backward()
    torch.testing.assert_close(values.grad, found.detach())


def test_the_seed_decides_the_mask_and_the_ends_are_exact():
    values = torch.ones(100)
    masks = []
    for _ in range(2):
        torch.manual_seed(3)
        masks.append(dropout(values, 0.5))
    assert torch.equal(*masks)
    assert torch.equal(dropout(values, 0.0), values)
    assert not dropout(values, 1.0).any()


def test_dropout_within_a_model_is_replaced_and_only_in_training():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Sequential(torch.nn.Dropout(0.7)), torch.nn.Dropout1d(0.7))
    quicken_dropout(model)
    assert type(model[1][0]) is Dropout
    assert model[1][0].p == 0.7
    assert type(model[2]) is torch.nn.Dropout1d  # drops whole channels: another thing
    values = torch.ones(10, 3)
    assert torch.equal(model.eval()[1](values), values)
