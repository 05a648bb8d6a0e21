"""Limits: the order of candidates, and plans whose constrained optimum is known by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from toys import TOYS

from lewm.baselines.oracle import OracleConfig
from lewm.schema import build
from planners import CEM, ICEM, MPPI, ActionBox, AugmentedLagrangian, CategoricalCEM, FeasibleFirst, Plan, noise_table
from planners.augmented_lagrangian import Lagrangian, natural_unit, penalty, raised
from planners.constraints import Judge, key

BOX = ActionBox.from_bounds(torch.full((2,), -2.0), torch.full((2,), 2.0))
SEARCH = CEM(horizon=1, candidates=128, iterations=8, elites=12)
KEEPERS = {
    "feasible_first": FeasibleFirst(search=SEARCH),
    "feasible_first, best": FeasibleFirst(search=CEM(horizon=1, candidates=128, iterations=8, execute="best")),
    "feasible_first, icem": FeasibleFirst(search=ICEM(horizon=1, candidates=128, iterations=8)),
    "feasible_first, mppi": FeasibleFirst(search=MPPI(horizon=1, candidates=128, iterations=8)),
    "augmented_lagrangian": AugmentedLagrangian(search=SEARCH, rounds=4),
    "augmented_lagrangian, icem": AugmentedLagrangian(search=ICEM(horizon=1, candidates=128, iterations=8), rounds=4),
    "augmented_lagrangian, mppi": AugmentedLagrangian(search=MPPI(horizon=1, candidates=128, iterations=8), rounds=4),
}
keepers = pytest.mark.parametrize("planner", KEEPERS.values(), ids=KEEPERS)


class Limited:
    """A cost and limits, both functions of the first block, and everything that was asked of them."""

    def __init__(self, cost: Callable[[Tensor], Tensor], violation: Callable[[Tensor], Tensor]) -> None:
        self.cost, self.limits = cost, violation
        self.seen: list[Tensor] = []

    def __call__(self, action_BNHA: Tensor) -> Tensor:
        self.seen.append(action_BNHA)
        return self.cost(action_BNHA[:, :, 0])

    def violation(self, action_BNHA: Tensor) -> Tensor:
        return self.limits(action_BNHA[:, :, 0])


def plan_for(planner: FeasibleFirst | AugmentedLagrangian, cost_fn: object, problems: int = 8) -> Plan:
    return planner.plan(cost_fn, noise_table([(row,) for row in range(problems)], planner, 2), BOX)  # type: ignore[arg-type]


def beyond(action_BN2: Tensor) -> Tensor:
    """Squared distance to (1.5, 0)."""
    return (action_BN2 - torch.tensor([1.5, 0.0]).to(action_BN2)).square().sum(-1)


def half_plane(action_BN2: Tensor) -> Tensor:
    """x + y <= 1: nearest to (1.5, 0) is (1.25, -0.25), at a squared distance of 0.125."""
    return action_BN2.sum(-1, keepdim=True) - 1


def test_keys_order_by_violation_then_cost() -> None:
    """Neighbouring floats stay apart on both sides: nothing is rounded, at any magnitude."""
    cost, violation = torch.tensor([3.0, -1e12, 0.1, 1e12, -1e12, 0.0]), torch.tensor([0, 0, 0, 1e-11, 1e-11, 3e11])
    ordered = key(cost[None], violation[None, :, None])[0]
    assert ordered.argsort().tolist()[:3] == [1, 2, 0]
    assert ordered[3] == ordered[4], "among broken limits the cost does not count"
    assert (ordered[:3].max() < ordered[3:].min()).item()
    assert ordered[3] < ordered[5]
    for x in (0.1, 1.0, 1e-6, 1e6, 12345.678):
        pair = torch.tensor([x, math.nan])
        pair[1] = torch.nextafter(pair[0], torch.tensor(torch.inf))
        one, other = key(pair[None], torch.zeros(1, 2, 1))[0]
        assert one < other
        assert one == pair[0], "a kept plan's key is its cost"
        one, other = key(torch.zeros(1, 2), pair[None, :, None])[0]
        assert one < other


def test_key_adds_broken_limits_and_forgets_slack() -> None:
    violation = torch.tensor([[0.5, 0.5, -9.0], [0.9, -9.0, -9.0], [-1.0, 0.0, -1.0]])[None]
    one, other, kept = key(torch.tensor([[0.0, 50.0, 7.0]]), violation)[0].tolist()
    assert kept == 7 < other < one, "0.9 in sum is less than 1.0; a limit of exactly 0 is kept"


def test_key_of_failures_is_infinite_and_extremes_stay_apart() -> None:
    inf = torch.inf
    cost, violation = torch.tensor([[inf, 0.0, 1e38, 1.0, 1.0]]), torch.tensor([[-1.0, inf, 0.0, 1e-45, 1e38]])
    failed, broken, dear, tiny, huge = key(cost, violation[..., None])[0].tolist()
    assert failed == broken == inf
    assert dear < tiny < huge < inf


@keepers
def test_half_plane_by_hand(planner: FeasibleFirst | AugmentedLagrangian) -> None:
    cost_fn = Limited(beyond, half_plane)
    plan = plan_for(planner, cost_fn)
    assert (cost_fn.violation(plan.action_BHA[:, None]) <= 0).all(), "strictly: no tolerance"
    assert plan.cost_B.min() >= 0.125 - 1e-5
    assert plan.cost_B.max() < 0.125 + 0.02
    torch.testing.assert_close(plan.cost_B, plan.best_cost_BI.amin(1), atol=1e-2, rtol=0)


@keepers
def test_answer_is_the_best_candidate_ever_scored(planner: FeasibleFirst | AugmentedLagrangian) -> None:
    """The exact lexicographic minimum over everything that was asked of the cost, in Python's own tuple order."""
    for limits in (half_plane, lambda a: half_plane(a).abs() + 0.3 * a[..., :1].square()):
        cost_fn = Limited(beyond, limits)
        plan = plan_for(planner, cost_fn, problems=2)
        every = torch.cat(cost_fn.seen, 1)
        for row in range(2):
            broken = cost_fn.violation(every)[row].clamp(min=0).sum(-1).tolist()
            ranked = sorted(zip(broken, beyond(every[row, :, 0]).tolist(), strict=True))
            answer = plan.action_BHA[row][None, None]
            assert cost_fn.violation(answer).clamp(min=0).sum().item() == ranked[0][0]
            assert plan.cost_B[row].item() == (ranked[0][1] if ranked[0][0] == 0 else beyond(answer[:, :, 0]).item())


