"""What goes into a planner and what comes out: a cost function, a box of actions, a plan.

Shape suffixes: B problems, N candidates, H horizon in blocks, A action block (frame_skip x action_dim), I iterations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

CostFn = Callable[[Tensor], Tensor]
"""action_BNHA -> cost_BN, lower is better; NaN counts as +inf. N may differ from call to call."""

Need = Literal["gradient", "states", "violation", "choices"]
"""What a planner may ask for beyond a cost: a cost that can be differentiated by the actions, one that is a
`StateCost`, one that is a `ConstrainedCost`, a box whose actions are discrete."""


@runtime_checkable
class StateCost(Protocol):
    """A cost that also answers for states a planner makes up itself. S is whatever the world calls a state, flat."""

    def __call__(self, action_BNHA: Tensor) -> Tensor:
        """cost_BN, as in `CostFn`."""
        ...

    def rollout(self, action_BNHA: Tensor) -> Tensor:
        """state_BNHS after each of the H blocks when they are executed one after the other from the present."""
        ...

    def follow(self, state_BNHS: Tensor, action_BNHA: Tensor) -> Tensor:
        """next_BNHS: where block h leads from the states before it, all H at once.

        state_BNHS[:, :, h] is the state before block h; entry 0 is ignored, it is always the problem's true present.
        """
        ...

    def distance(self, state_BNHS: Tensor) -> Tensor:
        """distance_BNH of every state from the goal, in the units of the cost."""
        ...


@runtime_checkable
class ConstrainedCost(Protocol):
    """A cost with limits beside it."""

    def __call__(self, action_BNHA: Tensor) -> Tensor:
        """cost_BN, as in `CostFn`."""
        ...

    def violation(self, action_BNHA: Tensor) -> Tensor:
        """violation_BNG of the G limits: at most 0 where a limit is kept, positive and growing where it is broken."""
        ...


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
    choices_A: tuple[int, ...] | None = None
    """Number of values of each entry where actions are discrete: 0, 1, ... choices - 1. None: continuous."""
    steps: int = 1
    """Environment steps in a block: its A entries are this many raw actions, one after the other."""

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
        if self.steps < 1 or len(self.low_A) % self.steps:
            raise ValueError(
                f"steps is {self.steps}; a block of {len(self.low_A)} entries must be that many raw actions"
            )
        if self.choices_A is not None and (len(self.choices_A) != len(self.low_A) or min(self.choices_A) < 2):
            raise ValueError(
                f"choices_A is {self.choices_A}; a discrete box needs a number of choices, 2 or more, for each of its "
                f"{len(self.low_A)} entries"
            )
        if self.choices_A is not None and (self.low_A.any() or self.high_A.tolist() != [n - 1 for n in self.choices_A]):
            raise ValueError(
                f"a discrete box goes from 0 to choices - 1, but low_A is {self.low_A.tolist()} and high_A "
                f"{self.high_A.tolist()} for choices {self.choices_A}: make it with ActionBox.discrete"
            )

    @classmethod
    def from_bounds(cls, low_A: Tensor, high_A: Tensor, steps: int = 1) -> Self:
        """A box searched from its centre with half its range as scale. Raises ValueError for open bounds."""
        if low_A.shape != high_A.shape:
            raise ValueError(f"low_A has shape {tuple(low_A.shape)}, high_A {tuple(high_A.shape)}; they must be equal")
        return cls(low_A, high_A, (low_A + high_A) / 2, (high_A - low_A) / 2, None, steps)

    @classmethod
    def discrete(cls, choices_A: tuple[int, ...], steps: int = 1) -> Self:
        """The box of discrete actions: entry a takes the values 0, 1, ... choices_A[a] - 1."""
        high_A = torch.tensor(choices_A, dtype=torch.float32) - 1
        return cls(torch.zeros_like(high_A), high_A, high_A / 2, high_A / 2, tuple(choices_A), steps)

    def to(self, device: torch.device | str) -> Self:
        """The same box on another device."""
        low_A, high_A = self.low_A.to(device), self.high_A.to(device)
        return type(self)(low_A, high_A, self.mean_A.to(device), self.std_A.to(device), self.choices_A, self.steps)


@dataclass(frozen=True)
class WarmStart:
    """What is known before the search: where the last plan ended, or what a learned proposal says."""

    mean_BHA: Tensor
    """Where to search first."""
    std_BHA: Tensor | None = None
    """How widely, raw action units; None: the planner's own std for warm starts."""
    seeds_BSHA: Tensor | None = None
    """S sequences that are candidates of the first iteration as they are; of every one with `keep_seeds`."""

    def problems(self, rows: slice) -> Self:
        """The same for some of the problems."""
        std_BHA, seeds_BSHA = self.std_BHA, self.seeds_BSHA
        return type(self)(
            self.mean_BHA[rows],
            None if std_BHA is None else std_BHA[rows],
            None if seeds_BSHA is None else seeds_BSHA[rows],
        )

    @classmethod
    def join(cls, starts: Sequence[Self]) -> Self:
        """One warm start for all the problems of several, which must be of one kind."""
        stds, seeds = [s.std_BHA for s in starts], [s.seeds_BSHA for s in starts]
        return cls(
            torch.cat([s.mean_BHA for s in starts]),
            None if stds[0] is None else torch.cat([s for s in stds if s is not None]),
            None if seeds[0] is None else torch.cat([s for s in seeds if s is not None]),
        )


