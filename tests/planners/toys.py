"""Problems with known optima. Each has many variants (rows), so that the problems of a batch differ."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from planners import ActionBox, CostFn, Need


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
    """Least cost of the centre of the box, where the search starts, in any row; far above optimum + tolerance."""
    offers: frozenset[Need] = frozenset({"gradient"})
    """What the cost and the box offer to planners that need it."""
    everyday: bool = True
    """Whether every planner whose needs it meets must solve it; else only those whose case in cases.py names it."""


def square(size: int, bound: float) -> ActionBox:
    return ActionBox.from_bounds(torch.full((size,), -bound), torch.full((size,), bound))


def direction(rows: Sequence[int]) -> Tensor:
    """One unit vector per row, shape (B, 1, 1, 2)."""
    angle_B = 2.4 * torch.tensor(rows, dtype=torch.float64) + 0.3
    return torch.stack([angle_B.cos(), angle_B.sin()], -1)[:, None, None]


class Walk(ABC):
    """A world of which states and dynamics are known, as a `StateCost`: subclasses say how a block moves the state."""

    @abstractmethod
    def present(self, action_BNHA: Tensor) -> Tensor:
        """state_BNS where every search starts."""

    @abstractmethod
    def step(self, state_BNS: Tensor, action_BNA: Tensor) -> Tensor:
        """next_BNS; any number of dimensions may stand where N does."""

    @abstractmethod
    def distance(self, state_BNHS: Tensor) -> Tensor:
        """distance_BNH from the goal."""

    def rollout(self, action_BNHA: Tensor) -> Tensor:
        """state_BNHS after each block."""
        state_BNS, states = self.present(action_BNHA), []
        for action_BNA in action_BNHA.unbind(2):
            state_BNS = self.step(state_BNS, action_BNA)
            states.append(state_BNS)
        return torch.stack(states, 2)

    def follow(self, state_BNHS: Tensor, action_BNHA: Tensor) -> Tensor:
        """next_BNHS of every block from the state before it."""
        present_BN1S = self.present(action_BNHA)[:, :, None]
        return self.step(torch.cat([present_BN1S, state_BNHS[:, :, 1:]], 2), action_BNHA)

    def __call__(self, action_BNHA: Tensor) -> Tensor:
        """cost_BN: the distance at the end."""
        return self.distance(self.rollout(action_BNHA))[:, :, -1]


@dataclass(frozen=True)
class PointMass(Walk):
    """Walk to a point two units away in steps of at most one in x and y; squared distance at the end."""

    goal_B11S: Tensor

    def present(self, action_BNHA: Tensor) -> Tensor:
        return torch.zeros_like(action_BNHA[:, :, 0])

    def step(self, state_BNS: Tensor, action_BNA: Tensor) -> Tensor:
        return state_BNS + action_BNA

    def distance(self, state_BNHS: Tensor) -> Tensor:
        return (state_BNHS - self.goal_B11S.to(state_BNHS)).square().sum(-1)


def point_mass(rows: Sequence[int]) -> CostFn:
    return PointMass(2 * direction(rows))


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


@dataclass(frozen=True)
class Gap(Walk):
    """Twenty blocks of pushing a mass with speed and friction from (-1, 0) to (1, 0) through a gap in the wall x = 0.

    The gap lies to one side, so the straight way ends at the wall. Costs the squared distance at the end plus the
    depth inside the wall. The state of a mass is (x, y, speed x, speed y).
    """

    gap_B1: Tensor
    """y of the gap's middle."""
    half: float = 0.25
    """Half the width of the gap."""

    def present(self, action_BNHA: Tensor) -> Tensor:
        return torch.tensor([-1.0, 0.0, 0.0, 0.0]).to(action_BNHA).expand(*action_BNHA.shape[:2], 4)

    def step(self, state_BNS: Tensor, action_BNA: Tensor) -> Tensor:
        speed = 0.8 * state_BNS[..., 2:] + 0.3 * action_BNA
        return torch.cat([state_BNS[..., :2] + 0.15 * speed, speed], -1)

    def wall(self, state_BNHS: Tensor) -> Tensor:
        """20 x depth_BNH inside the wall, which is 0.4 thick."""
        x, y = state_BNHS[..., 0], state_BNHS[..., 1]
        beside = ((y - self.gap_B1.to(y)[..., None]).abs() - self.half).clamp(min=0)
        return 20 * (0.2 - x.abs()).clamp(min=0) * beside

    def goal_distance(self, state_BNHS: Tensor) -> Tensor:
        """Squared distance_BNH of the position from (1, 0)."""
        return (state_BNHS[..., :2] - torch.tensor([1.0, 0.0]).to(state_BNHS)).square().sum(-1)

    def distance(self, state_BNHS: Tensor) -> Tensor:
        """distance_BNH with the price of standing inside the wall."""
        return self.goal_distance(state_BNHS) + self.wall(state_BNHS)

    def __call__(self, action_BNHA: Tensor) -> Tensor:
        state_BNHS = self.rollout(action_BNHA)
        return self.goal_distance(state_BNHS[:, :, -1]) + self.wall(state_BNHS).sum(2)


