"""Whole plans as graphs: same plans as eager ones whatever the batch, one recording per shape, nothing left over.

On a machine without CUDA the recording is `Rerun`, which runs the captured function again on the static buffers: all of
the code but the capture itself.
"""

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_models import toy_checkpoint, toy_model

from lewm.nets.predictors import ACConfig, DinoWMConfig, MLPConfig, PredictorConfig, RotaryConfig
from lewm.planning.action_limits import action_box
from lewm.planning.agent import Agent
from lewm.planning.costs import CostConfig, GoalCost, Situation
from lewm.planning.fast_rollout import prepare
from lewm.planning.graph import Captured, CudaCapture, PlanGraphs, Rerun, padded_size, plan_graphs
from planners import CEM, MPPI, CostFn, Plan, Planner, WarmStart, noise_table

PLANNER = CEM(candidates=8, iterations=2, elites=3, horizon=3)
MODEL = toy_model(RotaryConfig(context=4, width=8, layers=1, heads=2))
BOX = action_box(MODEL)
COST = CostConfig({"latent_l2": 1.0})


def goal_cost(situation: Situation, goal_BKD: Tensor) -> CostFn:
    return GoalCost(MODEL, None, COST, situation, goal_BKD)


def plain_cost(situation: Situation, goal_BKD: Tensor) -> CostFn:
    """Entry by entry and in whole numbers, so that no rounding depends on the size of the batch."""
    aim_BA = situation.latent_BTKD[:, -1].flatten(1) + goal_BKD.flatten(1) + situation.past_BTA.sum(1)
    return lambda a: ((a - aim_BA[:, None, None]) * 64).round().square().sum((2, 3))


Given = tuple[Situation, Tensor, Tensor, WarmStart | None]


def given(problems: int, seen: int = 1, warm: str = "none", seed: int = 0, dtype: torch.dtype = torch.float32) -> Given:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    K, D, A, H = MODEL.tokens, MODEL.latent_dim, MODEL.action_dim, PLANNER.horizon
    situation = Situation(draw(problems, seen, K, D), draw(problems, seen - 1, A))
    goal, mean, std = draw(problems, K, D), draw(problems, H, A) / 4, draw(problems, H, A).abs() + 0.1
    seeds = draw(problems, 2, H, A)
    noise = noise_table([(seed, b) for b in range(problems)], PLANNER, A).to(dtype)
    starts = {
        "none": None,
        "mean": WarmStart(mean),
        "std": WarmStart(mean, std),
        "seeds": WarmStart(mean, None, seeds),
        "all": WarmStart(mean, std, seeds),
    }
    return situation, goal, noise, starts[warm]


def eager(make_cost: Callable[[Situation, Tensor], CostFn], inputs: Given, planner: Planner = PLANNER) -> Plan:
    situation, goal_BKD, noise, start = inputs
    return planner.plan(make_cost(situation, goal_BKD), noise, BOX, start)


def assert_same(plan: Plan, expected: Plan, atol: float = 0.0) -> None:
    for field in fields(Plan):
        ours, theirs = getattr(plan, field.name), getattr(expected, field.name)
        assert (ours is None) == (theirs is None), field.name
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


class Counted(Rerun):
    """Counts recordings."""

    def __init__(self) -> None:
        self.recordings = 0

    def __call__(self, function: Callable[[], Plan]) -> Captured:
        self.recordings += 1
        return super().__call__(function)


def test_batches_are_padded_to_powers_of_two() -> None:
    assert [padded_size(n) for n in (1, 2, 3, 4, 5, 8, 9, 50, 64, 65)] == [1, 2, 4, 4, 8, 8, 16, 64, 64, 128]


@pytest.mark.parametrize("problems", [1, 3, 4, 5])
@pytest.mark.parametrize("warm", ["none", "mean", "std", "seeds", "all"])
def test_a_padded_plan_is_the_plan_alone(problems: int, warm: str) -> None:
    """Bit for bit with a cost that does not round; with a world model's to rounding."""
    graphs = PlanGraphs(PLANNER, plain_cost, BOX, Rerun())
    for seed in (0, 1):  # the second one finds the graph of the first
        inputs = given(problems, 2, warm, seed)
        plan = graphs(*inputs)
        assert plan.action_BHA.shape == (problems, 3, MODEL.action_dim)
        assert_same(plan, eager(plain_cost, inputs))
        modelled = PlanGraphs(PLANNER, goal_cost, BOX, Rerun())(*inputs)
        assert_same(modelled, eager(goal_cost, inputs), atol=1e-5)
    assert len(graphs.graphs) == 1


