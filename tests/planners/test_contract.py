"""What every planner promises. Parametrised over PLANNERS: a new one is covered by being in the table."""

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor
from toys import TOYS, Toy

from planners import PLANNERS, ActionBox, CostFn, Plan, PlannerConfig, WarmStart, noise_table

ROWS = list(range(8))
planner_names = pytest.mark.parametrize("name", PLANNERS)
toy_names = pytest.mark.parametrize("toy_name", TOYS)
execute_modes = pytest.mark.parametrize("execute", ["mean", "best"])


def make(name: str, toy: Toy, candidates: int = 256, iterations: int = 12, execute: str = "mean") -> PlannerConfig:
    return PLANNERS[name](horizon=toy.horizon, candidates=candidates, iterations=iterations, execute=execute)


def noise_for(planner: PlannerConfig, rows: list[int], seed: int = 0) -> Tensor:
    return noise_table([(seed, row, 0) for row in rows], planner, 2)


def solve(planner: PlannerConfig, toy: Toy, rows: list[int], seed: int = 0, warm: Tensor | None = None) -> Plan:
    start = None if warm is None else WarmStart(warm)
    return planner.plan(toy.cost(rows), noise_for(planner, rows, seed), toy.box, start)


def tensors(plan: Plan) -> dict[str, Tensor]:
    return {f.name: value for f in fields(Plan) if (value := getattr(plan, f.name)) is not None}


def problems(plan: Plan, rows: list[int]) -> Plan:
    return Plan(**{name: value[rows] for name, value in tensors(plan).items()})


def assert_same(one: Plan, other: Plan) -> None:
    assert tensors(one).keys() == tensors(other).keys()
    for name, value in tensors(one).items():
        assert torch.equal(value, tensors(other)[name]), name


def failing(cost_fn: CostFn, rows: list[int]) -> CostFn:
    """The same costs, but NaN for the problems in `rows`."""

    def cost(action_BNHA: Tensor) -> Tensor:
        cost_BN = cost_fn(action_BNHA).clone()
        cost_BN[rows] = torch.nan
        return cost_BN

    return cost


@planner_names
@toy_names
@execute_modes
def test_reaches_the_optimum(name: str, toy_name: str, execute: str) -> None:
    toy = TOYS[toy_name]
    centre = toy.box.mean_A.expand(len(ROWS), 1, toy.horizon, 2)
    torch.testing.assert_close(toy.cost(ROWS)(centre), torch.full((8, 1), toy.centre_cost), atol=1.3, rtol=0)
    plan = solve(make(name, toy, execute=execute), toy, ROWS)
    assert plan.cost_B.max() < toy.optimum + toy.tolerance
    assert plan.cost_B.min() > toy.optimum - 1e-5


@planner_names
@toy_names
@execute_modes
def test_plan_is_inside_the_box_and_costs_what_it_says(name: str, toy_name: str, execute: str) -> None:
    toy = TOYS[toy_name]
    plan = solve(make(name, toy, execute=execute), toy, ROWS)
    assert plan.action_BHA.shape == (8, toy.horizon, 2)
    assert (plan.action_BHA >= toy.box.low_A).all()
    assert (plan.action_BHA <= toy.box.high_A).all()
    torch.testing.assert_close(toy.cost(ROWS)(plan.action_BHA[:, None])[:, 0], plan.cost_B)


@planner_names
def test_candidates_are_clipped_to_the_box(name: str) -> None:
    toy = TOYS["beyond the box"]
    seen: list[Tensor] = []

    def cost(action_BNHA: Tensor) -> Tensor:
        seen.append(action_BNHA.clone())
        return toy.cost(ROWS)(action_BNHA)

    planner = make(name, toy)
    planner.plan(cost, noise_for(planner, ROWS), toy.box, WarmStart(torch.full((8, toy.horizon, 2), 5.0)))
    assert all(((action >= toy.box.low_A) & (action <= toy.box.high_A)).all() for action in seen)
    assert (seen[0] == toy.box.high_A).float().mean() > 0.1, "clipped candidates lie on the bound"


@planner_names
def test_bounds_mean_and_std_are_those_of_each_action_entry(name: str) -> None:
    box = ActionBox.from_bounds(torch.tensor([-100.0, 0.001]), torch.tensor([300.0, 0.003]))
    goal = torch.tensor([250.0, 0.0012])
    planner = PLANNERS[name](horizon=2, candidates=256, iterations=12)
    plan = planner.plan(lambda a: ((a - goal) / box.std_A).square().sum((2, 3)), noise_for(planner, [0]), box)
    torch.testing.assert_close(plan.action_BHA[0] / box.std_A, (goal / box.std_A).expand(2, 2), atol=0.05, rtol=0)


