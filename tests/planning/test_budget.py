"""The anytime budget: which size is chosen, on clocks that are made up; that it is kept; what is refused."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from toy_models import SIZE, toy_checkpoint, toy_model

from lewm.checkpoint import Checkpoint
from lewm.evaluate.methods import PlanConfig, labels, make_policy, within_budget
from lewm.nets.predictors import RotaryConfig
from lewm.planning.agent import Agent
from lewm.planning.budget import LADDER, PLANS, PROBE_PLANS, Budget, Speed, fit_budget, replan_times, resize, rungs
from lewm.planning.costs import CostConfig
from lewm.planning.policy import AgentPolicy
from planners import CEM, MPPI, PLANNERS, Plan, Planner

Size = tuple[int, int]


def clock(
    fixed: float, per_iteration: float, per_candidate: float, noise: float = 0.0, seed: int = 0
) -> tuple[Callable[[Planner, int], list[float]], list[Size]]:
    """A machine whose plans take fixed + I (per_iteration + per_candidate N) ms, and the sizes it was asked to time."""
    rng, asked = np.random.default_rng(seed), []

    def times(planner: Planner, plans: int) -> list[float]:
        asked.append((planner.candidates, planner.iterations))
        ms = fixed + planner.iterations * (per_iteration + per_candidate * planner.candidates)
        return list(ms * (1 + noise * rng.exponential(size=plans)))

    return times, asked


def size(budget: Budget) -> Size:
    return budget.planner.candidates, budget.planner.iterations


def test_the_ladder_spends_on_three_iterations_then_candidates_then_iterations() -> None:
    assert LADDER[:4] == ((8, 1), (8, 2), (8, 3), (12, 3))
    for (narrow, short), (wide, long) in pairwise(LADDER):
        assert narrow * short < wide * long, "every rung is more work than the one below it"
        assert (narrow, short) <= (wide, long)
        if narrow < wide:
            assert short == long == 3 or short == long == 30
    assert {candidates for candidates, iterations in LADDER if 3 < iterations < 30} == {256}


@pytest.mark.parametrize(
    ("budget_ms", "expected"),
    [
        # ms = 2 + I (0.1 + 0.01 N); a tenth of the budget is left free: the size may take up to 0.9 budget_ms.
        (2.5, (8, 1)),  # 2.25 allowed: (8, 1) takes 2.18, (8, 2) 2.36
        (3.0, (12, 3)),  # 2.7: (12, 3) takes 2.66, (16, 3) 2.78
        (5.0, (64, 3)),  # 4.5: (64, 3) takes 4.22, (96, 3) 5.18
        (20.0, (256, 6)),  # 18: 6 x 2.66 + 2 = 17.96
        (50.0, (256, 16)),  # 45: 16 x 2.66 + 2 = 44.56
        (1e6, (4096, 30)),
    ],
)
def test_the_size_on_a_machine_without_noise(budget_ms: float, expected: Size) -> None:
    times, asked = clock(2, 0.1, 0.01)
    budget = fit_budget(CEM(), budget_ms, times)
    assert size(budget) == asked[-1] == expected
    assert budget.p95_ms == pytest.approx(2 + expected[1] * (0.1 + 0.01 * expected[0]))


def test_the_rest_of_the_planner_stays() -> None:
    planner = CEM(candidates=64, iterations=3, elites=8, horizon=4, momentum=0.2, execute="best")
    budget = fit_budget(planner, 5.0, clock(2, 0.1, 0.01)[0])
    assert budget.planner == replace(planner, candidates=64, elites=8)
    large = fit_budget(planner, 50.0, clock(2, 0.1, 0.01)[0]).planner
    assert large == replace(planner, candidates=256, iterations=16, elites=32)
    assert resize(planner, 8, 1) == replace(planner, candidates=8, iterations=1, elites=2), "two elites at least"


@pytest.mark.parametrize("seed", range(8))
def test_a_noisy_machine_keeps_the_budget_at_the_95th_percentile(seed: int) -> None:
    """Times up to several times the fastest: p95 of 1 + exponential / 2 is 1 + ln(20) / 2 = 2.5."""
    times, asked = clock(1, 0.1, 0.01, noise=0.5, seed=seed)
    budget = fit_budget(CEM(), 20.0, times)
    assert budget.p95_ms <= 20
    fresh = np.percentile(clock(1, 0.1, 0.01, 0.5, seed=99)[0](budget.planner, 20000), 95)
    assert fresh <= 20 * 1.35, "50 plans know their p95 to about a third"
    assert fresh >= 20 / 4, "and the budget is used"
    assert len(asked) <= 12


def test_a_wrong_prediction_is_made_good() -> None:
    """Beyond 100 candidates this machine falls off a cliff that the probes do not show below it."""
    linear, _ = clock(1, 0.1, 0.01)
    verified: list[Size] = []

    def times(planner: Planner, plans: int) -> list[float]:
        if plans == PLANS:
            verified.append((planner.candidates, planner.iterations))
        cliff = 3.0 if planner.candidates > 48 and plans == PLANS else 1.0
        return [cliff * ms for ms in linear(planner, plans)]

    budget = fit_budget(CEM(), 4.0, times)
    assert verified[0] == (64, 3) and verified[-1] == size(budget)
    assert budget.p95_ms <= 4 and budget.planner.candidates <= 48
    assert verified == sorted(verified, reverse=True), "it only shrinks"


def test_a_busy_moment_does_not_cost_most_of_the_search() -> None:
    linear, _ = clock(1, 0.1, 0.01)
    verified: list[Size] = []

    def times(planner: Planner, plans: int) -> list[float]:
        if plans == PLANS:
            verified.append((planner.candidates, planner.iterations))
        return [(20 if len(verified) == 1 else 1) * ms for ms in linear(planner, plans)]

    fit_budget(CEM(), 20.0, times)
    assert verified == [(256, 6), (256, 3)]


def test_probing_stops_at_the_budget() -> None:
    """A machine that takes a second for 48 x 3 is not asked for 256 x 10."""
    times, asked = clock(1, 1, 7)
    fit_budget(CEM(), 100.0, times)
    assert asked[:2] == [(8, 1), (8, 3)] and max(asked) <= (8, 3)


@pytest.mark.parametrize("budget_ms", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_is_a_positive_number(budget_ms: float) -> None:
    with pytest.raises(ValueError, match=r"budget_ms is .*; it must be a positive number of milliseconds"):
        fit_budget(CEM(), budget_ms, clock(1, 1, 1)[0])


def test_a_budget_nothing_keeps_is_refused_with_the_least_it_takes() -> None:
    expected = r"budget_ms is 3, but even 8 candidates x 1 iteration\(s\) take 3.18 ms here \(p95 of 50 plans"
    times, asked = clock(3, 0.1, 0.01)
    with pytest.raises(ValueError, match=expected):
        fit_budget(CEM(), 3.0, times)
    assert asked[-1] == (8, 1)


def test_speed_is_fitted_exactly_where_it_is_exact() -> None:
    times, _ = clock(2.0, 0.3, 0.01)
    sizes = [(8, 1), (8, 3), (48, 3), (256, 3)]
    speed = Speed.fit({s: times(resize(CEM(), *s), 5) for s in sizes})
    assert (speed.fixed, speed.per_iteration, speed.per_candidate, speed.tail) == pytest.approx((2.0, 0.3, 0.01, 1.0))
    assert speed.p95(CEM(candidates=100, elites=10, iterations=4)) == pytest.approx(2 + 4 * 1.3)


def test_sizes_a_planner_refuses_are_no_rungs() -> None:
    """MPPI with an effective sample size of a tenth needs ten candidates."""
    sizes = [(p.candidates, p.iterations) for p in rungs(MPPI(ess=0.1))]
    assert sizes == [s for s in LADDER if s[0] >= 10]
    assert size(fit_budget(MPPI(ess=0.1), 5.0, clock(2, 0.1, 0.01)[0])) == (64, 3)


@pytest.mark.parametrize("name", PLANNERS)
def test_every_planner_can_be_sized_or_says_why_not(name: str) -> None:
    planner, times = PLANNERS[name](), clock(2, 0.1, 0.01)[0]
    if not {"candidates", "iterations"} <= {field.name for field in fields(planner)}:
        with pytest.raises(ValueError, match=f"{type(planner).__name__} has no setting called .*; leave budget_ms out"):
            fit_budget(planner, 5.0, times)
        return
    budget = fit_budget(planner, 5.0, times)
    assert size(budget) == (64, 3) and budget.planner.horizon == planner.horizon


@dataclass(frozen=True)
class Sizeless:
    """A planner without a size of its own."""

    needs: ClassVar[tuple[()]] = ()
    name: Literal["sizeless"] = "sizeless"
    horizon: int = 3
    candidates: int = 4
    iterations: ClassVar[int] = 1

    def plan(self, *given: object) -> Plan:
        raise NotImplementedError


def test_a_planner_without_a_size_is_refused() -> None:
    with pytest.raises(ValueError, match="Sizeless has no setting called iterations; leave budget_ms out"):
        fit_budget(Sizeless(), 5.0, clock(1, 1, 1)[0])


def test_times_are_of_plans_with_full_history_and_a_warm_start(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model(RotaryConfig(context=4, width=8, layers=1, heads=2))
    planner = CEM(candidates=8, iterations=2, elites=3, horizon=3)
    agent, seen = Agent(toy_checkpoint(model), planner, CostConfig(), replan_every=2, history=3), []
    plan = Agent._plan

    def watch(self: Agent, situation: object, rows: object, replan: int, start: object) -> Plan:
        seen.append((situation.latent_BTKD.shape, start is not None))
        return plan(self, situation, rows, replan, start)

    act, told = Agent.act, list[float]()

    def listen(self: Agent, pixels: np.ndarray, proprio: np.ndarray | None = None) -> np.ndarray:
        planned, action = self.step % (self.skip * self.replan_every) == 0, act(self, pixels, proprio)
        if planned:
            assert self.last is not None
            told.append(self.last.encode_ms + self.last.plan_ms)
        return action

    monkeypatch.setattr(Agent, "_plan", watch)
    monkeypatch.setattr(Agent, "act", listen)
    times = replan_times(agent, 4)
    assert times == told[-4:] and min(times) > 0
    assert seen[-4:] == [((1, 3, 1, 4), True)] * 4
    assert len(seen) >= 4 + 3, "plans before are thrown away"


def made_up(monkeypatch: pytest.MonkeyPatch, fixed: float = 2) -> None:
    """Agents whose plans take what the clock says."""
    times, _ = clock(fixed, 0.1, 0.01)
    monkeypatch.setattr("lewm.planning.agent.replan_times", lambda agent, plans: times(agent.planner, plans))


def test_an_agent_within_a_budget(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Checkpoint) -> None:
    made_up(monkeypatch)
    agent = Agent.load(tiny_checkpoint.path, budget_ms=5.0)
    assert agent.budget is not None and agent.planner is agent.budget.planner
    assert agent.budget.line == (
        f"budget 5 ms: CEM with 64 candidates x 3 iterations x 3 blocks, p95 4.22 ms of {PLANS} plans on "
        f"{torch.get_num_threads()} thread(s)"
    )
    assert PROBE_PLANS < PLANS
    plain = Agent.load(tiny_checkpoint.path, agent.planner)
    rng = np.random.default_rng(0)
    goal, frame = rng.integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    for each in (agent, plain):
        each.reset(goal)
    np.testing.assert_array_equal(agent.act(frame), plain.act(frame))


def test_a_method_is_logged_under_its_size_not_under_its_budget(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two budgets, or two calibrations of one, that come to the same size are the same method."""
    made_up(monkeypatch)
    method = PlanConfig("ours", budget_ms=5.0)
    sized = within_budget(method, tiny_checkpoint, 1, quiet=False)
    assert capsys.readouterr().err.startswith("ours: budget 5 ms: CEM with 64 candidates x 3 iterations")
    assert sized == replace(method, planner=CEM(candidates=64, iterations=3, elites=6), budget_ms=None)
    made_up(monkeypatch, fixed=2.05)
    assert within_budget(replace(method, budget_ms=5.1), tiny_checkpoint, 1, quiet=True) == sized
    assert capsys.readouterr().err == ""
    assert (labels(sized).candidates, labels(sized).iterations) == (64, 3)
    assert within_budget(sized, tiny_checkpoint, 1, quiet=False) is sized
    policy = make_policy(method, tiny_checkpoint, 0)
    assert isinstance(policy, AgentPolicy) and policy.agent.planner == sized.planner
    with pytest.raises(ValueError, match="method ours: budget_ms is -1; it must be positive, or null"):
        replace(method, budget_ms=-1)
