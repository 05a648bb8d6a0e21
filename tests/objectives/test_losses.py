import pytest
import torch

from lewm.objectives import Losses
from lewm.objectives.losses import full_precision


def test_total_is_the_weighted_sum_and_carries_the_gradient():
    x = torch.tensor(3.0, requires_grad=True)
    losses = Losses({"a": x, "b": x**2}, {"a": 2.0, "b": 0.5})
    assert losses.total.item() == pytest.approx(2 * 3 + 0.5 * 9)
    losses.total.backward()
    assert x.grad is not None and x.grad.item() == pytest.approx(2 + 0.5 * 6)


def test_metrics_do_not_enter_the_total():
    one = torch.tensor(1.0)
    assert Losses({"a": one}, {"a": 1.0}, {"seen": torch.tensor(100.0)}).total.item() == 1.0


@pytest.mark.parametrize("weights", [{}, {"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}])
def test_every_term_has_exactly_one_weight(weights):
    terms = {"a": torch.tensor(1.0), "b": torch.tensor(1.0)}
    with pytest.raises(ValueError, match=r"loss terms \['a', 'b'\] and weights .* must have the same names"):
        Losses(terms, weights)


def test_no_terms_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Losses({}, {})


def test_a_nan_term_is_not_swallowed_even_at_weight_zero():
    assert Losses({"a": torch.tensor(float("nan"))}, {"a": 0.0}).total.isnan()


def test_full_precision_lifts_half_types_and_keeps_float64():
    assert full_precision(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert full_precision(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
