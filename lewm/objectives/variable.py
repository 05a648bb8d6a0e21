"""What a latent variable adds to a training step: its loss, the information it carries, and how it is used."""

import torch
from torch import Tensor

from lewm.nets.variable import Followed, Variable
from lewm.objectives.losses import Losses


def with_variable(losses: Losses, followed: tuple[Followed, ...], variable: Variable) -> Losses:
    """The losses of an objective with the term `variable`, averaged over ways of predicting, clips and blocks.

    Metrics: `information_in_z` in nats per block, 0 in a deterministic world and log 2 for each fair coin a block
    tosses; and what the kind of variable says about its use.
    """
    term = torch.stack([one.loss_BT.mean() for one in followed]).mean()
    metrics = {"information_in_z": information_in_z(followed).detach()}
    metrics |= {name: value.detach() for name, value in variable.metrics(followed[-1]).items()}
    return Losses(losses.terms | {"variable": term}, losses.weights | {"variable": 1.0}, losses.metrics | metrics)


def information_in_z(followed: tuple[Followed, ...]) -> Tensor:
    """Nats per block, averaged over ways of predicting, clips and blocks."""
    return torch.stack([one.nats_BT.mean() for one in followed]).mean()
