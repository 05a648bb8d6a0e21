"""The agent: frames in, actions out. Encodes, plans every few blocks, executes in between, keeps its own memory.

Works on one problem or on a batch; a problem's actions never depend on its neighbours (noise is keyed by episode).
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from lewm.checkpoint import Checkpoint, load
from lewm.data.stacking import channels_first
from lewm.planning.action_limits import AS_RECORDED, ActionLimits
from lewm.planning.budget import Budget, fit_budget, replan_times
from lewm.planning.chance import chance_table
from lewm.planning.checks import check_cost, check_planner
from lewm.planning.costs import CostConfig, GoalCost, Situation
from lewm.planning.fast_compile import compile_rollout
from lewm.planning.fast_rollout import prepare
from lewm.planning.graph import each_tensor, plan_graphs
from lewm.planning.informed_start import ProposalUse, check_proposal, informed_start, propose
from lewm.planning.observation import Seen, as_frames, as_proprio
from lewm.planning.starts import search_each
from planners import CEM, PLANNERS, CostFn, Plan, Planner, WarmStart, noise_table

DEFAULT_PLANNERS = {
    "cost_to_go": CEM(candidates=64, iterations=3, elites=8, horizon=3, execute="best"),
    "latent_l2": CEM(),
}
"""What `Agent.load` plans with when it is not told: a learned distance needs far less search than latent L2."""


@dataclass(frozen=True)
class Replan:
    """What one act of planning saw and decided; kept for timing and for the report."""

    step: int
    """Environment step at which it happened."""
    plan: Plan
    """The planner's answer for the problems in `rows`."""
    situation: Situation
    """What it started from."""
    rows: np.ndarray
    """Which problems of the batch planned."""
    encode_ms: float
    """Milliseconds to stack and encode the frames."""
    plan_ms: float
    """Milliseconds from latents to action."""


