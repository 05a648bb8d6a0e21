"""GRASP: plan long horizons with the states between the actions as variables of their own."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from planners.checks import check_not_negative, check_positive, check_sizes
from planners.gradient import Adam, Descent, descend, draw_starts, learning_rates, slope
from planners.search import spread
from planners.types import ActionBox, CostFn, Need, Plan, StateCost, WarmStart

SMALLEST_UNIT = 1e-6
"""A floor for measured scales, so that a world in which nothing moves does not divide by 0."""


@dataclass(frozen=True)
class Grasp:
    """Gradient RelAxed Stochastic Planner (arXiv 2602.00475), for horizons at which a rollout's gradient is of no use.

    States s_1 .. s_{H-1} are variables beside the actions a_0 .. a_{H-1}. With F one step of the model an iteration
    lowers the sum over t of |F(s_t, a_t) - s_{t+1}|^2 + goal_weight x distance(F(s_t, a_t)): by an Adam step on the
    actions, and on the states by a step towards F(s_t, a_t) plus noise. States are constants where they are inputs of
    F, so no gradient passes through more than one block, and all blocks are one parallel call. Every `sync_every`
    iterations the actions descend the true cost for `sync_steps` Adam steps and the states start anew from the rollout
    of those actions; so they do before the first and after the last iteration. Only sequences whose true cost was
    scored can be the answer, which is the cheapest of them.

    Departures from the paper: no state is tied to the goal, because a cost knows a distance and not the goal state, so
    the states start at a rollout (not on a line to the goal) and noise spreads them; squared errors are measured in
    steps of that rollout, distances in their own spread along it, so neither the units of the state nor those of the
    cost matter.
    """

    needs: ClassVar[tuple[Need, ...]] = ("gradient", "states")

    name: Literal["grasp"] = "grasp"
    """Which planner this is."""
    horizon: int = 20
    """Blocks planned ahead, 2 or more."""
    candidates: int = 16
    """Starts, as in the planner `gradient`."""
    iterations: int = 60
    """Steps on states and actions together."""
    sync_every: int = 10
    """Iterations from one descent of the true cost to the next."""
    sync_steps: int = 10
    """Adam steps in each of those descents."""
    learning_rate: float = 0.1
    """Adam's step on the actions, in units of the box's std; in the last descent it falls to 0 along half a cosine."""
    state_rate: float = 0.5
    """Part of the way from a state to what the model predicts in its place that one iteration goes, in (0, 1]."""
    state_noise: float = 0.2
    """Std of the noise that an iteration adds to every state entry, in units of a block's movement in the rollout."""
    goal_weight: float = 1.0
    """Weight of the distances to the goal against the squared errors between states and predictions."""
    initial_std: float = 1.0
    """Std of the starts without a warm start, in units of the box's std."""
    warm_std: float = 0.5
    """Std of the starts around a warm start, in units of the box's std."""

    def __post_init__(self) -> None:
        check_sizes(self)
        check_positive(self, "sync_every", "sync_steps", "learning_rate", "initial_std", "warm_std")
        check_not_negative(self, "state_noise", "goal_weight")
        if self.horizon < 2:
            raise ValueError(
                f"Grasp: horizon is {self.horizon}; it must be at least 2, one block has no state between: use gradient"
            )
        if not 0 < self.state_rate <= 1:
            raise ValueError(f"Grasp: state_rate is {self.state_rate}; it must lie in (0, 1], where 1 goes all the way")

    @torch.inference_mode(False)
    @torch.no_grad()
    def plan(self, cost_fn: CostFn, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None = None) -> Plan:
        """Plan by relaxed states; see `planners.Planner.plan`."""
        if not isinstance(cost_fn, StateCost):
            raise ValueError(
                "grasp plans with states, but this cost offers no rollout, follow and distance (planners.StateCost): "
                "use gradient, cem or mppi for it"
            )
        action_BNHA = draw_starts(self, noise_BINHA, box, start)
        descent, state_BNHS = self._synchronise(cost_fn, action_BNHA, box)
        action_BNHA, best_cost_B1, best_B1HA = descent.action_BNHA, descent.best_cost_B1, descent.best_B1HA
        scale, adam = Scale.measure(cost_fn, state_BNHS), Adam(action_BNHA, box)
        number_BNF, row = noise_BINHA.transpose(1, 2).flatten(2), action_BNHA[0, 0].numel()
        best_costs, stds = [], []
        for i in range(1, self.iterations + 1):
            noise_BNHS = self.state_noise * scale.step_B111 * deal(number_BNF, i * row, state_BNHS)
            gradient_BNHA, state_BNHS = self._relax(cost_fn, action_BNHA, state_BNHS, noise_BNHS, scale)
            action_BNHA = adam.step(action_BNHA, gradient_BNHA, self.learning_rate)
            if i % self.sync_every == 0 or i == self.iterations:
                descent, state_BNHS = self._synchronise(cost_fn, action_BNHA, box, last=i == self.iterations)
                action_BNHA = descent.action_BNHA
                better_B1 = descent.best_cost_B1 < best_cost_B1
                best_cost_B1 = torch.where(better_B1, descent.best_cost_B1, best_cost_B1)
                best_B1HA = torch.where(better_B1[..., None, None], descent.best_B1HA, best_B1HA)
            best_costs.append(best_cost_B1)
            stds.append(action_BNHA.std(1, correction=0, keepdim=True))
        return Plan(
            action_BHA=best_B1HA[:, 0],
            cost_B=best_cost_B1[:, 0],
            mean_BHA=best_B1HA[:, 0],
            best_cost_BI=torch.cat(best_costs, 1),
            spread_BI=spread(stds, adam.unit_A),
        )

    def _synchronise(
        self, cost_fn: StateCost, action_BNHA: Tensor, box: ActionBox, last: bool = False
    ) -> tuple[Descent, Tensor]:
        """Descend the true cost for a few steps; then state_BNHS after each block where the actions really lead."""
        rates = learning_rates(self.learning_rate, self.sync_steps, "cosine" if last else "constant")
        descent = descend(cost_fn, action_BNHA, box, rates)
        return descent, cost_fn.rollout(descent.action_BNHA)

    def _relax(
        self, cost_fn: StateCost, action_BNHA: Tensor, state_BNHS: Tensor, noise_BNHS: Tensor, scale: "Scale"
    ) -> tuple[Tensor, Tensor]:
        """gradient_BNHA of the relaxed loss by the actions, and the next states after each block.

        The last state leads nowhere, so the prediction of it counts by its distance to the goal alone.
        """
        with torch.enable_grad():
            leaf_BNHA = action_BNHA.clone().requires_grad_()
            predicted_BNHS = cost_fn.follow(state_BNHS.roll(1, 2), leaf_BNHA)
            error_BNHS = predicted_BNHS - state_BNHS
            error_BN = (error_BNHS[:, :, :-1] / scale.step_B111).square().mean(3).sum(2)
            distance_BN = (cost_fn.distance(predicted_BNHS) / scale.distance_B11).sum(2)
            gradient_BNHA = slope(error_BN + self.goal_weight * distance_BN, leaf_BNHA)
        return gradient_BNHA, state_BNHS + self.state_rate * error_BNHS.detach() + noise_BNHS


