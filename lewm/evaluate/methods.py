"""Methods by name: a world-model planner or a baseline, from its configuration to a policy that can be run."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

from lewm.baselines import BASELINES, BaselineConfig
from lewm.baselines.offline import OfflineMethod, offline_agent, read_card, searches, weights_file
from lewm.baselines.peer import PeerMethod
from lewm.baselines.sb3 import Sb3Method, sb3_algorithm, sb3_card
from lewm.checkpoint import Checkpoint
from lewm.evaluate.timing import kept_times, torch_threads
from lewm.planning.action_limits import AS_RECORDED, ActionLimits
from lewm.planning.agent import Agent
from lewm.planning.costs import CostConfig
from lewm.planning.informed_start import Follow, ProposalUse, check_proposal
from lewm.planning.policy import AgentPolicy, Policy
from lewm.planning.realtime import RealtimeAgent
from lewm.schema import read_json
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
    proposal: ProposalUse = "none"
    """How the checkpoint's learned proposal starts the search: not at all, as one more candidate of the first iteration
    (seed), or by narrowing the first Gaussian too (prior)."""
    budget_ms: float | None = None
    """Most milliseconds per plan, frames to actions, at the 95th percentile: candidates and iterations are then chosen
    on this machine to fit, and the planner's own are not used. Null takes the planner as it is."""
    actions: ActionLimits = AS_RECORDED
    """Bounds and spread of the search by action entry, and entries that are held or have a dead zone (grippers)."""
    realtime: bool = False
    """Plan while executing: every plan but an episode's first starts from the frame the model predicts."""

    def __post_init__(self) -> None:
        if self.history < 1:
            raise ValueError(f"method {self.name}: history is {self.history}; it must be at least 1")
        if not 1 <= self.replan_every <= self.planner.horizon:
            raise ValueError(
                f"method {self.name}: replan_every is {self.replan_every}; it must lie in 1..{self.planner.horizon}, "
                "the planner's horizon"
            )
        if self.realtime and self.cost.risk is not None:
            raise ValueError(
                f"method {self.name}: realtime scores a plan again from later frames, which it cannot with cost.risk "
                "yet; leave one of them out"
            )
        if self.budget_ms is not None and not self.budget_ms > 0:
            raise ValueError(f"method {self.name}: budget_ms is {self.budget_ms}; it must be positive, or null")


@dataclass(frozen=True)
class InverseModelConfig:
    """The checkpoint's learned proposal alone, a goal-conditioned policy: one forward pass per plan, no search."""

    name: str = "proposal"
    """Name in tables."""
    kind: Literal["proposal"] = "proposal"
    """Which kind of method this is."""
    replan_every: int = 1
    """Blocks executed before it is asked again; at most the proposal's horizon."""

    def __post_init__(self) -> None:
        if self.replan_every < 1:
            raise ValueError(f"method {self.name}: replan_every is {self.replan_every}; it must be at least 1")


LearnedConfig = PlanConfig | InverseModelConfig | OfflineMethod
"""Methods that act with a checkpoint."""

MethodConfig = LearnedConfig | BaselineConfig


def make_agent(method: LearnedConfig, checkpoint: Checkpoint, seed: int) -> Agent:
    """The agent a configuration describes."""
    if isinstance(method, PlanConfig):
        every, history, kind = method.replan_every, method.history, RealtimeAgent if method.realtime else Agent
        agent = kind(
            checkpoint,
            method.planner,
            method.cost,
            every,
            history,
            seed,
            proposal=method.proposal,
            actions=method.actions,
        )
        return agent if method.budget_ms is None else agent.within(method.budget_ms)
    if isinstance(method, OfflineMethod):
        return offline_agent(checkpoint, method, seed)
    check_proposal("seed", checkpoint)
    assert checkpoint.proposal is not None
    uncomputed = CostConfig({"latent_l2": 1.0})
    follow = Follow(checkpoint.proposal.config.horizon)
    return Agent(checkpoint, follow, uncomputed, method.replan_every, seed=seed, proposal="seed")


