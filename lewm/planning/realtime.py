"""Planning while executing: the next plan is ready when the last one runs out, so the control loop does not wait.

While the blocks of one plan are executed, a worker thread predicts the frame they lead to and plans from there. What is
done never depends on timing: a plan that is late is waited for.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from lewm.planning.agent import Agent, Replan
from lewm.planning.costs import Situation
from lewm.planning.graph import each_tensor
from lewm.planning.observation import Seen
from planners import Plan, Planner, WarmStart


@dataclass(frozen=True)
class Handover:
    """What happened when a prepared plan was due."""

    step: int
    """Environment step at which it was due."""
    planning_ms: float
    """How long the worker took: encode, predict, plan."""
    wait_ms: float
    """How long `act` waited for it."""
    missed: bool
    """Whether it was late, so that `act` had to wait."""
    surprise_B: np.ndarray | None
    """How much more the plan executed before this one costs from the frames seen than from those it was made from, per
    problem that acted; None without `recheck`, and where that plan was itself made from frames seen."""

    @property
    def hidden_ms(self) -> float:
        """The part of the planning that ran behind the execution."""
        return max(0.0, self.planning_ms - self.wait_ms)


@dataclass(frozen=True)
class RealtimeReport:
    """All handovers since the last reset; zeros before the first."""

    handovers: int
    misses: int
    wait_ms_p50: float
    wait_ms_p95: float
    planning_ms_p50: float
    planning_ms_p95: float
    hidden: float
    """Share of the planning time that ran behind the execution, 0 to 1."""
    surprises: int
    """Executed plans whose surprise was above `recheck`."""


@dataclass(frozen=True)
class _Prepared:
    """The worker's answer."""

    replan: Replan
    surprise_B: np.ndarray | None
    ms: float