@dataclass(frozen=True)
class Scale:
    """The units in which the relaxed loss of a problem is measured: those of its median candidate's rollout."""

    step_B111: Tensor
    """How far a block moves an entry of the state, root mean square."""
    distance_B11: Tensor
    """Std of the distance to the goal along the rollout."""

    @classmethod
    def measure(cls, cost_fn: StateCost, state_BNHS: Tensor) -> "Scale":
        """Measure the rollouts of all candidates. The median is finite as long as half of them are."""
        step_BN = state_BNHS.diff(dim=2).square().mean((2, 3)).sqrt()
        distance_BN = cost_fn.distance(state_BNHS).std(2, correction=0)
        step_B, distance_B = (x.nanmedian(1).values.clamp(min=SMALLEST_UNIT) for x in (step_BN, distance_BN))
        return cls(step_B[:, None, None, None], distance_B[:, None, None])


def deal(number_BNF: Tensor, first: int, state_BNHS: Tensor) -> Tensor:
    """noise_BNHS for states of that shape: each candidate's F numbers from `first` on, dealt out round and round.

    Iterations begin one row of the noise table apart, so a state entry meets another number in each. Where a state is
    wider than an action block they read on into the next rows: entries of different iterations share numbers there.
    """
    index_M = torch.arange(state_BNHS[0, 0].numel(), device=number_BNF.device) + first
    return number_BNF.index_select(2, index_M % number_BNF.shape[2]).view_as(state_BNHS)