class Agent:
    """Plans to a goal image with a world model, in latent space, with a receding horizon.

    `reset(goal)` once per episode, then `act(pixels)` once per environment step. With a batch of goals, `act` takes
    and returns batches. Every `replan_every` blocks it encodes the latest frames and plans; in between it executes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        planner: Planner,
        cost: CostConfig,
        replan_every: int = 1,
        history: int = 1,
        seed: int = 0,
        graph: bool | None = None,
        proposal: ProposalUse = "none",
        fast: bool = True,
        actions: ActionLimits = AS_RECORDED,
    ) -> None:
        if not 1 <= replan_every <= planner.horizon:
            raise ValueError(
                f"replan_every is {replan_every}; it must lie in 1..{planner.horizon}, the planner's horizon"
            )
        self.model, self.head = checkpoint.model, checkpoint.cost_to_go
        check_planner(planner, cost)
        check_cost(cost, checkpoint)
        check_proposal(proposal, checkpoint)
        if not 1 <= history <= self.model.context:
            raise ValueError(f"history is {history}; this model's predictor can see 1..{self.model.context} frames")
        self.checkpoint, self.planner, self.cost = checkpoint, planner, cost
        self.replan_every, self.history, self.seed, self.proposal = replan_every, history, seed, proposal
        self.actions, self.box = actions, actions.box(self.model)
        self.skip, self.size = self.model.config.frame_skip, self.model.facts.size
        self.goal_BKD: Tensor | None = None
        # The fast rollout takes the action block as it is; a latent variable would have to be drawn in every block.
        self.fast = prepare(self.model, self.head) if fast and self.model.variable is None else None
        self.graph, self.graphs = graph, plan_graphs(planner, self._cost, self.box, self.model.device, graph)
        self.budget: Budget | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        planner: str | Planner | None = None,
        cost: str | CostConfig | None = None,
        replan_every: int = 1,
        history: int = 1,
        seed: int = 0,
        device: str = "cpu",
        budget_ms: float | None = None,
        proposal: ProposalUse = "none",
        graph: bool | None = None,
        fast: bool = True,
        compile: bool = False,
        actions: ActionLimits = AS_RECORDED,
    ) -> Self:
        """An agent from a checkpoint folder.

        planner: a configured planner, a name of `planners.PLANNERS`, or None for the one in `DEFAULT_PLANNERS`. cost: a
        name, a CostConfig, or None for cost_to_go where the checkpoint has one and latent_l2 where it has not.
        budget_ms: most milliseconds per plan, see `within`; None takes the planner as it is. proposal: how the
        checkpoint's learned proposal starts a search, see `ProposalUse`. graph: whether every plan is one CUDA graph;
        None where that works, see `plan_graphs`. fast: whether costs take the folded copy of the weights that `prepare`
        makes now, the same to fp32 rounding, or the model's own rollout. compile: see `compiled`.
        actions: bounds, spread and handling of single action entries.
        """
        checkpoint = load(path, device)
        if cost is None:
            cost = "cost_to_go" if checkpoint.cost_to_go else "latent_l2"
        if isinstance(cost, str):
            cost = CostConfig({cost: 1.0})
        if isinstance(planner, str):
            if planner not in PLANNERS:
                raise ValueError(f"no planner is called {planner!r}; there are {', '.join(PLANNERS)}")
            planner = PLANNERS[planner]()
        if planner is None:
            planner = DEFAULT_PLANNERS["cost_to_go" if "cost_to_go" in cost.terms else "latent_l2"]
        agent = cls(checkpoint, planner, cost, replan_every, history, seed, graph, proposal, fast, actions)
        agent = agent if budget_ms is None else agent.within(budget_ms)
        return agent.compiled() if compile else agent

    def within(self, budget_ms: float) -> Self:
        """The same agent with as much search as `budget_ms` allows here; what was chosen is in its `budget`.

        Takes a few seconds of trial plans. See `budget.fit_budget` for the rule and for what is refused.
        """
        budget = fit_budget(
            self.planner, budget_ms, lambda planner, plans: replan_times(self.with_planner(planner), plans)
        )
        agent = self.with_planner(budget.planner)
        agent.budget = budget
        return agent

    def compiled(self) -> Self:
        """The same agent, before its first episode, with rollouts compiled for plans of one problem with its planner.

        On a CPU, with a transformer; takes a minute or two, then saves a fifth to a half of a plan. All other plans
        stay as they are. See `compile_rollout`.
        """
        if self.fast is None:
            raise ValueError("compiled: this agent was made with fast=False, and only fast rollouts are compiled")
        agent = copy.copy(self)
        agent.fast = compile_rollout(self.fast, self.model, self.planner.candidates, self.planner.horizon, self.history)
        agent.goal_BKD = None
        agent.graphs = plan_graphs(agent.planner, agent._cost, agent.box, agent.model.device, agent.graph)
        return agent

    def with_planner(self, planner: Planner) -> Self:
        """The same agent, before its first episode, with another planner of the same horizon."""
        agent = copy.copy(self)
        agent.planner, agent.goal_BKD = planner, None
        agent.graphs = plan_graphs(planner, agent._cost, agent.box, agent.model.device, agent.graph)
        return agent

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Y, X, C of the pictures it sees."""
        return self.size, self.size, self.model.facts.channels

    @property
    def proprio_dim(self) -> int:
        """Numbers it measures beside a picture."""
        return len(self.model.facts.proprio)

    @torch.no_grad()
    def reset(
        self,
        goal: np.ndarray,
        episodes: Sequence[int] | None = None,
        past: Sequence[np.ndarray] = (),
        goal_proprio: np.ndarray | None = None,
    ) -> None:
        """Start episodes towards a goal picture (Y, X, C) or a batch of them (B, Y, X, C), uint8.

        episodes: one number per problem, for its private noise (default 0, 1, ...). past: frames seen before the
        first `act`, oldest first, one environment step apart, each shaped like the goal. goal_proprio: what should be
        measured at the goal, (P,) or (B, P) raw; only the cost `measured` needs it.
        """
        goals = as_frames(goal, self.frame_shape, "the goal")
        self.single = np.asarray(goal).ndim == 3
        self.episodes = list(range(len(goals))) if episodes is None else list(episodes)
        if len(self.episodes) != len(goals):
            raise ValueError(f"{len(goals)} goals, but {len(self.episodes)} episode numbers")
        self.step = 0
        earlier = [as_frames(frame, self.frame_shape, "a past frame") for frame in past]
        self.frames = {i - len(past): frame for i, frame in enumerate(earlier)}
        self.proprio: dict[int, np.ndarray] = {}
        self.blocks: list[np.ndarray] = []
        self.warm: dict[int, WarmStart] = {}
        self.last: Replan | None = None
        self.goal_BKD = self.encode_stacks([goals] * self.model.config.frame_stack)
        self.goal_measured_BM: Tensor | None = None
        if "measured" in self.cost.terms:
            raw_BP = torch.from_numpy(as_proprio(goal_proprio, self.model, len(goals), "the goal's proprio"))
            self.goal_measured_BM = self.model.measure(raw_BP.to(self.model.device))

    def encode_stacks(self, frames: Sequence[np.ndarray], proprio: np.ndarray | None = None) -> Tensor:
        """Encode one stack of frames (oldest first, each (B, Y, X, C)) to latent_BKD.

        proprio: what was measured at the newest, (B, P); None for a goal, which is only a picture, and for a model that
        measures nothing.
        """
        pixels = channels_first([torch.from_numpy(frame) for frame in frames]).to(self.model.device)[:, None]
        if proprio is None:
            return self.model.encode_picture(pixels)[:, 0]
        return self.model.encode(pixels, torch.from_numpy(proprio).to(self.model.device)[:, None])[:, 0]

    def _frame_times(self, now: int) -> list[int]:
        """Steps of the frames that a plan made at step `now` looks at: per seen frame, its stack, oldest first."""
        config = self.model.config
        seen = [now - block * self.skip for block in reversed(range(min(self.history, now // self.skip + 1)))]
        stack = [-age * config.stack_stride for age in reversed(range(config.frame_stack))]
        return [time + offset for time in seen for offset in stack]

    @property
    def needs_frame(self) -> bool:
        """Whether the next `act` needs a picture; when not, it may be given None and nothing has to be rendered."""
        config, every = self.model.config, self.skip * self.replan_every
        reach = (self.history - 1) * self.skip + (config.frame_stack - 1) * config.stack_stride
        upcoming = -(-self.step // every) * every
        return any(
            self.step in self._frame_times(plan)
            for plan in range(upcoming, max(upcoming, self.step + reach) + 1, every)
        )

    def _frame_at(self, step: int) -> np.ndarray:
        """The frame seen at `step`; before the first frame the first one counts, as in the recordings' windows."""
        return self.frames[max(step, min(self.frames))]

    @torch.no_grad()
    def act(
        self, pixels: np.ndarray | None, active: np.ndarray | None = None, proprio: np.ndarray | None = None
    ) -> np.ndarray:
        """The next action, (action_dim,) or (B, action_dim), raw units, inside the action bounds.

        pixels: the current frame(s); None is allowed while `needs_frame` is False. active: which problems of the
        batch still matter; the others rest: they get zero actions and cost no planning, and one that acts again waits
        for the next plan and starts it as its first. proprio: with the picture, what is measured now, (P,) or (B, P)
        raw, for a model with `model.proprio`.
        """
        if self.goal_BKD is None:
            raise RuntimeError("act was called before reset: call agent.reset(goal) at the start of an episode")
        if pixels is not None:
            self.frames[self.step] = as_frames(pixels, self.frame_shape, "the frame")
            if self.model.facts.proprio:
                count = len(self.frames[self.step])
                self.proprio[self.step] = as_proprio(proprio, self.model, count, "the proprio")
            if len(self.frames[self.step]) != len(self.goal_BKD):
                raise ValueError(f"{len(self.frames[self.step])} frames for {len(self.goal_BKD)} goals")
        elif self.needs_frame:
            raise ValueError(f"act needs a frame at step {self.step}: pass the picture (see Agent.needs_frame)")
        every = self.skip * self.replan_every
        if self.step % every == 0:
            rows = np.flatnonzero(active) if active is not None else np.arange(len(self.goal_BKD))
            self._replan(rows)
        if active is not None:  # in the queue, which is what the past will be
            self.queue_BTa[~np.asarray(active), self.step % every :] = 0
            self.warm = {row: start for row, start in self.warm.items() if active[row]}
        action = self.queue_BTa[:, self.step % every].copy()
        self.step += 1
        if self.step % self.skip == 0:
            done = self.step % every or every
            self.blocks.append(self.queue_BTa[:, done - self.skip : done].reshape(len(action), -1))
        return action[0] if self.single else action

    def _see(self, rows: np.ndarray) -> Seen:
        """What a plan made now looks at, for the problems in `rows`."""
        times, stack = self._frame_times(self.step), self.model.config.frame_stack
        seen = [times[i : i + stack] for i in range(0, len(times), stack)]
        past = self.blocks[len(self.blocks) + 1 - len(seen) :]
        proprio = [self.proprio[group[-1]][rows] for group in seen] if self.model.facts.proprio else []
        stacks = [[self._frame_at(t)[rows] for t in group] for group in seen]
        return Seen(stacks, [block[rows] for block in past], proprio)

    def _situation(self, seen: Seen) -> Situation:
        """Encode what was seen."""
        latents = [self.encode_stacks(*pair) for pair in zip_longest(seen.stacks, seen.proprio)]
        past = [torch.from_numpy(block).to(self.model.device) for block in seen.past]
        empty = torch.zeros(len(latents[0]), 0, self.model.action_dim, device=self.model.device)
        return Situation(torch.stack(latents, 1), torch.stack(past, 1) if past else empty)

    def _replan(self, rows: np.ndarray) -> None:
        """Plan for the problems in `rows` and queue their actions."""
        if len(rows) == 0:
            self._rest()
            return
        start = time.perf_counter()
        situation = self._situation(self._see(rows))
        self._synchronise()
        encoded = time.perf_counter()
        plan = self._plan(situation, rows, self.step // (self.skip * self.replan_every), self._starts(rows))
        self._queue(plan, rows)
        done = time.perf_counter()
        self.last = Replan(self.step, plan, situation, rows, 1000 * (encoded - start), 1000 * (done - encoded))

    def _plan(self, situation: Situation, rows: np.ndarray, replan: int, starts: Sequence[WarmStart | None]) -> Plan:
        """The plan number `replan` of an episode, for the problems in `rows`; reads nothing that `act` changes."""

        def search(at: np.ndarray, start: WarmStart | None) -> Plan:
            part = situation if len(at) == len(rows) else each_tensor(situation, lambda x: x[torch.from_numpy(at)])
            return self._search(part, rows[at], replan, start)

        return search_each(search, starts)

    def _search(self, situation: Situation, rows: np.ndarray, replan: int, start: WarmStart | None) -> Plan:
        """The plan of problems that all have a warm start, or none of which has."""
        assert self.goal_BKD is not None
        keys = [(self.seed, self.episodes[row], replan) for row in rows]
        noise = noise_table(keys, self.planner, self.model.action_dim).to(self.model.device)
        goal_BKD = self.goal_BKD[rows]
        if self.cost.risk is not None and self.model.variable is not None:
            chance = chance_table(keys, self.model.variable, self.cost.samples, self.planner.horizon)
            situation = replace(situation, chance_BMHV=chance.to(self.model.device))
        if self.goal_measured_BM is not None:
            situation = replace(situation, goal_measured_BM=self.goal_measured_BM[rows])
        start = self._informed(start, situation, goal_BKD, keys)
        if self.graphs is not None:
            plan = self.graphs(situation, goal_BKD, noise, start)
        else:
            plan = self.planner.plan(self._cost(situation, goal_BKD), noise, self.box, start)
        self._synchronise()
        return replace(plan, action_BHA=self.actions.executed(plan.action_BHA, self.model.facts.action_dim))

    def _informed(
        self, start: WarmStart | None, situation: Situation, goal_BKD: Tensor, keys: Sequence[tuple[int, ...]]
    ) -> WarmStart | None:
        """The warm start and the checkpoint's proposal together, where it is used; keys are those of the noise."""
        if self.proposal == "none":
            return start
        proposal, now_BKD = self.checkpoint.proposal, situation.latent_BTKD[:, -1]
        assert proposal is not None
        mean_BHA, std_BHA = propose(proposal, self.head, now_BKD, goal_BKD, self.box, self.planner.horizon)
        return informed_start(self.proposal, start, mean_BHA, std_BHA, self.planner, self.box)

    def _cost(self, situation: Situation, goal_BKD: Tensor) -> CostFn:
        """What candidates are judged by."""
        return self._goal_cost(situation, goal_BKD)

    def _goal_cost(self, situation: Situation, goal_BKD: Tensor) -> GoalCost:
        readout = self.checkpoint.readout
        return GoalCost(self.model, self.head, self.cost, situation, goal_BKD, self.fast, readout, self.actions)

    def _rest(self) -> None:
        """Queue zeros for everybody."""
        assert self.goal_BKD is not None
        every = self.skip * self.replan_every
        self.queue_BTa = np.zeros((len(self.goal_BKD), every, self.model.facts.action_dim), np.float32)

    def _queue(self, plan: Plan, rows: np.ndarray) -> None:
        """Queue a plan's actions for the problems in `rows`, and keep what the next one needs."""
        self._rest()
        every = self.skip * self.replan_every
        executed = plan.action_BHA[:, : self.replan_every].reshape(len(rows), every, -1)
        self.queue_BTa[rows] = executed.cpu().numpy()
        after = plan.warm_start(self.replan_every, self.box)
        self.warm = {int(row): after.problems(slice(i, i + 1)) for i, row in enumerate(rows)}
        oldest = self.step + every - (self.history - 1) * self.skip + min(self._frame_times(0))
        self.frames = {t: f for t, f in self.frames.items() if t >= oldest}
        self.proprio = {t: p for t, p in self.proprio.items() if t >= oldest}

    def _starts(self, rows: np.ndarray) -> list[WarmStart | None]:
        """Where the last plans of these problems ended; None in the first plan of an episode and after a rest."""
        return [self.warm.get(row) for row in rows.tolist()]

    def _synchronise(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
