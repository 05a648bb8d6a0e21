"""Methods by name: a world-model planner or a baseline, from its configuration to a policy that can be run."""

from dataclasses import dataclass, field
from typing import Literal

from lewm.baselines import BASELINES, BaselineConfig
from lewm.checkpoint import Checkpoint
from lewm.planning.agent import Agent
from lewm.planning.costs import CostConfig
from lewm.planning.policy import AgentPolicy, Policy
from planners import CEM, PlannerConfig


@dataclass(frozen=True)
class PlanConfig:
    """Planning in latent space with the trained model."""

    name: str = "cost_to_go"
    """Name in tables."""
    kind: Literal["world_model"] = "world_model"
    """Which kind of method this is."""
    planner: PlannerConfig = field(default_factory=CEM)
    """Search over action blocks."""
    cost: CostConfig = field(default_factory=CostConfig)
    """What a plan is judged by."""
    replan_every: int = 1
    """Blocks executed before planning again; the planner's horizon means open loop."""
    history: int = 1
    """Frames the predictor is given."""

    def __post_init__(self) -> None:
        if self.history < 1:
            raise ValueError(f"method {self.name}: history is {self.history}; it must be at least 1")
        if not 1 <= self.replan_every <= self.planner.horizon:
            raise ValueError(
                f"method {self.name}: replan_every is {self.replan_every}; it must lie in 1..{self.planner.horizon}, "
                "the planner's horizon"
            )


MethodConfig = PlanConfig | BaselineConfig


def make_policy(method: MethodConfig, checkpoint: Checkpoint | None, seed: int) -> Policy:
    """The policy a configuration describes. Raises ValueError when it needs a checkpoint and none is given."""
    if isinstance(method, PlanConfig):
        if checkpoint is None:
            raise ValueError(f"method {method.name} plans with a world model: pass --checkpoint")
        agent = Agent(checkpoint, method.planner, method.cost, method.replan_every, method.history, seed)
        return AgentPolicy(agent)
    return BASELINES[method.kind](method, seed)


@dataclass(frozen=True)
class MethodLabels:
    """The columns of a results row that describe a method."""

    method: str
    planner: str
    cost: str
    candidates: int
    iterations: int
    horizon: int
    replan_every: int


def labels(method: MethodConfig) -> MethodLabels:
    """What the table says about a method."""
    planner = getattr(method, "planner", None)
    if planner is None:
        return MethodLabels(method.name, "none", "none", 0, 0, 0, 0)
    cost = method.cost.label if isinstance(method, PlanConfig) else "true distance (sum)"
    every = method.replan_every if isinstance(method, PlanConfig) else 1
    return MethodLabels(method.name, planner.name, cost, planner.candidates, planner.iterations, planner.horizon, every)