class RealtimeAgent(Agent):
    """An `Agent` whose every plan but an episode's first is made while the one before it is executed.

    A plan starts from the latents the model predicts for the end of the blocks under way, so it knows the world as it
    was one plan ago; where the model predicts perfectly, both agents act alike. The frame seen at a handover enters the
    plan after it. Problems that rest (`active` False) have to rest until the next reset.
    """

    recheck: float | None = None
    """Also score every executed plan from the frames really seen, and count in `report` those that cost more than this
    above what was expected. They are executed all the same. None does not look. Set it before `reset`."""

    _pool: ThreadPoolExecutor | None = None
    _pending: Future[_Prepared] | None = None

    def reset(
        self,
        goal: np.ndarray,
        episodes: Sequence[int] | None = None,
        past: Sequence[np.ndarray] = (),
        goal_proprio: np.ndarray | None = None,
    ) -> None:
        """As `Agent.reset`; a plan under way is waited for and dropped."""
        self._drop()
        super().reset(goal, episodes, past, goal_proprio)
        self.handovers: list[Handover] = []

    def close(self) -> None:
        """Drop the plan under way and end the worker thread; the next episode starts a new one."""
        self._drop()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def with_planner(self, planner: Planner) -> Self:
        """As the plain agent's; the copy has its own worker."""
        agent = super().with_planner(planner)
        agent._pool = agent._pending = None
        return agent

    def report(self) -> RealtimeReport:
        """How the handovers of this episode went."""
        handed, limit = self.handovers, self.recheck
        if not handed:
            return RealtimeReport(0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)
        planning = np.array([h.planning_ms for h in handed])
        wait_p50, wait_p95 = np.percentile([h.wait_ms for h in handed], (50, 95)).tolist()
        planning_p50, planning_p95 = np.percentile(planning, (50, 95)).tolist()
        surprises = [h.surprise_B for h in handed if h.surprise_B is not None]
        return RealtimeReport(
            len(handed),
            sum(h.missed for h in handed),
            wait_p50,
            wait_p95,
            planning_p50,
            planning_p95,
            sum(h.hidden_ms for h in handed) / float(planning.sum()),
            0 if limit is None else sum(int((surprise_B > limit).sum()) for surprise_B in surprises),
        )

    def _replan(self, rows: np.ndarray) -> None:
        """Take over the prepared plan, or make an episode's first; then have the next one prepared."""
        if len(rows) == 0:
            self._drop()
            self._rest()
            return
        now: Seen | Situation = self._see(rows)
        guess = self._take_over(rows)
        if guess is None:
            super()._replan(rows)
            assert self.last is not None
            now = self.last.situation
        executed_BRA = self.queue_BTa[rows].reshape(len(rows), self.replan_every, -1)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "lewm-plan")
        due = self.step + self.skip * self.replan_every
        self._pending = self._pool.submit(
            self._prepare,
            now,
            executed_BRA,
            rows,
            due,
            self._starts(rows),
            guess if self.recheck is not None else None,
        )

    def _take_over(self, rows: np.ndarray) -> Plan | None:
        """Queue the prepared plan for those of its problems that still act; None where nothing was prepared."""
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        missed, start = not pending.done(), time.perf_counter()
        prepared = pending.result()
        wait_ms = 1000 * (time.perf_counter() - start)
        replan = prepared.replan
        if not np.isin(rows, replan.rows).all():
            raise ValueError(
                f"problem {np.setdiff1d(rows, replan.rows)[0]} acts again at step {self.step} after it rested; with "
                "planning while executing a problem rests until the next reset"
            )
        self.handovers.append(Handover(self.step, prepared.ms, wait_ms, missed, prepared.surprise_B))
        at = torch.from_numpy(np.searchsorted(replan.rows, rows)).to(self.model.device)
        plan = each_tensor(replan.plan, lambda x: x[at])
        situation = each_tensor(replan.situation, lambda x: x[at])
        self._queue(plan, rows)
        self.last = Replan(self.step, plan, situation, rows, replan.encode_ms, replan.plan_ms)
        return plan

    @torch.no_grad()
    def _prepare(
        self,
        now: Seen | Situation,
        executed_BRA: np.ndarray,
        rows: np.ndarray,
        due: int,
        starts: list[WarmStart | None],
        guess: Plan | None,
    ) -> _Prepared:
        """In the worker: plan for step `due` from where the model says the blocks under way lead.

        guess: the plan under way, where it is to be scored again from the frames seen.
        """
        begin = time.perf_counter()
        situation = self._situation(now) if isinstance(now, Seen) else now
        ahead = self.ahead(situation, torch.from_numpy(executed_BRA).to(self.model.device))
        self._synchronise()
        encoded = time.perf_counter()
        plan = self._plan(ahead, rows, due // (self.skip * self.replan_every), starts)
        done = time.perf_counter()
        surprise_B = None if guess is None else self._surprise(guess, situation, rows)
        replan = Replan(due, plan, ahead, rows, 1000 * (encoded - begin), 1000 * (done - encoded))
        return _Prepared(replan, surprise_B, 1000 * (time.perf_counter() - begin))

    def ahead(self, now: Situation, executed_BRA: Tensor) -> Situation:
        """What the model expects to have seen once the R blocks are executed: the latest `history` frames, then."""
        future_BRKD = self.model.rollout(now.latent_BTKD, now.past_BTA, executed_BRA[:, None])[:, 0]
        latent_BTKD = torch.cat([now.latent_BTKD, future_BRKD], 1)[:, -self.history :]
        past_BTA = torch.cat([now.past_BTA, executed_BRA], 1)
        return Situation(latent_BTKD, past_BTA[:, past_BTA.shape[1] + 1 - latent_BTKD.shape[1] :])

    def _surprise(self, guess: Plan, now: Situation, rows: np.ndarray) -> np.ndarray:
        """Cost of a plan from what was seen, above the cost it was chosen for."""
        assert self.goal_BKD is not None
        if self.goal_measured_BM is not None:
            now = replace(now, goal_measured_BM=self.goal_measured_BM[rows])
        cost_B = self._cost(now, self.goal_BKD[rows])(guess.action_BHA[:, None])[:, 0]
        surprise_B: np.ndarray = (cost_B - guess.cost_B).cpu().numpy()
        return surprise_B

    def _drop(self) -> None:
        """Forget the plan under way, once the worker is done with it: it reads what a reset replaces."""
        if self._pending is not None and not self._pending.cancel():
            wait([self._pending])
        self._pending = None
