"""Goal pictures one after the other: long tasks as V-JEPA 2-AC does them (arXiv 2506.09985, section 4.2)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from lewm.planning.agent import Agent
from lewm.planning.costs import Situation
from planners import Plan, WarmStart


@dataclass(frozen=True)
class SubGoals:
    """When the next picture becomes the goal; the last one stays. With both rules, whichever comes first."""

    steps: tuple[int, ...] | None = None
    """Environment steps for each picture but the last."""
    reached: float | None = None
    """Distance of the frame seen now from the picture, as the cost's terms measure it, at which the picture counts as
    reached."""

    def __post_init__(self) -> None:
        if self.steps is None and self.reached is None:
            raise ValueError("sub-goals need a rule for the next one: give steps, reached, or both")
        if self.steps is not None and (not self.steps or min(self.steps) < 1):
            raise ValueError(f"sub-goal steps are {self.steps}; each picture but the last needs at least 1")
        if self.reached is not None and not self.reached > 0:
            raise ValueError(f"sub-goal distance is {self.reached}; it must be positive")


class SubGoalAgent(Agent):
    """An `Agent` that is led through several goal pictures: `begin(pictures, rule)` instead of `reset`, then `act`.

    The goal changes only where a plan is made, each problem of a batch by its own frames, and by one picture at a time.
    What was seen stays; the search for a new goal starts as the first one did.
    """

    rule: SubGoals | None = None

    def begin(
        self,
        goals: Sequence[np.ndarray],
        rule: SubGoals,
        episodes: Sequence[int] | None = None,
        past: Sequence[np.ndarray] = (),
        goal_proprio: Sequence[np.ndarray] | None = None,
    ) -> None:
        """Start episodes towards pictures, in order; each is what `reset` takes, and so are the rest.

        goal_proprio: what should be measured at each. Raises ValueError for a rule that does not fit them.
        """
        every = self.skip * self.replan_every
        if not goals:
            raise ValueError("sub-goals: there is no picture; give at least one")
        if rule.steps is not None and len(rule.steps) != len(goals) - 1:
            raise ValueError(
                f"sub-goal steps are given for {len(rule.steps)} pictures; {len(goals)} pictures need "
                f"{len(goals) - 1}: one number for each but the last"
            )
        if odd := [steps for steps in rule.steps or () if steps % every]:
            raise ValueError(f"sub-goal steps hold {odd[0]}, but a plan is made every {every} steps: give multiples")
        if goal_proprio is not None and len(goal_proprio) != len(goals):
            raise ValueError(f"{len(goals)} goal pictures, but measurements for {len(goal_proprio)}")
        encoded = []
        for i, goal in enumerate(goals):
            self.reset(goal, episodes, past, None if goal_proprio is None else goal_proprio[i])
            assert self.goal_BKD is not None
            encoded.append((self.goal_BKD, self.goal_measured_BM))
        if len({len(goal_BKD) for goal_BKD, _ in encoded}) != 1:
            raise ValueError(
                f"sub-goals: the pictures are for {[len(g) for g, _ in encoded]} problems; give as many each"
            )
        self.rule, self.sequence = rule, encoded
        self.goal_BKD, self.goal_measured_BM = encoded[0][0].clone(), _copy(encoded[0][1])
        self.at_B = np.zeros(len(self.goal_BKD), int)
        """Which picture each problem pursues."""
        self.since_B = np.zeros(len(self.goal_BKD), int)
        """Step at which it became the goal."""
        self.distance_B = np.full(len(self.goal_BKD), np.nan)
        """How far the frame of the last plan was from the picture pursued until then; NaN without `reached`."""

    def reset(
        self,
        goal: np.ndarray,
        episodes: Sequence[int] | None = None,
        past: Sequence[np.ndarray] = (),
        goal_proprio: np.ndarray | None = None,
    ) -> None:
        """As `Agent.reset`: one goal, no sub-goals."""
        self.rule = None
        super().reset(goal, episodes, past, goal_proprio)

    def _plan(self, situation: Situation, rows: np.ndarray, replan: int, starts: Sequence[WarmStart | None]) -> Plan:
        if self.rule is not None:
            moved_R = self._advance(self.rule, situation, rows)
            starts = [None if moved else start for moved, start in zip(moved_R, starts, strict=True)]
        return super()._plan(situation, rows, replan, starts)

    def _advance(self, rule: SubGoals, situation: Situation, rows: np.ndarray) -> np.ndarray:
        """Give the problems that are due their next picture; returns which they were."""
        assert self.goal_BKD is not None
        due_R = np.zeros(len(rows), bool)
        if rule.steps is not None:
            allowed = np.array([*rule.steps, np.iinfo(int).max])
            due_R |= self.step - self.since_B[rows] >= allowed[self.at_B[rows]]
        if rule.reached is not None:
            if self.goal_measured_BM is not None:
                situation = replace(situation, goal_measured_BM=self.goal_measured_BM[rows])
            state_R11S = situation.latent_BTKD[:, -1].flatten(1)[:, None, None]
            distance_R = self._goal_cost(situation, self.goal_BKD[rows]).distance(state_R11S)[:, 0, 0].cpu().numpy()
            self.distance_B[rows] = distance_R
            due_R |= distance_R <= rule.reached
        due_R &= self.at_B[rows] < len(self.sequence) - 1
        for row in rows[due_R]:
            self.at_B[row] += 1
            self.since_B[row] = self.step
            goal_BKD, measured_BM = self.sequence[self.at_B[row]]
            self.goal_BKD[row] = goal_BKD[row]
            if self.goal_measured_BM is not None and measured_BM is not None:
                self.goal_measured_BM[row] = measured_BM[row]
        return due_R


def _copy(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.clone()
