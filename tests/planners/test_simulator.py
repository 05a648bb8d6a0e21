"""Planners know no model: each drives the true simulator from one pose to another, told nothing but distances.

Parametrised over PLANNERS, so a planner is covered by being in the table. Those that need gradients get them by finite
differences of the simulator.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES
from torch import Tensor
from toys import TOYS, Toy

from envs.reacher import Reacher
from planners import PLANNERS, ActionBox, ConstrainedCost, WarmStart, noise_table

SKIP, HORIZON, MAX_BLOCKS = 5, 4, 14
"""Env steps for which a torque is held, blocks planned ahead, blocks in which the goal must be reached."""
CANDIDATES, ITERATIONS = 48, 3
STARTS, DESCENTS = 6, 8
PAIRS = (
    ((0.5, 1.0, 0.0, 0.0), (1.3, 0.2, 0.0, 0.0)),
    ((-2.9, -1.5, 0.0, 0.0), (2.6, -0.5, 0.0, 0.0)),  # the short way leads over the shoulder's wrap at pi
    ((1.0, 1.2, 0.0, 0.0), (0.2, -0.7, 0.0, 0.0)),
)
"""Start and goal states, both at rest."""
TORQUES = (-1.0, -0.5, -0.2, 0.0, 0.2, 0.5, 1.0)
"""What a discrete planner chooses from, for either joint."""
SPEED_LIMIT = 3.0
"""rad/s, for planners that keep limits; the others go faster."""


@dataclass
class SimulatorCost:
    """Mean true distance over the simulated steps; one simulator, B states and goals."""

    task: Reacher
    states: list[np.ndarray]
    torques: tuple[float, ...] | None = None
    """Values that action entries count through; None: entries are torques."""

    def simulate(self, action_BNHA: Tensor) -> np.ndarray:
        """state_BNTS after each env step."""
        torque_BNHA = action_BNHA if self.torques is None else torch.tensor(self.torques)[action_BNHA.long()]
        torque_BNTA = torque_BNHA.repeat_interleave(SKIP, 2).double().numpy()
        return np.stack([self.task.simulate(*problem) for problem in zip(self.states, torque_BNTA, strict=True)])

    def __call__(self, action_BNHA: Tensor) -> Tensor:
        goal_B11S = np.array([goal for _, goal in PAIRS])[:, None, None]
        return torch.from_numpy(self.task.distance(self.simulate(action_BNHA), goal_B11S).mean(-1))

    def rollout(self, action_BNHA: Tensor) -> Tensor:
        """state_BNHS at the end of each block."""
        return torch.from_numpy(self.simulate(action_BNHA)[:, :, SKIP - 1 :: SKIP])

    def violation(self, action_BNHA: Tensor) -> Tensor:
        """By how much either joint is ever faster than allowed, G = 2."""
        return torch.from_numpy(np.abs(self.simulate(action_BNHA)[..., 2:]).max(2) - SPEED_LIMIT)


class Differences(torch.autograd.Function):
    """y (..., M) of a numpy function of x (..., K), with forward differences as its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[np.ndarray], np.ndarray]) -> Tensor:
        point, value = x.detach().double().numpy(), function(x.detach().double().numpy())
        slopes = [(function(point + step) - value) / STEP for step in STEP * np.eye(point.shape[-1])]
        ctx.save_for_backward(torch.from_numpy(np.stack(slopes, -1)))
        return torch.from_numpy(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (slope_MK,) = ctx.saved_tensors
        return (gradient[..., None] * slope_MK).sum(-2).float(), None


STEP = 1e-4


class SmoothSimulatorCost(SimulatorCost):
    """The same with gradients, and a `StateCost`: a state is that of the arm."""

    def __call__(self, action_BNHA: Tensor) -> Tensor:
        def cost(flat: np.ndarray) -> np.ndarray:
            action = torch.from_numpy(flat).unflatten(-1, action_BNHA.shape[2:])
            return SimulatorCost.__call__(self, action)[..., None].numpy()

        return Differences.apply(action_BNHA.flatten(2), cost)[..., 0]  # type: ignore[no-any-return, no-untyped-call]

    def follow(self, state_BNHS: Tensor, action_BNHA: Tensor) -> Tensor:
        before = state_BNHS.detach().double().numpy().copy()
        before[:, :, 0] = np.array(self.states)[:, None]

        def block(action: np.ndarray) -> np.ndarray:
            torques = action.reshape(-1, 1, 1, action.shape[-1]).repeat(SKIP, 2)
            ends = [self.task.simulate(*pair)[0, -1] for pair in zip(before.reshape(-1, before.shape[-1]), torques)]
            return np.array(ends).reshape(before.shape)

        return Differences.apply(action_BNHA, block)  # type: ignore[no-any-return, no-untyped-call]

    def distance(self, state_BNHS: Tensor) -> Tensor:
        goal_B11S = np.array([goal for _, goal in PAIRS])[:, None, None]
        far = Differences.apply(state_BNHS, lambda state: self.task.distance(state, goal_B11S)[..., None])  # type: ignore[no-untyped-call]
        return far[..., 0]  # type: ignore[no-any-return]


def drive(name: str, seed: int = 0) -> tuple[list[int | None], float]:
    """Env steps to each goal (None: not reached) and the highest joint speed, replanning after every block."""
    discrete = "choices" in PLANNERS[name].needs
    box = ActionBox.discrete((len(TORQUES),) * 2) if discrete else ActionBox.from_bounds(-torch.ones(2), torch.ones(2))
    case = next(case for case in CASES.values() if case.planner == name)
    smooth = bool({"gradient", "states"} & set(PLANNERS[name].needs))
    descends = smooth and "candidates" in {field.name for field in fields(PLANNERS[name])}  # not around a search
    sizes = (STARTS, DESCENTS) if descends else (CANDIDATES, ITERATIONS)
    planner = case.make(Toy(HORIZON, box, TOYS["point mass"].cost, 0, 0, 0), *sizes)
    kind = SmoothSimulatorCost if smooth else SimulatorCost
    cost = kind(Reacher(size=32), [np.array(start) for start, _ in PAIRS], TORQUES if discrete else None)
    assert isinstance(cost, ConstrainedCost)
    reached: list[int | None] = [None] * len(PAIRS)
    start: WarmStart | None = None
    fastest = 0.0
    for block in range(MAX_BLOCKS):
        noise = noise_table([(seed, row, block) for row in range(len(PAIRS))], planner, 2)
        plan = planner.plan(cost, noise, box, start)
        start = plan.warm_start(1, box)
        states_BTS = cost.simulate(plan.action_BHA[:, None, :1])[:, 0]
        fastest = max(fastest, float(np.abs(states_BTS[..., 2:]).max()))
        cost.states = [states_TS[-1] for states_TS in states_BTS]
        for row, (_, goal) in enumerate(PAIRS):
            hit = np.flatnonzero(cost.task.is_success(states_BTS[row], goal))
            if reached[row] is None and len(hit):
                reached[row] = block * SKIP + int(hit[0]) + 1
        if None not in reached:
            break
    return reached, fastest


@pytest.mark.parametrize("name", PLANNERS)
def test_reaches_the_goals_in_the_true_simulator(name: str) -> None:
    reached, fastest = drive(name)
    assert None not in reached, f"env steps to the goals: {reached}"
    if "violation" in PLANNERS[name].needs:
        assert fastest < SPEED_LIMIT + 1e-6


def test_the_speed_limit_is_one_that_others_break() -> None:
    assert drive("cem")[1] > SPEED_LIMIT + 0.5
