"""Whether a planner's cost puts plans in the true order: rank correlation with what the simulator makes of them.

Candidates are taken from the planner's own search: the first draws, those of the middle of the search, and the elites
of its end, whose order decides what is executed. DA-LeWM (arXiv 2608.18746) reports 0.40, 0.23 and 0.04 for LeWM's
latent distance. Shapes: N candidates, H horizon in blocks, A action block, T environment steps, P problems.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import envs
from lewm.evaluate.manifest import GoalSet, Problem, make_manifest
from lewm.planning.agent import Agent
from lewm.planning.costs import CostConfig, Reduce, reduce_frames
from lewm.planning.policy import AgentPolicy, Start
from lewm.progress import Stage
from lewm.study.bootstrap import Estimate, means, written
from lewm.study.figures import aligned, canvas, save
from lewm.study.subject import Subject
from planners import CEM, ActionBox, CostFn, Plan, WarmStart
from planners.search import AroundSearch
from planners.types import Need

RANDOM, MIDDLE, ELITES = "random", "mid-search", "elites"
MOST_PLANS = 100
"""Plans of one iteration that are tried in the simulator."""
SHOWN = 6
"""Problems whose plans the figure shows."""


@dataclass(frozen=True)
class RankingConfig:
    """Which problems, which costs, which search."""

    problems: int = 30
    """Start and goal pairs of held-out episodes."""
    goal: Literal["ahead", "across", "elsewhere"] = "ahead"
    """ahead: `offset` steps later in the same episode. across: in another region, at most `offset` steps later.
    elsewhere: in another episode."""
    offset: int = 25
    """Environment steps from start to goal."""
    costs: tuple[str, ...] | None = None
    """Names of costs; None is latent_l2, and cost_to_go where the checkpoint has one."""
    reduce: Reduce = "terminal"
    """How a plan's frames make one number, for the planner's cost and the true one alike."""
    planner: CEM = field(default_factory=CEM)
    """The search whose candidates are compared."""
    seed: int = 0
    """Of the problems, the search and the resamples."""

    def __post_init__(self) -> None:
        if self.problems < 2 or self.offset < 1:
            raise ValueError(
                f"ranking: problems is {self.problems} and offset {self.offset}; there must be at least 2 problems, 1 "
                "step apart"
            )


@dataclass(frozen=True)
class RankingRow:
    """One cost on one kind of plans."""

    task: str
    goals: str
    """Kind of goal and how far it is."""
    cost: str
    plans: str
    """random (the first draws of the search), mid-search, or elites (the best of its last iteration)."""
    iteration: int
    """Of the search, from 0."""
    candidates: int
    """Plans per problem that were tried."""
    problems: int
    """Problems that count."""
    level: int
    """Problems left out because their plans have one cost or one true cost, so that there is no order."""
    rho: Estimate | None
    """Spearman's rank correlation, mean over problems: 1 the true order, 0 none."""
    true_std: float
    """Standard deviation of the true cost over the plans of a problem, in the task's units, median over problems."""
    success_distance: float
    """The task's own; where true costs differ by far less, their order hardly matters."""


@dataclass(frozen=True)
class Candidates:
    """Plans of one kind and their two costs."""

    cost: str
    plans: str
    iteration: int
    cost_PN: NDArray[np.float64]
    """As the planner scored them."""
    true_PN: NDArray[np.float64]
    """The task's distance to the goal when the simulator executes them."""


@dataclass(frozen=True)
class Ranked:
    """The study's result."""

    rows: tuple[RankingRow, ...]
    notes: tuple[str, ...]
    candidates: tuple[Candidates, ...]
    """What the rows were computed from."""