@keepers
def test_where_nothing_is_allowed_the_least_forbidden_is_answered(
    planner: FeasibleFirst | AugmentedLagrangian,
) -> None:
    """max(0, .) of 1 + |x - 0.5| and 1 + |y|, the least at (0.5, 0) is 2, while the cost pulls to (1.5, 0)."""
    middle = torch.tensor([0.5, 0.0])
    cost_fn = Limited(beyond, lambda a: 1 + (a - middle).abs())
    plan = plan_for(planner, cost_fn)
    loose = 0.1 if isinstance(planner, FeasibleFirst) else 0.3
    assert (cost_fn.violation(plan.action_BHA[:, None]).sum(-1) < 2 + loose).all()
    assert plan.best_cost_BI.isposinf().all(), "the trace says that no candidate kept the limits"
    torch.testing.assert_close(plan.cost_B, beyond(plan.action_BHA[:, 0]))


@keepers
def test_a_limit_that_does_not_bind_changes_nothing_but_is_needed(
    planner: FeasibleFirst | AugmentedLagrangian,
) -> None:
    plan = plan_for(planner, Limited(beyond, lambda a: half_plane(a) - 100))
    assert plan.cost_B.max() < 0.01
    with pytest.raises(ValueError, match=r"this planner keeps limits, but the cost has none: .* method violation"):
        plan_for(planner, lambda action_BNHA: beyond(action_BNHA[:, :, 0]))


@keepers
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_plan_whose_limits_have_no_number_never_wins(
    planner: FeasibleFirst | AugmentedLagrangian, bad: float
) -> None:
    """The limits fail wherever y > -0.2, the optimum is then (1.2, -0.2) as if y <= -0.2 were a limit: 0.13."""
    cost_fn = Limited(beyond, lambda a: half_plane(a).masked_fill(a[..., 1:] > -0.2, bad))
    plan = plan_for(planner, cost_fn)
    assert (plan.action_BHA[:, 0, 1] <= -0.2).all()
    assert (cost_fn.violation(plan.action_BHA[:, None]) <= 0).all()
    assert plan.cost_B.max() < 0.16


