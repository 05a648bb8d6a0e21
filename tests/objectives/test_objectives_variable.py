"""What the latent variable adds to the losses of a step."""

import pytest
import torch
from torch import Tensor

from lewm.nets.variable import DiscreteConfig, DiscreteVariable, Followed
from lewm.objectives.losses import Losses
from lewm.objectives.variable import with_variable


def followed(code: int, nats: float, loss: float) -> Followed:
    value: Tensor = torch.eye(2)[torch.full((3, 4), code)]
    empty = torch.zeros(3, 4, 1, 1)
    return Followed(empty, empty, value, torch.full((3, 4), nats), torch.full((3, 4), loss, requires_grad=True))


def test_the_term_and_its_metrics_are_means_over_the_ways_of_predicting() -> None:
    losses = Losses({"prediction": torch.tensor(2.0)}, {"prediction": 3.0}, {"seen": torch.tensor(7.0)})
    ways = followed(0, 1.0, 0.1), followed(1, 2.0, 0.3)
    found = with_variable(losses, ways, DiscreteVariable(DiscreteConfig(), 1, 1, 1))
    assert found.terms["variable"].item() == pytest.approx(0.2)
    assert found.total.item() == pytest.approx(6.2) and found.total.requires_grad
    assert {name: value.item() for name, value in found.metrics.items()} == {
        "seen": 7.0,
        "information_in_z": 1.5,
        "codes_in_use": 1.0,  # of the last way: rollout, where there are two
    }
    assert not any(value.requires_grad for value in found.metrics.values())
