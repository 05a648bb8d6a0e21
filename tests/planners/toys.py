"""Problems with known optima. Each has many variants (rows), so that the problems of a batch differ."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planners import ActionBox, CostFn


@dataclass(frozen=True)
class Toy:
    """A family of problems with one optimal cost."""

    horizon: int
    box: ActionBox
    cost: Callable[[Sequence[int]], CostFn]
    """Rows to the cost function of these problems."""
    optimum: float
    """Lowest cost reachable inside the box, in every row."""
    tolerance: float
    """Cost above the optimum that 256 candidates x 12 iterations must reach on each of 8 rows."""
    centre_cost: float
    """Cost of the centre of the box, where the search starts; far above optimum + tolerance."""


def square(size: int, bound: float) -> ActionBox:
    return ActionBox.from_bounds(torch.full((size,), -bound), torch.full((size,), bound))


def direction(rows: Sequence[int]) -> Tensor:
    """One unit vector per row, shape (B, 1, 1, 2)."""
    angle_B = 2.4 * torch.tensor(rows, dtype=torch.float64) + 0.3
    return torch.stack([angle_B.cos(), angle_B.sin()], -1)[:, None, None]


def point_mass(rows: Sequence[int]) -> CostFn:
    """Walk to a point two units away in steps of at most one in x and y; squared distance at the end."""
    goal = 2 * direction(rows)[:, :, 0]
    return lambda action_BNHA: (action_BNHA.sum(2) - goal.to(action_BNHA)).square().sum(-1)


def beyond_the_box(rows: Sequence[int]) -> CostFn:
    """Mean squared distance to a corner at 2 of a box that ends at 1: the optimum is the corner of the box, cost 1."""
    corner = 2 * direction(rows).sign()
    return lambda action_BNHA: (action_BNHA - corner.to(action_BNHA)).square().mean((2, 3))


def valley(rows: Sequence[int]) -> CostFn:
    """Rosenbrock's curved valley, its end at (1, 1), mirrored in every other row."""
    mirror = torch.tensor([1.0 if row % 2 else -1.0 for row in rows])[:, None, None]

    def cost(action_BNHA: Tensor) -> Tensor:
        x, y = (mirror.to(action_BNHA)[..., None] * action_BNHA).unbind(-1)
        return ((1 - x).square() + 10 * (y - x.square()).square())[..., 0]

    return cost


def around_a_disc(rows: Sequence[int]) -> CostFn:
    """Cross a disc of radius 0.5 from one side to the other: two ways round, and their average goes through it."""
    ahead = direction(rows)

    def cost(action_BNHA: Tensor) -> Tensor:
        side = ahead.to(action_BNHA)
        position = action_BNHA.cumsum(2) - side
        midway = position - action_BNHA / 2
        depth = (0.5 - torch.cat([position, midway], 2).norm(dim=-1)).clamp(min=0)
        return (position[:, :, -1] - side[:, :, 0]).square().sum(-1) + 10 * depth.square().sum(2)

    return cost


TOYS = {
    "point mass": Toy(4, square(2, 1.0), point_mass, 0.0, 0.01, 4.0),
    "beyond the box": Toy(3, square(2, 1.0), beyond_the_box, 1.0, 0.02, 4.0),
    "valley": Toy(1, square(2, 2.0), valley, 0.0, 0.02, 1.0),
    "around a disc": Toy(4, square(2, 0.8), around_a_disc, 0.0, 0.02, 4.0),
}