@keepers
def test_violation_of_the_wrong_shape_is_refused(planner: FeasibleFirst | AugmentedLagrangian) -> None:
    with pytest.raises(ValueError, match=r"violation has shape \(8, 128\); .* shape \(B, N, G\) .* = \(8, 128\)"):
        plan_for(planner, Limited(beyond, lambda a: a[..., 0]))


def test_a_fixed_penalty_breaks_the_limit_that_feasible_first_keeps() -> None:
    """cost + max(0, g)^2, g = x + y - 1. Going t from (1.5, 0) down both axes: 2 t^2 + (0.5 - 2 t)^2, least at t = 1/6.

    There g = 0.5 - 2 / 6 = 1 / 6: no finite penalty keeps the limit.
    """
    noise = noise_table([(row,) for row in range(8)], SEARCH, 2)
    penalised = SEARCH.plan(
        lambda a: beyond(a[:, :, 0]) + half_plane(a[:, :, 0])[..., 0].clamp(min=0).square(), noise, BOX
    )
    broken = half_plane(penalised.action_BHA)[..., 0]
    assert broken.mean().item() == pytest.approx(1 / 6, abs=0.03)
    assert (half_plane(plan_for(FeasibleFirst(search=SEARCH), Limited(beyond, half_plane)).action_BHA) <= 0).all()


def test_discrete_choices_keep_limits_too() -> None:
    """5 x 7 choices, x y <= 6, as much x + 2 y as possible: (1, 6) with 13 beats (2, 3) with 8 and (4, 1) with 6."""
    box = ActionBox.discrete((5, 7))
    search = CategoricalCEM(horizon=1, candidates=32, iterations=4, elites=6)
    cost_fn = Limited(lambda a: -a[..., 0] - 2 * a[..., 1], lambda a: a[..., :1] * a[..., 1:] - 6)
    for planner in (FeasibleFirst(search=search), AugmentedLagrangian(search=search, rounds=3)):
        plan = planner.plan(cost_fn, noise_table([(0,), (1,)], planner, 2), box)
        assert plan.action_BHA[:, 0].tolist() == [[1, 6], [1, 6]]
        assert plan.cost_B.tolist() == [-13, -13]


# The method of multipliers --------------------------------------------------------------------------------------------


def test_penalty_by_hand() -> None:
    """price 2, rho 4. g = 1: (36 - 4) / 8 = 4. g = -0.25: (1 - 4) / 8. g = -9: the floor -4 / 8. g = 0: 0."""
    price, rho = torch.tensor([[[2.0]]]), torch.tensor([[[4.0]]])
    violation = torch.tensor([1.0, -0.25, -9.0, 0.0]).reshape(1, 4, 1)
    assert penalty(violation, price, rho)[0].tolist() == pytest.approx([4, -0.375, -0.5, 0])
    assert raised(price, violation, rho).flatten().tolist() == pytest.approx([6, 1, 0, 2])
    two = penalty(violation.expand(1, 4, 2), price.expand(1, 1, 2), rho.expand(1, 1, 2))
    assert two[0].tolist() == pytest.approx([8, -0.75, -1, 0]), "limits add up"


def test_natural_unit_by_hand() -> None:
    """Costs 1, 3, 5 have the std sqrt(8 / 3), their violations the mean squares (1 + 4 + 4) / 3 and 0.

    Failures do not count. In the second problem all costs are equal, and so four violations count.
    """
    cost = torch.tensor([[1.0, 3.0, 5.0, torch.inf, 1e6], [7.0] * 5])
    violation = torch.tensor([[1.0, 0], [-2, 0], [2, 0], [5, 5], [torch.inf, 0]]).expand(2, 5, 2)
    unit = natural_unit(cost, violation)
    assert unit[0, 0].tolist() == pytest.approx([(8 / 3) ** 0.5 / 3, (8 / 3) ** 0.5])
    assert unit[1, 0].tolist() == pytest.approx([4 / 34, 4 / 25]), "equal costs have no scale: 1"
    assert natural_unit(1e6 * cost, violation)[0, 0, 0] == pytest.approx(1e6 * unit[0, 0, 0].item())
    assert natural_unit(cost, 100 * violation)[0, 0, 0] == pytest.approx(1e-4 * unit[0, 0, 0].item())