@dataclass(frozen=True)
class Plan:
    """A planner's answer for B problems."""

    action_BHA: Tensor
    """What to execute, inside the box, raw action units."""
    cost_B: Tensor
    """Its cost as scored by the cost function; +inf where every candidate failed."""
    mean_BHA: Tensor
    """Final search mean, where the next search starts."""
    best_cost_BI: Tensor
    """Lowest cost among the candidates of each iteration."""
    spread_BI: Tensor
    """Search std the candidates of each iteration were drawn with, mean over H and A, in units of box.std_A; of
    discrete actions the entropy drawn with, as a share of that of uniform draws."""
    seeds_BSHA: Tensor | None = None
    """Sequences worth scoring again in the next plan, from planners that keep some."""

    def warm_start(self, blocks: int, box: ActionBox) -> WarmStart:
        """The next search's start, once the first `blocks` blocks of this plan have been executed; see `shift`."""
        seeds_BSHA = None if self.seeds_BSHA is None else shift(self.seeds_BSHA, blocks, box)
        return WarmStart(shift(self.mean_BHA, blocks, box), None, seeds_BSHA)


class Planner(Protocol):
    """A frozen configuration that plans. It holds no state: a warm start goes in and the next one comes out."""

    needs: ClassVar[tuple[Need, ...]]
    """What it asks of the cost and the box; nothing for most."""

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

    def plan(self, cost_fn: CostFn, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None = None) -> Plan:
        """Search for the actions of lowest cost.

        noise_BINHA: standard normal, see `noise_table`; its device and dtype are those of the search, and box and
        warm start are best on that device already. start: where to search first; the centre of the box by default.
        Raises ValueError for noise, a warm start or a cost of the wrong shape, and for a cost or a box that lacks what
        the planner needs.
        """
        ...


def shift(action_HA: Tensor, blocks: int, box: ActionBox) -> Tensor:
    """Sequences (..., H, A) without their `blocks` executed blocks, the tail filled with the centre of the box.

    Returns the same shape. Raises ValueError when blocks is negative.
    """
    if blocks < 0:
        raise ValueError(f"blocks is {blocks}; it counts the executed blocks, so it must be 0 or more")
    *batch, H, A = action_HA.shape
    tail_HA = box.mean_A.to(action_HA).expand(*batch, min(blocks, H), A)
    return torch.cat([action_HA[..., blocks:, :], tail_HA], dim=-2)