def test_the_padding_repeats_the_first_problem() -> None:
    sizes = []

    def watch(situation: Situation, goal_BKD: Tensor) -> CostFn:
        assert torch.equal(goal_BKD[5:], goal_BKD[:1].expand(3, -1, -1))
        assert torch.equal(situation.latent_BTKD[5:], situation.latent_BTKD[:1].expand(3, -1, -1, -1))
        sizes.append(len(goal_BKD))
        return plain_cost(situation, goal_BKD)

    PlanGraphs(PLANNER, watch, BOX, Rerun())(*given(5))
    assert sizes == [8, 8]  # one recording, one replay


def test_nothing_of_the_plan_before_is_left() -> None:
    """A, B, A: also where B is smaller than A and leaves rows of A's padding, and A's own answer stays what it was."""
    graphs = PlanGraphs(PLANNER, plain_cost, BOX, Rerun())
    a, b = given(4, 2, "all", seed=1), given(3, 2, "all", seed=2)
    first = graphs(*a)
    kept = first.action_BHA.clone()
    assert_same(graphs(*b), eager(plain_cost, b))
    assert torch.equal(first.action_BHA, kept), "a plan has to own its memory"
    assert_same(graphs(*a), first)
    assert len(graphs.graphs) == 1
    assert not torch.equal(graphs(*b).action_BHA, first.action_BHA[:3])


def test_one_recording_per_shape() -> None:
    capture = Counted()
    graphs = PlanGraphs(PLANNER, plain_cost, BOX, capture)
    kinds = [
        given(1),
        given(4),
        given(4, seen=2),
        given(4, warm="mean"),
        given(4, warm="std"),
        given(4, warm="seeds"),
        given(4, dtype=torch.float64),
    ]
    for _ in range(2):
        for inputs in kinds:
            assert_same(graphs(*inputs), eager(plain_cost, inputs))
    assert capture.recordings == len(kinds)
    graphs(*given(3))  # padded to 4
    assert capture.recordings == len(kinds)


def test_inputs_are_left_alone() -> None:
    inputs = given(3, 2, "all")
    before = [x.clone() for x in (inputs[0].latent_BTKD, inputs[0].past_BTA, inputs[1], inputs[2])]
    graphs = PlanGraphs(PLANNER, plain_cost, BOX, Rerun())
    graphs(*inputs)
    graphs(*given(4, 2, "all", seed=5))
    for x, kept in zip((inputs[0].latent_BTKD, inputs[0].past_BTA, inputs[1], inputs[2]), before, strict=True):
        assert torch.equal(x, kept)


def test_the_graph_unused_for_longest_goes_first() -> None:
    capture = Counted()
    graphs = PlanGraphs(PLANNER, plain_cost, BOX, capture, limit=2)
    one, two, four = given(1), given(2), given(4)
    graphs(*one), graphs(*two), graphs(*one)
    graphs(*four)  # two goes
    assert capture.recordings == 3 and len(graphs.graphs) == 2
    graphs(*one)
    assert capture.recordings == 3
    assert_same(graphs(*two), eager(plain_cost, two))
    assert capture.recordings == 4
    with pytest.raises(ValueError, match="limit is 0; at least 1 graph"):
        PlanGraphs(PLANNER, plain_cost, BOX, capture, limit=0)


