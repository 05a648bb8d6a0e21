"""Where a plan's actions may lie and how they are executed: bounds and spread by entry, held entries, a dead zone.

For robots whose commands are not all alike. V-JEPA 2-AC's planner (arXiv 2506.09985, appendix B.2, and its code) clips
steps of the arm to a small box, searches the gripper with bounds and a spread of its own, and takes small gripper
commands for none.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lewm.world_model import ModelFacts, WorldModel
from planners import ActionBox


@dataclass(frozen=True)
class ActionLimits:
    """One number per entry of a raw action, in raw units, in the order of the recordings; nothing by default."""

    low: tuple[float, ...] | None = None
    """Lower bounds of the search, inside those of the recordings; null: those."""
    high: tuple[float, ...] | None = None
    """Upper bounds of the search, inside those of the recordings; null: those."""
    std: tuple[float, ...] | None = None
    """How widely the search begins; null: as the recorded actions are spread."""
    held: tuple[int, ...] = ()
    """Numbers (0, 1, ...) of the entries that keep one value through an action block, such as a gripper's."""
    dead_zone: tuple[float, ...] | None = None
    """Values nearer to zero than this are executed as zero; null, or 0 for an entry: every value counts."""

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and len(self.low) == len(self.high):
            for entry, (low, high) in enumerate(zip(self.low, self.high)):
                if not low < high:
                    raise ValueError(f"actions.low is {low} and actions.high is {high} for entry {entry}; raise high")
        for name, values, least in (("std", self.std, "above 0"), ("dead_zone", self.dead_zone, "0 or more")):
            for entry, value in enumerate(values or ()):
                if not (value > 0 or (value == 0 and name == "dead_zone")):
                    raise ValueError(f"actions.{name} is {value} for entry {entry}; it must be {least}")
        if len(set(self.held)) < len(self.held) or min(self.held, default=0) < 0:
            raise ValueError(f"actions.held is {list(self.held)}; name each entry once, counted from 0")

    def check(self, facts: ModelFacts) -> None:
        """Raise ValueError, naming the field, for limits that do not fit a model's actions."""
        entries = facts.action_dim
        for name in ("low", "high", "std", "dead_zone"):
            values = getattr(self, name)
            if values is not None and len(values) != entries:
                raise ValueError(f"actions.{name} has {len(values)} numbers; this model's actions have {entries}")
        if wrong := [entry for entry in self.held if entry >= entries]:
            raise ValueError(f"actions.held names entry {wrong[0]}; this model's actions have entries 0..{entries - 1}")
        for entry in range(entries):
            least, most = facts.action_low[entry], facts.action_high[entry]
            low, high = self._bounds(facts, entry)
            if not least <= low < high <= most:
                raise ValueError(
                    f"actions: entry {entry} would be searched from {low} to {high}; it must be a range inside the "
                    f"recordings' {least} to {most}"
                )

    def box(self, model: WorldModel) -> ActionBox:
        """The space to search: raw action blocks inside the bounds, spread like the recorded actions or as `std` says.

        Raises ValueError as `check`.
        """
        facts, skip = model.facts, model.config.frame_skip
        self.check(facts)
        bounds = [self._bounds(facts, entry) for entry in range(facts.action_dim)]
        low, high = (torch.tensor(side).repeat(skip) for side in zip(*bounds))
        mean = torch.tensor(facts.action_mean).repeat(skip).clamp(low, high)
        std = torch.tensor(facts.action_std if self.std is None else self.std).repeat(skip)
        return ActionBox(low, high, mean, std.clamp(min=1e-3), steps=skip).to(model.device)

    def executed(self, action: Tensor, entries: int) -> Tensor:
        """What becomes of planned blocks (..., A) of raw actions of so many entries: held ones follow the first step.

        Differentiable; without held entries and dead zone the blocks themselves.
        """
        if not self.held and not any(self.dead_zone or ()):
            return action
        step = action.unflatten(-1, (-1, entries))
        if self.held:
            held = torch.zeros(entries, dtype=torch.bool, device=action.device)
            held[list(self.held)] = True
            step = torch.where(held, step[..., :1, :], step)
        if self.dead_zone is not None:
            step = torch.where(step.abs() < step.new_tensor(self.dead_zone), 0.0, step)
        return step.flatten(-2)

    def _bounds(self, facts: ModelFacts, entry: int) -> tuple[float, float]:
        low = facts.action_low[entry] if self.low is None else self.low[entry]
        return low, facts.action_high[entry] if self.high is None else self.high[entry]


AS_RECORDED = ActionLimits()
"""The bounds and the spread of the recordings, and every action executed as planned."""


def action_box(model: WorldModel) -> ActionBox:
    """The space to search without further limits: raw action blocks as they were recorded."""
    return AS_RECORDED.box(model)