@planner_names
def test_lower_is_better(name: str) -> None:
    toy = TOYS["point mass"]
    planner = make(name, toy)
    cost_fn, noise = toy.cost(ROWS), noise_for(planner, ROWS)
    away = planner.plan(lambda a: -cost_fn(a), noise, toy.box)
    assert planner.plan(cost_fn, noise, toy.box).cost_B.max() < 0.01
    assert cost_fn(away.action_BHA[:, None]).min() > 20


@planner_names
@toy_names
def test_more_candidates_are_not_worse(name: str, toy_name: str) -> None:
    toy, rows = TOYS[toy_name], list(range(64))
    few, many = (solve(make(name, toy, n), toy, rows).cost_B.mean() for n in (40, 640))
    assert many <= few


@planner_names
def test_more_iterations_are_not_worse(name: str) -> None:
    toy, rows = TOYS["point mass"], list(range(32))
    costs = [solve(make(name, toy, 64, iterations), toy, rows).cost_B.mean() for iterations in (1, 3, 9)]
    assert costs[2] < costs[1] < costs[0]


@planner_names
def test_same_noise_same_plan_other_noise_other_plan(name: str) -> None:
    toy = TOYS["around a disc"]
    planner = make(name, toy)
    first = solve(planner, toy, ROWS)
    assert_same(first, solve(planner, toy, ROWS))
    assert not torch.equal(first.action_BHA, solve(planner, toy, ROWS, seed=1).action_BHA)


@planner_names
@execute_modes
def test_noise_of_every_iteration_matters(name: str, execute: str) -> None:
    toy = TOYS["point mass"]
    planner = make(name, toy, iterations=3, execute=execute)
    noise = noise_for(planner, ROWS)
    plan = planner.plan(toy.cost(ROWS), noise, toy.box)
    for i in range(3):
        other = noise.clone()
        other[:, i] *= -1
        assert not torch.equal(plan.action_BHA, planner.plan(toy.cost(ROWS), other, toy.box).action_BHA), i


@planner_names
@toy_names
@execute_modes
def test_problem_is_planned_the_same_alone_and_in_a_batch(name: str, toy_name: str, execute: str) -> None:
    toy, rows = TOYS[toy_name], list(range(50))
    planner = make(name, toy, 64, 4, execute)
    warm = torch.linspace(-1, 1, 50 * toy.horizon * 2).reshape(50, toy.horizon, 2)
    together = solve(planner, toy, rows, warm=warm)
    for row in (0, 17, 49):
        alone = solve(planner, toy, [row], warm=warm[row : row + 1])
        assert_same(alone, problems(together, [row]))


@planner_names
@execute_modes
def test_failing_problem_stays_put_and_leaves_the_others_alone(name: str, execute: str) -> None:
    toy, rows = TOYS["point mass"], list(range(50))
    planner = PLANNERS[name](horizon=toy.horizon, candidates=64, iterations=4, execute=execute, keep_mean=False)
    noise, good = noise_for(planner, rows), [row for row in rows if row not in (3, 20)]
    warm = WarmStart(torch.full((50, toy.horizon, 2), 1.5))
    clean = planner.plan(toy.cost(rows), noise, toy.box, warm)
    plan = planner.plan(failing(toy.cost(rows), [3, 20]), noise, toy.box, warm)
    assert_same(problems(plan, good), problems(clean, good))
    assert torch.equal(plan.action_BHA[[3, 20]], torch.ones(2, toy.horizon, 2)), "the warm start, clipped to the box"
    assert torch.equal(plan.mean_BHA[[3, 20]], warm.mean_BHA[[3, 20]])
    assert plan.cost_B[[3, 20]].isposinf().all()
    assert (plan.spread_BI[3] == plan.spread_BI[3, 0]).all(), "the search does not narrow where nothing was learned"