def gap(rows: Sequence[int]) -> CostFn:
    return Gap(torch.tensor([[0.7 if row % 2 else -0.7] for row in rows]))


class RoughGap(Gap):
    """Forty blocks to the same goal through a gap further off, without speed, over ripples of 0.04 where a step is 0.1.

    They change little where a step leads, but much how that depends on where it began: a small error grows by a factor
    between -1.4 and 3.4 in each step, so the gradient of a rollout of forty is noise. The state is (x, y).
    """

    def present(self, action_BNHA: Tensor) -> Tensor:
        return super().present(action_BNHA)[..., :2]

    def step(self, state_BNS: Tensor, action_BNA: Tensor) -> Tensor:
        phase = 60 * state_BNS
        return state_BNS + 0.1 * action_BNA + 0.02 * (phase.sin() + phase.flip(-1).sin())


def rough_gap(rows: Sequence[int]) -> CostFn:
    return RoughGap(torch.tensor([[1.0 if row % 2 else -1.0] for row in rows]), half=0.2)


CHOICES = (3, 5)


def chain(rows: Sequence[int]) -> CostFn:
    """Two discrete numbers in each of 3 blocks, a price for each and for each pair of neighbouring blocks.

    Counted from the cheapest of all 15^3 sequences, which are priced one and all.
    """
    prices = []
    for row in rows:
        generator = torch.Generator().manual_seed(row)
        prices.append((torch.rand(3, 15, generator=generator) * 3, torch.rand(2, 15, 15, generator=generator)))
    single, pair = (torch.stack(price).double() for price in zip(*prices, strict=True))

    def price(action_BNHA: Tensor) -> Tensor:
        code = (action_BNHA[..., 0] * CHOICES[1] + action_BNHA[..., 1]).long()
        b = torch.arange(len(rows), device=code.device)[:, None]
        one, two = single.to(code.device), pair.to(code.device)
        total = sum(one[b, h, code[..., h]] for h in range(3))
        return total + sum(two[b, h, code[..., h], code[..., h + 1]] for h in range(2))

    blocks = list(product(range(CHOICES[0]), range(CHOICES[1])))
    every_1NHA = torch.tensor(list(product(blocks, repeat=3)), dtype=torch.float64)[None]
    cheapest_B1 = price(every_1NHA.expand(len(rows), -1, -1, -1)).amin(1, keepdim=True)
    return lambda action_BNHA: (price(action_BNHA) - cheapest_B1.to(action_BNHA.device)).to(action_BNHA)


@dataclass(frozen=True)
class Limited:
    """A point mass as in `point_mass` whose end must keep limits."""

    goal_B2: Tensor
    limits: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    """(end_BN2, unit direction of the goal) -> violations, one tensor_BN per limit."""

    def __call__(self, action_BNHA: Tensor) -> Tensor:
        """cost_BN."""
        return (action_BNHA.sum(2) - self.goal_B2.to(action_BNHA)[:, None]).square().sum(-1)

    def violation(self, action_BNHA: Tensor) -> Tensor:
        """violation_BNG."""
        return torch.stack(self.limits(action_BNHA.sum(2), self.goal_B2.to(action_BNHA)[:, None] / 2), -1)


def fence(rows: Sequence[int]) -> CostFn:
    """The goal two units away lies half a unit behind a straight fence: optimum 0.5^2, at which its price is 1.

    The derivative of (2 - s)^2 by s at the fence s = 1.5 is -1.
    """
    return Limited(2 * direction(rows)[:, 0, 0], lambda end, ahead: ((end * ahead).sum(-1) - 1.5,))


def ring(rows: Sequence[int]) -> CostFn:
    """The end must lie on a thin ring, 0.9 to 1 from the start: optimum 1; about one first candidate in thirty does."""
    return Limited(2 * direction(rows)[:, 0, 0], lambda end, ahead: (end.norm(dim=-1) - 1, 0.9 - end.norm(dim=-1)))


STATES: frozenset[Need] = frozenset({"gradient", "states"})

TOYS = {
    "point mass": Toy(4, square(2, 1.0), point_mass, 0.0, 0.01, 4.0, STATES),
    "beyond the box": Toy(3, square(2, 1.0), beyond_the_box, 1.0, 0.02, 4.0),
    "valley": Toy(1, square(2, 2.0), valley, 0.0, 0.02, 1.0),
    "around a disc": Toy(4, square(2, 0.8), around_a_disc, 0.0, 0.02, 4.0),
    "gap": Toy(20, square(2, 1.0), gap, 0.0, 0.1, 4.0, STATES, everyday=False),
    "rough gap": Toy(40, square(2, 1.0), rough_gap, 0.0, 0.1, 3.9, STATES, everyday=False),
    "chain": Toy(3, ActionBox.discrete(CHOICES), chain, 0.0, 0.3, 2.5, frozenset({"choices"})),
    "fence": Toy(4, square(2, 1.0), fence, 0.25, 0.05, 4.0, frozenset({"violation"}), everyday=False),
    "ring": Toy(4, square(2, 1.0), ring, 1.0, 0.15, 4.0, frozenset({"violation"}), everyday=False),
}
