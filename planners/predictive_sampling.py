"""Predictive sampling: execute the better of the last plan and random changes to it."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from planners.basis import check_smoothness, correlate
from planners.checks import check_inputs, check_positive, check_sizes
from planners.random_shooting import keep_best
from planners.types import ActionBox, CostFn, Need, Plan, WarmStart


@dataclass(frozen=True)
class PredictiveSampling:
    """Predictive sampling (Howell et al. 2022): argmin over {last plan, last plan + std x noise}.

    Never worse than its warm start. One iteration, as it is meant to replan often and improve from plan to plan;
    further ones go on from the best sequence so far.
    """

    needs: ClassVar[tuple[Need, ...]] = ()

    name: Literal["predictive_sampling"] = "predictive_sampling"
    """Which planner this is."""
    horizon: int = 5
    """Blocks planned ahead."""
    candidates: int = 32
    """Action sequences scored per iteration, the warm start among them in the first."""
    iterations: int = 1
    """Rounds of draw, score, move to the best."""
    std: float = 0.3
    """How far the changes reach, in units of the box's std; it never adapts."""
    noise_beta: float = 0.0
    """Colour of the noise along raw time: its power falls with frequency^-noise_beta. 0 is white, 2 slow and smooth."""
    knots: int | None = None
    """Free points of the cubic spline along raw time that the noise follows; None: every raw action has its own."""

    def __post_init__(self) -> None:
        check_sizes(self)
        check_positive(self, "std")
        check_smoothness(self)

    def plan(self, cost_fn: CostFn, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None = None) -> Plan:
        """Search for the actions of lowest cost; see `planners.Planner.plan`."""
        check_inputs(self, noise_BINHA, box, start)
        return keep_best(cost_fn, correlate(self, noise_BINHA, box.steps), box, start, self.std, follow=True)