def test_a_cost_without_bottom_has_a_unit_too() -> None:
    cost = torch.tensor([[0.0, torch.finfo(torch.float32).min, 1.0]])
    assert natural_unit(cost, torch.ones(1, 3, 1)).isfinite().all()


def test_prices_lead_the_search_to_the_limit_where_the_first_penalty_does_not() -> None:
    """The mean of the last round, without growth of rho: one round stops beyond the fence, eight stop at it."""
    toy, search = TOYS["fence"], CEM(horizon=4, candidates=256, iterations=8)
    broken = []
    for rounds in (1, 8):
        planner = AugmentedLagrangian(search=search, rounds=rounds, growth=1.0)
        cost_fn = toy.cost(range(8))
        plan = planner.plan(cost_fn, noise_table([(row,) for row in range(8)], planner, 2), toy.box)
        broken.append(cost_fn.violation(plan.mean_BHA[:, None]).mean().item())
    assert broken[0] > 0.1
    assert abs(broken[1]) < 0.03


def test_prices_converge_to_the_multipliers() -> None:
    """fence: price 1, see toys.py. Two searches per round, without growth, so that no late step overshoots."""
    toy = TOYS["fence"]
    config = AugmentedLagrangian(search=CEM(horizon=4, candidates=256, iterations=15), rounds=8, growth=1.0, penalty=3)
    judge = Judge(toy.cost(range(8)))
    lagrangian = Lagrangian(judge, config)
    noise = noise_table([(row,) for row in range(8)], config, 2)
    start = None
    for part in noise.split(15, 1):
        plan = config.search.plan(lagrangian, part, toy.box, start)
        lagrangian.next_round(judge.violation(plan.action_BHA[:, None]))
        start = plan.warm_start(0, toy.box)
    torch.testing.assert_close(lagrangian.price_B1G.flatten(), torch.ones(8), atol=0.1, rtol=0)
    torch.testing.assert_close(judge.violation(plan.action_BHA[:, None]), torch.zeros(8, 1, 1), atol=0.02, rtol=0)


def test_rho_grows_to_its_cap_and_a_failed_answer_leaves_the_price() -> None:
    config = AugmentedLagrangian(search=SEARCH, rounds=4, penalty=2.0, growth=3.0, max_penalty=10.0)
    lagrangian = Lagrangian(Judge(Limited(beyond, half_plane)), config)
    lagrangian(torch.rand(1, 5, 1, 2, generator=torch.Generator().manual_seed(0)))
    unit, rhos = lagrangian.unit_B1G.item(), []
    for violation in (0.5, torch.inf, 0.0, 0.0):
        rhos.append(lagrangian.rho)
        lagrangian.next_round(torch.tensor([[[violation]]]))
    assert rhos == [2, 6, 10, 10]
    assert lagrangian.price_B1G.item() == pytest.approx(2 * unit * 0.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rounds", 0),
        ("penalty", 0.0),
        ("penalty", math.nan),
        ("growth", 0.9),
        ("growth", math.inf),
        ("max_penalty", 0.5),
        ("max_penalty", math.inf),
    ],
)
def test_bad_config_value_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"AugmentedLagrangian: {field} is {value!r}; it must be"):
        AugmentedLagrangian(**{field: value})  # type: ignore[arg-type]


def test_noise_table_knows_all_rounds() -> None:
    planner = AugmentedLagrangian(search=CEM(horizon=2, candidates=7, iterations=3, elites=2), rounds=4)
    assert noise_table([(0,)], planner, 5).shape == (1, 12, 7, 2, 5)


def test_the_search_is_chosen_by_name_in_a_configuration() -> None:
    data = {"planner": {"name": "feasible_first", "search": {"name": "mppi", "candidates": 10}}}
    assert build(OracleConfig, data, "run.yaml").planner == FeasibleFirst(search=MPPI(candidates=10))
    data = {"planner": {"name": "augmented_lagrangian", "rounds": 2, "search": {"name": "categorical_cem"}}}
    assert build(OracleConfig, data, "run.yaml").planner == AugmentedLagrangian(search=CategoricalCEM(), rounds=2)