@planner_names
@execute_modes
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_failed_candidates_never_win(name: str, execute: str, bad: float) -> None:
    toy = TOYS["point mass"]
    planner = make(name, toy, 128, 8, execute)

    def cost(action_BNHA: Tensor) -> Tensor:
        failed = (action_BNHA[..., 0].sum(2) - 0.5).abs() > 0.1
        return toy.cost(ROWS)(action_BNHA).masked_fill(failed, bad)

    plan = planner.plan(cost, noise_for(planner, ROWS), toy.box)
    # About one first candidate in thirty lies in the strip that does not fail: fewer than CEM's elites.
    assert plan.cost_B.isfinite().all()
    assert ((plan.action_BHA[..., 0].sum(1) - 0.5).abs() <= 0.1).all()


@planner_names
def test_minus_infinity_does_not_poison_the_plan(name: str) -> None:
    toy = TOYS["point mass"]
    planner = make(name, toy, 64, 3)
    plan = planner.plan(
        lambda a: torch.where(a[:, :, 0, 0] > 0.9, -torch.inf, toy.cost(ROWS)(a)), noise_for(planner, ROWS), toy.box
    )
    assert plan.action_BHA.isfinite().all()
    assert plan.mean_BHA.isfinite().all()


@planner_names
def test_flat_cost_gives_a_finite_plan(name: str) -> None:
    toy = TOYS["point mass"]
    planner = make(name, toy)
    plan = planner.plan(lambda a: torch.full(a.shape[:2], 7.0), noise_for(planner, ROWS), toy.box)
    assert plan.action_BHA.isfinite().all()
    assert (plan.cost_B == 7).all()


@planner_names
def test_scale_and_offset_of_the_cost_do_not_matter(name: str) -> None:
    toy = TOYS["point mass"]
    planner = make(name, toy, 64, 4)
    cost_fn, noise = toy.cost(ROWS), noise_for(planner, ROWS).double()
    plan = planner.plan(cost_fn, noise, toy.box)
    other = planner.plan(lambda a: 1e6 * cost_fn(a) - 1e5, noise, toy.box)
    torch.testing.assert_close(other.action_BHA, plan.action_BHA, atol=1e-6, rtol=0)


@planner_names
@toy_names
def test_best_executes_the_best_candidate_scored(name: str, toy_name: str) -> None:
    toy = TOYS[toy_name]
    plan = solve(make(name, toy, execute="best"), toy, ROWS)
    assert torch.equal(plan.cost_B, plan.best_cost_BI.amin(1))


@planner_names
def test_keep_mean_scores_the_warm_start(name: str) -> None:
    toy = TOYS["around a disc"]
    optimum = solve(make(name, toy, execute="best"), toy, ROWS).action_BHA
    kept = solve(make(name, toy, 64, 1, execute="best"), toy, ROWS, seed=1, warm=optimum)
    assert (kept.cost_B <= toy.cost(ROWS)(optimum[:, None])[:, 0]).all()


@planner_names
def test_shifted_warm_start_helps(name: str) -> None:
    """Point mass in two stages: after one block the goal is one block nearer; one iteration has to do."""
    toy = TOYS["point mass"]
    first = solve(make(name, toy), toy, ROWS)
    moved_B1A = first.action_BHA[:, :1]

    def cost(action_BNHA: Tensor) -> Tensor:
        done = moved_B1A[:, None].expand(-1, action_BNHA.shape[1], -1, -1)
        return toy.cost(ROWS)(torch.cat([done, action_BNHA], 2))

    small = make(name, toy, 64, 1)
    noise = noise_for(small, ROWS, seed=1)
    warm = small.plan(cost, noise, toy.box, first.warm_start(1, toy.box))
    cold = small.plan(cost, noise, toy.box)
    assert warm.cost_B.mean() < 0.5 * cold.cost_B.mean()
    assert warm.spread_BI[0, 0] < cold.spread_BI[0, 0], "a warm search starts narrower"


@planner_names
def test_trace_tells_the_search(name: str) -> None:
    toy = TOYS["point mass"]
    planner = make(name, toy)
    plan = solve(planner, toy, ROWS)
    assert plan.best_cost_BI.shape == plan.spread_BI.shape == (8, 12)
    assert torch.allclose(plan.spread_BI[:, 0], torch.tensor(planner.initial_std))
    assert (plan.spread_BI[:, -1] < 0.5).all(), "the search narrows"
    assert (plan.spread_BI >= planner.min_std - 1e-6).all()
    assert (plan.best_cost_BI[:, -1] < plan.best_cost_BI[:, 0]).all()