def make_policy(method: MethodConfig, checkpoint: Checkpoint | None, seed: int) -> Policy:
    """The policy a configuration describes. Raises ValueError when it needs a checkpoint and none is given."""
    if isinstance(method, LearnedConfig):
        if checkpoint is None:
            raise ValueError(f"method {method.name} plans with a world model: pass --checkpoint")
        return AgentPolicy(make_agent(method, checkpoint, seed))
    return BASELINES[method.kind](method, seed)


def weight_files(method: MethodConfig, checkpoint: Checkpoint | None) -> list[Path]:
    """The files of learned numbers that a method's outcomes depend on."""
    files = [checkpoint.path / "model.safetensors"] if checkpoint and isinstance(method, LearnedConfig) else []
    if isinstance(method, Sb3Method | PeerMethod):
        return method.files
    return [*files, weights_file(method.path)] if isinstance(method, OfflineMethod) else files


def training_budget(method: MethodConfig, checkpoint: Checkpoint | None) -> str:
    """What learning took, for the tables; empty where nothing was learned, or nobody wrote it down."""
    if isinstance(method, Sb3Method):
        policy = sb3_card(method)
        return f"{policy.steps:,} environment steps in {policy.wall_s:,.0f} s" if policy else ""
    if isinstance(method, OfflineMethod):
        card = read_card(method.path, method.kind)
        return f"{card.frames:,} recorded frames, {card.steps:,} optimiser steps in {card.seconds:,.0f} s"
    folder = checkpoint.path if isinstance(method, LearnedConfig) and checkpoint is not None else None
    if isinstance(method, PeerMethod):
        folder = Path(method.path)
    if folder is None:
        return ""
    training = read_json(folder / "config.json").get("training", {})
    if "steps" not in training.get("train", {}):
        return ""
    recorded = f"{training['frames']:,} recorded frames" if "frames" in training else "recordings"  # not said earlier
    spent = kept_times(folder.parent).get("train")
    took = f" in {spent.seconds:,.0f} s" if spent else ""
    return f"{recorded}, {training['train']['steps']:,} optimiser steps{took}"


def within_budget(method: MethodConfig, checkpoint: Checkpoint | None, threads: int, quiet: bool) -> MethodConfig:
    """The method with the search that its budget allows here as its planner, and no budget any more.

    Says the choice in one line. Outcomes depend on the size alone, so they are logged under it, and whoever runs the
    result again plans with exactly that size. Methods without a budget are returned as they are.
    """
    if not isinstance(method, PlanConfig) or method.budget_ms is None:
        return method
    with torch_threads(threads):
        policy = make_policy(method, checkpoint, 0)
    assert isinstance(policy, AgentPolicy) and policy.agent.budget is not None
    if not quiet:
        print(f"{method.name}: {policy.agent.budget.line}", file=sys.stderr)
    return replace(method, planner=cast(PlannerConfig, policy.agent.planner), budget_ms=None)


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
    if isinstance(method, InverseModelConfig):
        return MethodLabels(method.name, "proposal", "none", 1, 1, method.replan_every, method.replan_every)
    if isinstance(method, OfflineMethod) and not searches(method):
        return MethodLabels(method.name, method.kind, "none", 1, 1, 1, 1)
    if isinstance(method, Sb3Method):
        return MethodLabels(method.name, sb3_algorithm(method), "none", 1, 1, 1, 1)
    if isinstance(method, PeerMethod):
        size = (method.candidates, method.iterations, method.horizon, method.replan_every)
        cost = CostConfig({"latent_l2": 1.0}, "terminal").label
        return MethodLabels(method.name, "cem of stable-worldmodel", cost, *size)
    planner = getattr(method, "planner", None)
    if planner is None:
        return MethodLabels(method.name, "none", "none", 0, 0, 0, 0)
    learned = "predicted return" if isinstance(method, OfflineMethod) else "true distance (sum)"
    cost = method.cost.label if isinstance(method, PlanConfig) else learned
    every = method.replan_every if isinstance(method, PlanConfig) else 1
    how = f"{planner.name}, realtime" if isinstance(method, PlanConfig) and method.realtime else planner.name
    return MethodLabels(method.name, how, cost, planner.candidates, planner.iterations, planner.horizon, every)
