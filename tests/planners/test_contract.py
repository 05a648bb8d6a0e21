"""What every planner promises. Parametrised over the cases of cases.py, which must name every planner of PLANNERS."""

import math
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from cases import CASES, Case
from torch import Tensor
from toys import TOYS, Toy

from planners import PLANNERS, CostFn, Plan, PlannerConfig, WarmStart, noise_table

ROWS = list(range(8))
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
cases_and_toys = pytest.mark.parametrize(
    ("case", "toy_name"),
    [pytest.param(case, toy, id=f"{name}: {toy}") for name, case in CASES.items() for toy in case.toys],
)


class Altered:
    """A cost whose values are changed, and which still offers all else that the original does."""

    def __init__(self, cost_fn: CostFn, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.cost_fn, self.change = cost_fn, change
        for part in ("rollout", "follow", "distance", "violation"):
            if hasattr(cost_fn, part):
                setattr(self, part, getattr(cost_fn, part))

    def __call__(self, action_BNHA: Tensor) -> Tensor:
        return self.change(self.cost_fn(action_BNHA), action_BNHA)


def first_toy(case: Case) -> Toy:
    return TOYS[case.toys[0]]


def noise_for(planner: PlannerConfig, rows: list[int], toy: Toy, seed: int = 0) -> Tensor:
    return noise_table([(seed, row, 0) for row in rows], planner, len(toy.box.low_A))


def solve(planner: PlannerConfig, toy: Toy, rows: list[int], seed: int = 0, start: WarmStart | None = None) -> Plan:
    return planner.plan(toy.cost(rows), noise_for(planner, rows, toy, seed), toy.box, start)


def inside(toy: Toy, share: float, *batch: int) -> Tensor:
    """Actions (*batch, H, A) that far from the low to the high end of the box; numbers of choices in a discrete one."""
    action_A = toy.box.low_A + share * (toy.box.high_A - toy.box.low_A)
    return (action_A if toy.box.choices_A is None else action_A.round()).expand(*batch, toy.horizon, -1).clone()


def tensors(plan: Plan) -> dict[str, Tensor]:
    return {f.name: value for f in fields(Plan) if (value := getattr(plan, f.name)) is not None}


def problems(plan: Plan, rows: list[int]) -> Plan:
    return Plan(**{name: value[rows] for name, value in tensors(plan).items()})


def assert_same(one: Plan, other: Plan) -> None:
    assert tensors(one).keys() == tensors(other).keys()
    for name, value in tensors(one).items():
        assert torch.equal(value, tensors(other)[name]), name


def test_every_planner_has_a_case() -> None:
    assert {case.planner for case in CASES.values()} == set(PLANNERS)
    assert all(case.toys for case in CASES.values())


@pytest.mark.parametrize("name", PLANNERS)
def test_table_name_is_the_discriminator(name: str) -> None:
    assert PLANNERS[name]().name == name


@pytest.mark.parametrize("toy_name", TOYS)
def test_toys_are_as_hard_as_they_say(toy_name: str) -> None:
    toy = TOYS[toy_name]
    assert toy.cost(ROWS)(inside(toy, 0.5, 8, 1)).min().item() == pytest.approx(toy.centre_cost, abs=0.1)
    assert toy.centre_cost > toy.optimum + 5 * toy.tolerance


@cases_and_toys
def test_reaches_the_optimum(case: Case, toy_name: str) -> None:
    toy = TOYS[toy_name]
    plan = solve(case.make(toy), toy, ROWS)
    assert plan.cost_B.max() < toy.optimum + case.tolerance(toy_name)
    assert plan.cost_B.min() > toy.optimum - 1e-5


@cases_and_toys
def test_plan_is_inside_the_box_and_costs_what_it_says(case: Case, toy_name: str) -> None:
    toy = TOYS[toy_name]
    planner = case.make(toy, 64, 4)
    plan = solve(planner, toy, ROWS)
    assert plan.action_BHA.shape == plan.mean_BHA.shape == (8, toy.horizon, 2)
    assert plan.best_cost_BI.shape == plan.spread_BI.shape == (8, planner.iterations)
    assert (plan.action_BHA >= toy.box.low_A).all()
    assert (plan.action_BHA <= toy.box.high_A).all()
    if toy.box.choices_A is not None:
        assert torch.equal(plan.action_BHA, plan.action_BHA.round())
    torch.testing.assert_close(toy.cost(ROWS)(plan.action_BHA[:, None])[:, 0], plan.cost_B)


@cases
def test_every_candidate_scored_is_inside_the_box(case: Case) -> None:
    toy = first_toy(case)
    seen: list[Tensor] = []

    def watch(cost_BN: Tensor, action_BNHA: Tensor) -> Tensor:
        seen.append(action_BNHA.detach().clone())
        return cost_BN

    planner, far = case.make(toy, 64, 3), toy.box.high_A.expand(8, toy.horizon, 2) + 4
    noise = noise_for(planner, ROWS, toy)
    plan = planner.plan(Altered(toy.cost(ROWS), watch), noise, toy.box, WarmStart(far, None, far[:, None] + 1))
    assert all(((action >= toy.box.low_A) & (action <= toy.box.high_A)).all() for action in seen)
    assert (plan.action_BHA <= toy.box.high_A).all()


@cases
def test_lower_is_better(case: Case) -> None:
    toy = first_toy(case)
    planner = case.make(toy)
    cost_fn, noise = toy.cost(ROWS), noise_for(planner, ROWS, toy)
    away = planner.plan(Altered(cost_fn, lambda cost, _: -cost), noise, toy.box)
    assert cost_fn(away.action_BHA[:, None]).min() > toy.centre_cost


@cases_and_toys
def test_more_candidates_are_not_worse(case: Case, toy_name: str) -> None:
    toy, rows = TOYS[toy_name], list(range(32))
    few, many = (solve(case.make(toy, n), toy, rows).cost_B.mean() for n in (case.candidates // 6, case.candidates * 2))
    assert many <= few + 0.05 * toy.tolerance


@cases
def test_more_iterations_are_better(case: Case) -> None:
    toy, rows = first_toy(case), list(range(32))
    costs = [solve(case.make(toy, 64, iterations), toy, rows).cost_B.mean().item() for iterations in case.ladder]
    assert costs == sorted(set(costs), reverse=True)


@cases
def test_same_noise_same_plan_other_noise_other_plan(case: Case) -> None:
    toy = first_toy(case)
    planner = case.make(toy, 64, 3)
    first = solve(planner, toy, ROWS)
    assert_same(first, solve(planner, toy, ROWS))
    assert not torch.equal(first.best_cost_BI, solve(planner, toy, ROWS, seed=1).best_cost_BI)


@cases_and_toys
def test_problem_is_planned_the_same_alone_and_in_a_batch(case: Case, toy_name: str) -> None:
    toy, rows = TOYS[toy_name], list(range(50))
    planner = case.make(toy, 64, 4)
    mean_BHA = inside(toy, 0.25, 50)
    mean_BHA[::2] = inside(toy, 0.75)
    start = WarmStart(mean_BHA, None, mean_BHA[:, None].flip(0))
    together = solve(planner, toy, rows, start=start)
    for row in (0, 17, 49):
        alone = solve(planner, toy, [row], start=start.problems(slice(row, row + 1)))
        assert_same(alone, problems(together, [row]))


@cases
def test_failing_problem_stays_put_and_leaves_the_others_alone(case: Case) -> None:
    toy, rows, bad = first_toy(case), list(range(50)), [3, 20]
    good = [row for row in rows if row not in bad]
    planner = case.make(toy, 64, 4)
    noise = noise_for(planner, rows, toy)
    start = WarmStart(inside(toy, 0.75, 50))
    failed_B1 = torch.tensor([row in bad for row in rows])[:, None]
    failing = Altered(toy.cost(rows), lambda cost, _: torch.where(failed_B1, torch.nan, cost))
    clean = planner.plan(toy.cost(rows), noise, toy.box, start)
    plan = planner.plan(failing, noise, toy.box, start)
    assert_same(problems(plan, good), problems(clean, good))
    assert torch.equal(plan.action_BHA[bad], start.mean_BHA[bad])
    assert torch.equal(plan.mean_BHA[bad], start.mean_BHA[bad])
    assert plan.cost_B[bad].isposinf().all()
    assert plan.best_cost_BI[bad].isposinf().all()


def in_the_corner(toy: Toy, action_BNHA: Tensor) -> Tensor:
    """Whether block 0 lies in the upper corner of the box, as about one candidate in twenty does."""
    corner_A = toy.box.low_A + 0.9 * (toy.box.high_A - toy.box.low_A)
    return (action_BNHA[:, :, 0] >= corner_A.to(action_BNHA)).all(-1)


@cases
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_failed_candidates_never_win(case: Case, bad: float) -> None:
    """Those that do not fail are fewer than CEM's elites."""
    toy = first_toy(case)
    planner = case.make(toy, 160, 8)
    cost_fn = Altered(toy.cost(ROWS), lambda cost, action: cost.masked_fill(~in_the_corner(toy, action), bad))
    plan = planner.plan(cost_fn, noise_for(planner, ROWS, toy), toy.box, WarmStart(inside(toy, 0.75, 8)))
    assert plan.cost_B.isfinite().all()
    assert in_the_corner(toy, plan.action_BHA[:, None]).all()


@cases
def test_minus_infinity_does_not_poison_the_plan(case: Case) -> None:
    toy = first_toy(case)
    planner = case.make(toy, 64, 3)
    cost_fn = Altered(toy.cost(ROWS), lambda cost, action: cost.masked_fill(in_the_corner(toy, action), -math.inf))
    plan = planner.plan(cost_fn, noise_for(planner, ROWS, toy), toy.box)
    assert plan.action_BHA.isfinite().all()
    assert plan.mean_BHA.isfinite().all()
    assert not plan.cost_B.isnan().any()


@cases
def test_flat_cost_gives_a_finite_plan(case: Case) -> None:
    toy = first_toy(case)
    planner = case.make(toy, 64, 3)
    plan = planner.plan(Altered(toy.cost(ROWS), lambda cost, _: 0 * cost + 7), noise_for(planner, ROWS, toy), toy.box)
    assert plan.action_BHA.isfinite().all()
    assert plan.mean_BHA.isfinite().all()
    assert (plan.cost_B == 7).all()


@cases
def test_warm_start_helps(case: Case) -> None:
    toy, rows = first_toy(case), list(range(32))
    optimum_BHA = solve(case.make(toy), toy, rows).action_BHA
    small = case.make(toy, 64, 1)
    warm, cold = (solve(small, toy, rows, 1, start) for start in (WarmStart(optimum_BHA), None))
    assert warm.cost_B.mean() < 0.5 * cold.cost_B.mean()


@cases
def test_seeds_are_scored_in_the_first_iteration(case: Case) -> None:
    toy = first_toy(case)
    optimum_BHA = solve(case.make(toy), toy, ROWS).action_BHA
    seeds_BSHA = torch.stack([inside(toy, 0.0, 8), optimum_BHA], 1)
    scored: list[Tensor] = []

    def watch(cost_BN: Tensor, action_BNHA: Tensor) -> Tensor:
        scored.append(action_BNHA.detach().clone())
        return cost_BN

    planner = case.make(toy, 64, 2)
    start = WarmStart(inside(toy, 0.5, 8), None, seeds_BSHA)
    plan = planner.plan(Altered(toy.cost(ROWS), watch), noise_for(planner, ROWS, toy), toy.box, start)
    for seed_BHA in seeds_BSHA.unbind(1):
        assert (scored[0] == seed_BHA[:, None]).all((2, 3)).any(1).all(), "as they are"
    assert (plan.best_cost_BI[:, 0] <= toy.cost(ROWS)(seeds_BSHA).amin(1)).all()


@cases
def test_next_search_starts_where_this_one_ended(case: Case) -> None:
    """After one of two parts the plan's warm start, shifted by the block done, beats a cold search of one iteration."""
    toy = first_toy(case)
    first = solve(case.make(toy), toy, ROWS)
    if toy.horizon < 2:
        pytest.skip("a plan of one block leaves nothing for the next")
    done_BHA = first.action_BHA[:, :1]

    def cost(action_BNHA: Tensor) -> Tensor:
        """Of the action done, followed by the new ones: the goal is one block nearer."""
        done_BNHA = done_BHA[:, None].to(action_BNHA).expand(-1, action_BNHA.shape[1], -1, -1)
        return toy.cost(ROWS)(torch.cat([done_BNHA, action_BNHA[:, :, :-1]], 2))

    small = case.make(toy, 64, 1)
    noise = noise_for(small, ROWS, toy, seed=1)
    for_rest = Altered(toy.cost(ROWS), lambda _, action: cost(action))
    warm = small.plan(for_rest, noise, toy.box, first.warm_start(1, toy.box))
    cold = small.plan(for_rest, noise, toy.box)
    assert warm.cost_B.mean() < 0.5 * cold.cost_B.mean()


@cases
def test_leaves_no_gradients_and_its_inputs_alone(case: Case) -> None:
    toy = first_toy(case)
    planner = case.make(toy, 64, 3)
    weight = torch.ones((), requires_grad=True)
    noise, seeds = noise_for(planner, ROWS, toy), inside(toy, 0.25, 8, 2)
    start = WarmStart(inside(toy, 0.75, 8), None, seeds)
    before = noise.clone(), start.mean_BHA.clone(), seeds.clone()
    cost_fn = Altered(toy.cost(ROWS), lambda cost, _: weight * cost)
    plan = planner.plan(cost_fn, noise, toy.box, start)
    assert not any(value.requires_grad for value in tensors(plan).values())
    assert weight.grad is None
    assert all(torch.equal(one, other) for one, other in zip(before, (noise, start.mean_BHA, seeds), strict=True))
    with torch.no_grad():
        assert_same(plan, planner.plan(cost_fn, noise, toy.box, start))


@cases
def test_dtype_follows_the_noise(case: Case) -> None:
    toy = first_toy(case)
    planner = case.make(toy, 64, 3)
    noise = noise_for(planner, ROWS, toy)
    single, double = (planner.plan(toy.cost(ROWS), n, toy.box) for n in (noise, noise.double()))
    assert all(value.dtype == torch.float64 for value in tensors(double).values())
    torch.testing.assert_close(double.action_BHA.float(), single.action_BHA, atol=1e-3, rtol=0)


@cases
def test_never_reads_a_tensor_back(case: Case) -> None:
    """The meta device has shapes but no data: a host sync (item, bool of a tensor) would raise there."""
    toy = first_toy(case)
    planner = case.make(toy, 64, 2)
    noise = noise_for(planner, ROWS, toy).to("meta")
    plan = planner.plan(toy.cost(ROWS), noise, toy.box, WarmStart(inside(toy, 0.25, 8), None, inside(toy, 0.5, 8, 2)))
    assert all(value.device.type == "meta" for value in tensors(plan).values())
    assert plan.action_BHA.shape == (8, toy.horizon, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@cases
def test_plan_is_the_same_on_a_gpu(case: Case) -> None:
    toy = first_toy(case)
    planner = case.make(toy, 64, 3)
    noise = noise_for(planner, ROWS, toy)
    on_cpu = planner.plan(toy.cost(ROWS), noise, toy.box)
    on_gpu = planner.plan(toy.cost(ROWS), noise.cuda(), toy.box.to("cuda"))
    torch.testing.assert_close(on_gpu.action_BHA.cpu(), on_cpu.action_BHA, atol=1e-4, rtol=0)


@cases
@pytest.mark.parametrize("shape", [(8,), (64, 8), (8, 64, 1)])
def test_cost_of_the_wrong_shape_is_refused(case: Case, shape: tuple[int, ...]) -> None:
    toy = first_toy(case)
    planner = case.make(toy, 64, 3)
    cost_fn = Altered(toy.cost(ROWS), lambda cost, _: cost.sum() + torch.zeros(shape))
    with pytest.raises(ValueError, match=r"cost function returned shape .* it must return .* shape \(8, \d+\)"):
        planner.plan(cost_fn, noise_for(planner, ROWS, toy), toy.box)


@cases
def test_noise_and_warm_start_of_the_wrong_shape_are_refused(case: Case) -> None:
    toy = first_toy(case)
    planner = case.make(toy, 64, 3)
    cost_fn, noise, good = toy.cost(ROWS), noise_for(planner, ROWS, toy), inside(toy, 0.5, 8)
    with pytest.raises(ValueError, match=r"noise has shape .*\(B, \d+, \d+, \d+, 2\).*noise_table"):
        planner.plan(cost_fn, noise[:, :, :-1], toy.box)
    with pytest.raises(ValueError, match=r"warm start's mean has shape \(7, .*\(8, .*Plan.warm_start"):
        planner.plan(cost_fn, noise, toy.box, WarmStart(good[:7]))
    with pytest.raises(ValueError, match=r"warm start's std has shape \(7, .*\(8, .*Plan.warm_start"):
        planner.plan(cost_fn, noise, toy.box, WarmStart(good, good[:7]))
    with pytest.raises(ValueError, match=r"warm start's seeds have shape \(8, .*\(B, S, H, A\)"):
        planner.plan(cost_fn, noise, toy.box, WarmStart(good, None, good))


@cases
def test_box_of_the_other_kind_is_refused(case: Case) -> None:
    toy = first_toy(case)
    planner = case.make(toy, 64, 3)
    other = TOYS["chain" if toy.box.choices_A is None else "point mass"].box
    with pytest.raises(ValueError, match=r"searches (discrete|continuous) actions, but the box (is|has) .*: use"):
        planner.plan(toy.cost(ROWS), noise_for(planner, ROWS, toy), other)


@pytest.mark.parametrize("name", PLANNERS)
@pytest.mark.parametrize(("field", "value"), [("horizon", 0), ("candidates", 0), ("iterations", -1)])
def test_bad_size_is_refused(name: str, field: str, value: int) -> None:
    if field in PLANNERS[name].__dataclass_fields__:
        with pytest.raises(ValueError, match=rf"{PLANNERS[name].__name__}: {field} is {value}; it must"):
            PLANNERS[name](**{field: value})