@dataclass
class Watched(AroundSearch):
    """A planner that keeps the candidates of every iteration of its last plan."""

    search: CEM
    needs: ClassVar[tuple[Need, ...]] = ()
    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """action_BNHA and cost_BN of every call of the cost."""

    def plan(self, cost_fn: CostFn, noise_BINHA: Tensor, box: ActionBox, start: WarmStart | None = None) -> Plan:
        """The search's own plan."""
        self.calls = []

        def watched(action_BNHA: Tensor) -> Tensor:
            cost_BN = cost_fn(action_BNHA)
            self.calls.append((action_BNHA.clone(), cost_BN.clone()))
            return cost_BN

        return self.search.plan(watched, noise_BINHA, box, start)

    def kinds(self) -> dict[str, tuple[int, Tensor, Tensor]]:
        """Kind of plans -> iteration, action_BNHA and cost_BN."""
        middle, last = self.iterations // 2, self.iterations - 1
        found = {}
        for kind, i in ((RANDOM, 0), (MIDDLE, middle)):
            action_BNHA, cost_BN = self.calls[i]
            found[kind] = (i, action_BNHA[:, :MOST_PLANS], cost_BN[:, :MOST_PLANS])
        action_BNHA, cost_BN = self.calls[last]
        cost_BE, index_BE = cost_BN.topk(min(self.search.elites, MOST_PLANS), largest=False)
        rows_B1 = torch.arange(len(index_BE), device=index_BE.device)[:, None]
        return found | {ELITES: (last, action_BNHA[rows_B1, index_BE], cost_BE)}


