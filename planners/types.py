"""What goes into a planner and what comes out: a cost function, a box of actions, a plan.

Shape suffixes: B problems, N candidates, H horizon in blocks, A action block (frame_skip x action_dim), I iterations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

CostFn = Callable[[Tensor], Tensor]
"""action_BNHA -> cost_BN, lower is better; NaN counts as +inf. N may differ from call to call."""


@dataclass(frozen=True)
class ActionBox:
    """The space a planner searches, in raw action units, one entry per element of an action block.

    Raises ValueError when the shapes differ, low >= high somewhere, or the mean or std is not usable.
    """

    low_A: Tensor
    """Smallest action allowed; -inf where there is none."""
    high_A: Tensor
    """Largest action allowed; +inf where there is none."""
    mean_A: Tensor
    """Centre of the initial search distribution."""
    std_A: Tensor
    """Scale of the initial search distribution; planners state every std in units of it."""

    def __post_init__(self) -> None:
        shapes = {name: tuple(getattr(self, name).shape) for name in ("low_A", "high_A", "mean_A", "std_A")}
        if len(set(shapes.values())) != 1 or self.low_A.ndim != 1:
            raise ValueError(f"an ActionBox needs four vectors of one length (A,), but got {shapes}")
        if not (self.low_A < self.high_A).all():
            raise ValueError(f"low_A {self.low_A.tolist()} must be below high_A {self.high_A.tolist()} in every entry")
        if not self.mean_A.isfinite().all():
            raise ValueError(f"mean_A {self.mean_A.tolist()} must be finite; for an open box state a centre yourself")
        if not (self.std_A.isfinite() & (self.std_A > 0)).all():
            raise ValueError(f"std_A {self.std_A.tolist()} must be finite and positive in every entry")

    @classmethod
    def from_bounds(cls, low_A: Tensor, high_A: Tensor) -> Self:
        """A box searched from its centre with half its range as scale. Raises ValueError for open bounds."""
        if low_A.shape != high_A.shape:
            raise ValueError(f"low_A has shape {tuple(low_A.shape)}, high_A {tuple(high_A.shape)}; they must be equal")
        return cls(low_A, high_A, (low_A + high_A) / 2, (high_A - low_A) / 2)

    def to(self, device: torch.device | str) -> Self:
        """The same box on another device."""
        return type(self)(self.low_A.to(device), self.high_A.to(device), self.mean_A.to(device), self.std_A.to(device))


@dataclass(frozen=True)
class Plan:
    """A planner's answer for B problems."""

    action_BHA: Tensor
    """What to execute, inside the box, raw action units."""
    cost_B: Tensor
    """Its cost as scored by the cost function; +inf where every candidate failed."""
    mean_BHA: Tensor
    """Final search mean: give it to `shift` for the next warm start."""
    best_cost_BI: Tensor
    """Lowest cost among the candidates of each iteration."""
    spread_BI: Tensor
    """Search std the candidates of each iteration were drawn with, mean over H and A, in units of box.std_A."""


class Planner(Protocol):
    """A frozen configuration that plans. It holds no state: a warm start goes in and `Plan.mean_BHA` comes out."""

    @property
    def horizon(self) -> int:
        """Blocks planned ahead (H)."""
        ...

    @property
    def candidates(self) -> int:
        """Action sequences scored per iteration (N)."""
        ...

    @property
    def iterations(self) -> int:
        """Rounds of draw, score, refit (I)."""
        ...

    def plan(self, cost_fn: CostFn, noise_BINHA: Tensor, box: ActionBox, warm_start_BHA: Tensor | None = None) -> Plan:
        """Search for the actions of lowest cost.

        noise_BINHA: standard normal, see `noise_table`; its device and dtype are those of the search, and box and
        warm start are best on that device already. warm_start_BHA: where to search first; the centre of the box by
        default. Raises ValueError for noise, a warm start or a cost of the wrong shape.
        """
        ...


def shift(mean_BHA: Tensor, blocks: int, box: ActionBox) -> Tensor:
    """Warm start for the next plan: drop the `blocks` executed ones, fill the tail with the centre of the box.

    Returns mean_BHA of the same shape. Raises ValueError when blocks is negative.
    """
    if blocks < 0:
        raise ValueError(f"blocks is {blocks}; it counts the executed blocks, so it must be 0 or more")
    B, H, A = mean_BHA.shape
    tail_BHA = box.mean_A.to(mean_BHA).expand(B, min(blocks, H), A)
    return torch.cat([mean_BHA[:, blocks:], tail_BHA], dim=1)