@pytest.mark.parametrize(
    "planner", [PLANNER, replace(PLANNER, execute="best"), MPPI(candidates=8, iterations=2, ess=0.5)]
)
@pytest.mark.parametrize(
    "predictor",
    [
        MLPConfig(width=16),
        RotaryConfig(context=4, width=8, layers=1, heads=2),
        ACConfig(context=3, width=12, layers=2, heads=2),
        DinoWMConfig(layers=2, heads=2, head_dim=4),
    ],
)
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("term", ["latent_l2", "cosine", "cost_to_go"])
def test_the_captured_function_never_reads_a_tensor_back(
    planner: Planner, predictor: PredictorConfig, fast: bool, term: str
) -> None:
    """On the meta device, which has shapes but no data, a host sync (item, bool of a tensor) raises."""
    checkpoint = toy_checkpoint(toy_model(predictor))
    model, head = checkpoint.model.to("meta"), checkpoint.cost_to_go
    assert head is not None
    head.to("meta")
    config, prepared = CostConfig({term: 1.0}), prepare(model) if fast else None
    graphs = PlanGraphs(planner, lambda s, g: GoalCost(model, head, config, s, g, prepared), BOX, Rerun())
    seen = 1 if model.context == 1 else 2

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    situation = Situation(empty(3, seen, 1, model.latent_dim), empty(3, seen - 1, model.action_dim))
    noise = empty(3, 2, 8, planner.horizon, model.action_dim)
    plan = graphs(
        situation, empty(3, 1, model.latent_dim), noise, WarmStart(empty(3, planner.horizon, model.action_dim))
    )
    assert plan.action_BHA.device.type == "meta"
    assert plan.action_BHA.shape == (3, planner.horizon, model.action_dim)


def test_an_agent_with_graphs_acts_like_one_without() -> None:
    plain = Agent(toy_checkpoint(MODEL), PLANNER, CostConfig(), history=2)
    graphed = Agent(toy_checkpoint(MODEL), PLANNER, CostConfig(), history=2)
    assert plain.graphs is None
    graphed.graphs = PlanGraphs(PLANNER, graphed._cost, graphed.box, Rerun())
    rng = np.random.default_rng(0)
    goals, frames = (rng.integers(0, 256, (*shape, 32, 32, 3), np.uint8) for shape in ((3,), (7, 3)))
    plain.reset(goals)
    graphed.reset(goals)
    for step, frame in enumerate(frames):
        active = np.array([True, True, step < 3])
        np.testing.assert_allclose(graphed.act(frame, active), plain.act(frame, active), atol=1e-5)
    # 3 problems, 1 frame, cold; 3 problems, 2 frames, warm; 2 problems, 2 frames, warm.
    assert len(graphed.graphs.graphs) == 3


class Differentiating(CEM):
    needs = ("gradient",)


def test_graphs_are_for_cuda_and_for_planners_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert plan_graphs(PLANNER, plain_cost, BOX, cpu, None) is None
    assert plan_graphs(PLANNER, plain_cost, BOX, cuda, False) is None
    with pytest.raises(
        ValueError, match="graph is True, but the model is on cpu, and graphs are CUDA's; leave graph out"
    ):
        plan_graphs(PLANNER, plain_cost, BOX, cpu, True)
    with pytest.raises(ValueError, match="graph is True, but the model is on cpu"):
        Agent(toy_checkpoint(MODEL), PLANNER, COST, graph=True)
    assert plan_graphs(Differentiating(), plain_cost, BOX, cuda, None) is None
    with pytest.raises(ValueError, match="graph is True, but Differentiating differentiates its cost"):
        plan_graphs(Differentiating(), plain_cost, BOX, cuda, True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    graphs = plan_graphs(PLANNER, plain_cost, BOX, cuda, None)
    assert graphs is not None and isinstance(graphs.capture, CudaCapture)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("planner", [PLANNER, MPPI(candidates=8, iterations=2, horizon=3, ess=0.5)])
def test_a_cuda_graph_plans_like_the_eager_planner(planner: Planner) -> None:
    """Twice per shape, interleaved, so that replays run on buffers that other graphs used in between."""
    checkpoint = toy_checkpoint(toy_model(RotaryConfig(context=4, width=8, layers=1, heads=2)))
    model, box = checkpoint.model.cuda(), action_box(checkpoint.model.cuda())

    def make(situation: Situation, goal_BKD: Tensor) -> CostFn:
        return GoalCost(model, None, COST, situation, goal_BKD)

    graphs = plan_graphs(planner, make, box, model.device, None)
    assert graphs is not None
    for seed in (0, 1):
        for problems, warm in ((1, "none"), (3, "mean"), (4, "all")):
            situation, goal, noise, start = given(problems, 2, warm, seed)
            situation = Situation(situation.latent_BTKD.cuda(), situation.past_BTA.cuda())
            if start is not None:
                named = {f.name: x.cuda() for f in fields(start) if (x := getattr(start, f.name)) is not None}
                start = replace(start, **named)
            plan = graphs(situation, goal.cuda(), noise.cuda(), start)
            expected = planner.plan(make(situation, goal.cuda()), noise.cuda(), box, start)
            assert_same(plan, expected, atol=2e-3)