@planner_names
def test_runs_without_gradients_and_leaves_its_inputs_alone(name: str) -> None:
    toy = TOYS["point mass"]
    planner = make(name, toy, 64, 3)
    weight = torch.ones((), requires_grad=True)
    noise, warm = noise_for(planner, ROWS), WarmStart(torch.full((8, 4, 2), 0.2))
    before = noise.clone(), warm.mean_BHA.clone()
    plan = planner.plan(lambda a: weight * toy.cost(ROWS)(a), noise, toy.box, warm)
    assert not plan.cost_B.requires_grad
    assert not plan.action_BHA.requires_grad
    assert torch.equal(noise, before[0])
    assert torch.equal(warm.mean_BHA, before[1])
    with torch.inference_mode():
        assert_same(plan, planner.plan(toy.cost(ROWS), noise, toy.box, warm))


@planner_names
def test_dtype_follows_the_noise(name: str) -> None:
    toy = TOYS["point mass"]
    planner = make(name, toy, 64, 3)
    noise = noise_for(planner, ROWS)
    single, double = (planner.plan(toy.cost(ROWS), n, toy.box) for n in (noise, noise.double()))
    assert double.action_BHA.dtype == double.cost_B.dtype == torch.float64
    torch.testing.assert_close(double.action_BHA.float(), single.action_BHA, atol=1e-3, rtol=0)


@planner_names
@execute_modes
def test_never_reads_a_tensor_back(name: str, execute: str) -> None:
    """The meta device has shapes but no data: a host sync (item, bool of a tensor) would raise there."""
    planner = PLANNERS[name](horizon=3, candidates=64, iterations=2, execute=execute)
    noise = torch.empty(4, 2, 64, 3, 2, device="meta")
    plan = planner.plan(
        lambda a: a.square().sum((2, 3)), noise, TOYS["point mass"].box, WarmStart(torch.zeros(4, 3, 2))
    )
    assert plan.action_BHA.device.type == "meta"
    assert plan.action_BHA.shape == (4, 3, 2)
    assert plan.spread_BI.shape == (4, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@planner_names
def test_plan_is_the_same_on_a_gpu(name: str) -> None:
    toy = TOYS["point mass"]
    planner = make(name, toy, 64, 3)
    noise = noise_for(planner, ROWS)
    on_cpu = planner.plan(toy.cost(ROWS), noise, toy.box)
    on_gpu = planner.plan(toy.cost(ROWS), noise.cuda(), toy.box.to("cuda"))
    torch.testing.assert_close(on_gpu.action_BHA.cpu(), on_cpu.action_BHA, atol=1e-4, rtol=0)


@planner_names
@pytest.mark.parametrize("shape", [(8,), (64, 8), (8, 64, 1)])
def test_cost_of_the_wrong_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    toy = TOYS["point mass"]
    planner = make(name, toy, 64, 3)
    with pytest.raises(ValueError, match=r"cost function returned shape .* it must return .* shape \(8, 64\)"):
        planner.plan(lambda a: torch.zeros(shape), noise_for(planner, ROWS), toy.box)


@planner_names
def test_noise_and_warm_start_of_the_wrong_shape_are_refused(name: str) -> None:
    toy = TOYS["point mass"]
    planner = make(name, toy, 64, 3)
    cost_fn, noise = toy.cost(ROWS), noise_for(planner, ROWS)
    with pytest.raises(ValueError, match=r"noise has shape \(8, 2, 64, 4, 2\).*\(B, 3, 64, 4, 2\).*noise_table"):
        planner.plan(cost_fn, noise[:, :2], toy.box)
    with pytest.raises(ValueError, match=r"warm start's mean has shape \(8, 3, 2\).*\(8, 4, 2\).*Plan.warm_start"):
        planner.plan(cost_fn, noise, toy.box, WarmStart(torch.zeros(8, 3, 2)))


@planner_names
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("horizon", 0),
        ("candidates", 0),
        ("iterations", -1),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("min_std", -0.1),
        ("min_std", 0.9),
        ("initial_std", 0.0),
        ("initial_std", math.nan),
        ("warm_std", math.inf),
        ("execute", "median"),
    ],
)
def test_bad_config_value_is_refused(name: str, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{PLANNERS[name].__name__}: {field} is {value!r}; it must"):
        PLANNERS[name](**{field: value})


@planner_names
def test_table_name_is_the_discriminator(name: str) -> None:
    assert PLANNERS[name]().name == name