def ranks(value_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, place_N, count = np.unique(value_N, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    shared: NDArray[np.float64] = (last - (count + 1) / 2)[place_N]
    return shared


def spearman(one_N: NDArray[np.float64], other_N: NDArray[np.float64]) -> float:
    """Rank correlation in [-1, 1]; NaN where either has a single value."""
    a_N, b_N = ranks(one_N), ranks(other_N)
    a_N, b_N = a_N - a_N.mean(), b_N - b_N.mean()
    scale = float(np.sqrt((a_N**2).sum() * (b_N**2).sum()))
    return float((a_N * b_N).sum() / scale) if scale > 0 else float("nan")


def true_cost(
    task: envs.GoalEnv, problem: Problem, action_NHA: Tensor, cost: CostConfig, frame_skip: int
) -> NDArray[np.float64]:
    """cost_N of plans in the simulator: the task's distance after every block, reduced as the planner's cost is."""
    N, H, _ = action_NHA.shape
    action_NTa = action_NHA.reshape(N, H * frame_skip, -1).cpu().numpy().astype(np.float64)
    state_NTS = task.simulate(np.array(problem.start_state), action_NTa)
    distance_NH = task.distance(state_NTS[:, frame_skip - 1 :: frame_skip], np.array(problem.goal_state))
    reduced: NDArray[np.float64] = reduce_frames(torch.from_numpy(np.array(distance_NH)), cost).numpy()
    return reduced


def measure(subject: Subject, config: RankingConfig, quiet: bool = False) -> Ranked:
    """Search from held-out starts to held-out goals and try the candidates in the simulator.

    Raises ValueError for a task without states, whose true distances nobody knows, for a cost that the checkpoint does
    not have, and when the recordings hold too few pairs.
    """
    checkpoint, meta = subject.checkpoint, subject.store.meta
    if not meta.state_names:
        raise ValueError(f"ranking: {subject.store.path} holds no states, and without them there is no true distance")
    goals = GoalSet("ranking", config.goal, config.offset, config.offset, config.problems)
    manifest = make_manifest(goals, subject.store, subject.held_ids, config.seed)
    notes = list(subject.notes)
    names = config.costs or ("latent_l2", "cost_to_go")
    if config.costs is None and checkpoint.cost_to_go is None:
        names = ("latent_l2",)
        notes.append("the checkpoint has no cost-to-go, so only latent_l2 is compared")
    task = envs.make(meta.task, **meta.settings)
    found: list[Candidates] = []
    with Stage("rank", len(names) * len(manifest.problems), "problems", quiet) as stage:
        for name in names:
            cost = CostConfig({name: 1.0}, config.reduce)
            agent = Agent(checkpoint, Watched(config.planner), cost, seed=config.seed, graph=False)
            found += try_candidates(agent, manifest.problems, task, stage)
    task.close()
    label = f"{config.goal} {config.offset}" if config.goal != "elsewhere" else config.goal
    episode_P = np.array([problem.episode for problem in manifest.problems])
    near = float(task.success_distance)
    rows = tuple(ranking_row(subject.task, label, each, episode_P, near, config.seed) for each in found)
    return Ranked(rows, tuple(notes), tuple(found))


def try_candidates(agent: Agent, problems: Sequence[Problem], task: envs.GoalEnv, stage: Stage) -> list[Candidates]:
    """The candidates of one search per problem and their cost in the simulator; the agent plans with a `Watched`."""
    assert isinstance(agent.planner, Watched)
    (name,) = agent.cost.terms
    policy = AgentPolicy(agent)
    cost: dict[str, list[NDArray[np.float64]]] = {}
    true: dict[str, list[NDArray[np.float64]]] = {}
    iteration: dict[str, int] = {}
    for index, problem in enumerate(problems):
        task.set_state(np.array(problem.start_state))
        policy.start([Start(index, task, np.array(problem.goal_state), np.array(problem.past_states))])
        policy.act(task.render()[None], np.ones(1, bool))
        for kind, (i, action_BNHA, cost_BN) in agent.planner.kinds().items():
            iteration[kind] = i
            cost.setdefault(kind, []).append(cost_BN[0].double().cpu().numpy())
            true.setdefault(kind, []).append(true_cost(task, problem, action_BNHA[0], agent.cost, agent.skip))
        stage.update()
    return [Candidates(name, kind, iteration[kind], np.stack(cost[kind]), np.stack(true[kind])) for kind in cost]


def ranking_row(
    task: str, goals: str, candidates: Candidates, episode_P: NDArray[np.int64], success_distance: float, seed: int
) -> RankingRow:
    """Mean rank correlation over problems, with an interval over the episodes they start in."""
    rho_P = np.array([spearman(*pair) for pair in zip(candidates.cost_PN, candidates.true_PN, strict=True)])
    (rho,) = means(rho_P[:, None], episode_P, seed)
    known = int(np.isfinite(rho_P).sum())
    count = candidates.cost_PN.shape[1]
    level = len(rho_P) - known
    spread = float(np.median(candidates.true_PN.std(1)))
    return RankingRow(
        task=task,
        goals=goals,
        cost=candidates.cost,
        plans=candidates.plans,
        iteration=candidates.iteration,
        candidates=count,
        problems=known,
        level=level,
        rho=rho,
        true_std=spread,
        success_distance=success_distance,
    )


def plot(ranked: Ranked, path: Path) -> None:
    """A panel per cost and kind of plans: planner's cost against true cost, a colour per problem."""
    costs = list(dict.fromkeys(row.cost for row in ranked.rows))
    kinds = list(dict.fromkeys(row.plans for row in ranked.rows))
    figure = canvas(3.5 * len(kinds), 0.5 + 3.0 * len(costs))
    for number, (row, candidates) in enumerate(zip(ranked.rows, ranked.candidates, strict=True)):
        axes = figure.add_subplot(len(costs), len(kinds), number + 1)
        for i in range(min(SHOWN, len(candidates.cost_PN))):
            axes.plot(candidates.cost_PN[i], candidates.true_PN[i], ".", color=f"C{i}", markersize=3, alpha=0.6)
        axes.set_title(f"{row.cost}, {row.plans}\nrho {written(row.rho, 2)}", fontsize="medium")
        axes.set(xlabel="planner's cost", ylabel="true distance" if number % len(kinds) == 0 else "")
        axes.axhline(row.success_distance, color="0.5", linewidth=0.8, linestyle=":", label="success distance")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small", frameon=False)
    first = ranked.rows[0]
    figure.suptitle(
        f"{first.task}, goals {first.goals}: rank correlation over {first.problems} problems, {SHOWN} shown"
    )
    save(figure, path)


def table(rows: Sequence[RankingRow]) -> str:
    """Aligned text."""
    lines = [("cost", "plans", "iteration", "per problem", "problems", "no order", "true std", "Spearman's rho")]
    for row in rows:
        counts = (str(row.iteration), str(row.candidates), str(row.problems), str(row.level))
        lines.append((row.cost, row.plans, *counts, f"{row.true_std:.3g}", written(row.rho)))
    return aligned(lines)
