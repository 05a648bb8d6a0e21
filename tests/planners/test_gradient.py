"""Gradient descent on actions against torch's own Adam, and what a start, a failure and a schedule do."""

from collections.abc import Callable
from math import cos, pi

import pytest
import torch
from torch import Tensor
from toys import TOYS

from planners import ActionBox, CostFn, Gradient, Plan, WarmStart, noise_table
from planners.gradient import descend, differentiate, learning_rates, slope

inf = torch.full((2,), torch.inf)
OPEN = ActionBox(-inf, inf, torch.tensor([1.0, -1.0]), torch.tensor([4.0, 0.01]))
BOX = ActionBox.from_bounds(torch.tensor([-1.0]), torch.tensor([1.0]))


def bowl(action_BNHA: Tensor) -> Tensor:
    """Curved differently in every entry, lowest at 3."""
    weight_HA = torch.arange(1, 1 + action_BNHA[0, 0].numel()).reshape(action_BNHA.shape[2:])
    return (weight_HA * (action_BNHA - 3).square()).sum((2, 3))


def scored(planner: Gradient, cost_fn: CostFn, box: ActionBox, start: WarmStart | None = None) -> list[Tensor]:
    """The candidates of each scoring."""
    seen: list[Tensor] = []

    def watch(action_BNHA: Tensor) -> Tensor:
        seen.append(action_BNHA.detach().clone())
        return cost_fn(action_BNHA)

    batch = 1 if start is None else len(start.mean_BHA)
    planner.plan(watch, noise_table([(0, row, 0) for row in range(batch)], planner, len(box.low_A)), box, start)
    return seen


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_every_candidate_moves_as_torchs_adam_moves_it_alone(schedule: str) -> None:
    planner = Gradient(horizon=3, candidates=4, iterations=12, learning_rate=0.3, schedule=schedule)
    seen = scored(planner, bowl, OPEN)
    assert len(seen) == 12
    for n in range(4):
        x_HA = (seen[0][0, n] / OPEN.std_A).requires_grad_()
        adam = torch.optim.Adam([x_HA], lr=0.3, eps=1e-12)
        for step in range(11):
            adam.param_groups[0]["lr"] = 0.3 * (0.5 + 0.5 * cos(pi * step / 11) if schedule == "cosine" else 1)
            adam.zero_grad()
            bowl((x_HA * OPEN.std_A)[None, None]).sum().backward()
            adam.step()
            torch.testing.assert_close(seen[step + 1][0, n], (x_HA * OPEN.std_A).detach(), rtol=1e-4, atol=1e-5)


def test_first_step_is_the_learning_rate_in_units_of_the_box() -> None:
    planner = Gradient(horizon=1, candidates=1, iterations=2, learning_rate=0.5)
    start, moved = scored(planner, lambda a: (a * torch.tensor([1e-6, -1e6])).sum((2, 3)), OPEN)
    assert start.flatten().tolist() == [1, -1]
    assert moved.flatten().tolist() == pytest.approx([1 - 0.5 * 4, -1 + 0.5 * 0.01])


def test_steps_end_at_the_box() -> None:
    planner = Gradient(horizon=2, candidates=3, iterations=4, learning_rate=3.0, schedule="constant")
    assert (scored(planner, bowl, BOX)[-1] == 1).all()


def test_starts_are_the_centre_the_seeds_and_draws_around_the_centre() -> None:
    planner = Gradient(horizon=2, candidates=5, iterations=1, initial_std=0.5, warm_std=0.25)
    noise = noise_table([(0, 0, 0)], planner, 2)[:, 0]
    (cold,) = scored(planner, bowl, OPEN)
    expected = OPEN.mean_A + 0.5 * OPEN.std_A * noise
    torch.testing.assert_close(cold[:, 1:], expected[:, 1:])
    assert torch.equal(cold[:, 0], OPEN.mean_A.expand(1, 2, 2))
    mean, seeds = torch.full((1, 2, 2), 7.0), torch.tensor([8.0, 9.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
    (warm,) = scored(planner, bowl, OPEN, WarmStart(mean, None, seeds))
    assert warm[0, :3, 0, 0].tolist() == [7, 8, 9]
    torch.testing.assert_close(warm[:, 3:], mean[:, None] + 0.25 * OPEN.std_A * noise[:, 3:])
    (wide,) = scored(planner, bowl, OPEN, WarmStart(mean, torch.full_like(mean, 2.0)))
    torch.testing.assert_close(wide[:, 1:], mean[:, None] + 2 * noise[:, 1:])


def test_noise_of_a_step_is_its_row_times_the_share_of_the_learning_rate_left() -> None:
    options = {"horizon": 2, "candidates": 3, "iterations": 4, "learning_rate": 0.2}
    noise = noise_table([(0, 0, 0)], (4, 3, 2), 2)[0]
    for schedule, shares in (("cosine", [1, 0.75, 0.25]), ("constant", [1, 1, 1])):
        seen = scored(Gradient(noise=0.1, schedule=schedule, **options), lambda a: 0 * bowl(a), OPEN)
        for step, share in enumerate(shares):
            jump = (seen[step + 1] - seen[step])[0] / OPEN.std_A
            torch.testing.assert_close(jump, 0.1 * share * noise[step + 1], rtol=1e-3, atol=1e-5)


def test_learning_rates_by_hand() -> None:
    assert learning_rates(0.4, 4, "cosine") == pytest.approx([0.4, 0.2 * (1 + 0.5**0.5), 0.2, 0.2 * (1 - 0.5**0.5)])
    assert learning_rates(0.4, 3, "constant") == [0.4] * 3
    assert learning_rates(0.4, 0, "cosine") == []


def test_executes_the_cheapest_sequence_ever_scored() -> None:
    """Steps of four times the box's std only ever spoil what the start, the optimum, had."""
    planner = Gradient(horizon=2, candidates=8, iterations=6, learning_rate=4.0, schedule="constant")
    start = WarmStart(torch.full((1, 2, 2), 3.0) + 1e-3)
    plan = planner.plan(bowl, noise_table([(0, 0, 0)], planner, 2), OPEN, start)
    assert torch.equal(plan.action_BHA, start.mean_BHA)
    assert plan.best_cost_BI[0, 1:].min() > 100 * plan.cost_B.item()
    assert torch.equal(plan.cost_B, plan.best_cost_BI.amin(1))
    # Spread: population std over candidates in units of the box, which draws of std 0.5 with one kept mean come near.
    assert 0.2 < plan.spread_BI[0, 0] < 0.7


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_candidate_that_fails_leaves_the_others_alone(bad: float) -> None:
    action_BNHA = torch.linspace(-2, 2, 24).reshape(1, 6, 2, 2)

    def cost(action_BNHA: Tensor) -> Tensor:
        cost_BN = bowl(action_BNHA)
        return torch.cat([cost_BN[:, :2], cost_BN[:, 2:3] * bad, cost_BN[:, 3:]], 1)

    clean, broken = (descend(fn, action_BNHA, OPEN, [0.1] * 5) for fn in (bowl, cost))
    others = [0, 1, 3, 4, 5]
    assert torch.equal(clean.action_BNHA[:, others], broken.action_BNHA[:, others])
    assert torch.equal(broken.action_BNHA[:, 2], action_BNHA[:, 2]), "it stays where it failed"
    assert broken.action_BNHA.isfinite().all()


def test_an_infinite_gradient_of_a_finite_cost_moves_nothing() -> None:
    action_BNHA = torch.tensor([0.0, 4.0]).reshape(1, 2, 1, 1)
    cost_BN, gradient_BNHA = differentiate(lambda a: a.sqrt().sum((2, 3)), action_BNHA)
    assert cost_BN.tolist() == [[0, 2]]
    assert gradient_BNHA.flatten().tolist() == [0, 0.25]


def test_a_finite_gradient_of_an_infinite_cost_moves_nothing() -> None:
    action_BNHA = torch.zeros(1, 2, 1, 1, requires_grad=True)
    cost_BN = action_BNHA.sum((2, 3)) + torch.tensor([torch.inf, 1.0])
    assert slope(cost_BN, action_BNHA).flatten().tolist() == [0, 1]


@pytest.mark.parametrize(
    "cost",
    [
        lambda a: bowl(a.detach()),
        lambda a: torch.full(a.shape[:2], 7.0),
        lambda a: torch.full(a.shape[:2], 7.0, requires_grad=True) * 2,
        lambda a: torch.from_numpy(bowl(a.detach()).numpy()),
    ],
    ids=["detached", "constant", "of other things", "numpy"],
)
def test_a_cost_without_gradient_is_refused(cost: CostFn) -> None:
    planner = Gradient(horizon=2, candidates=3, iterations=2)
    with pytest.raises(ValueError, match=r"no gradient by the actions; .* plan with cem or mppi, or remove"):
        planner.plan(cost, noise_table([(0, 0, 0)], planner, 2), OPEN)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_plans_in_every_gradient_mode_and_leaves_no_graph(mode: Callable[[], torch.no_grad]) -> None:
    planner = Gradient(horizon=2, candidates=3, iterations=4)
    weight = torch.ones((), requires_grad=True)

    def plan() -> Plan:
        noise = noise_table([(0, 0, 0)], planner, 2)
        return planner.plan(lambda a: weight * bowl(a), noise, OPEN, WarmStart(torch.zeros(1, 2, 2)))

    expected = plan()
    with mode():
        found = plan()
    assert torch.equal(found.action_BHA, expected.action_BHA)
    for tensor in (found.action_BHA, found.cost_B, found.mean_BHA, found.best_cost_BI, found.spread_BI):
        assert not tensor.requires_grad and tensor.grad_fn is None
    assert weight.grad is None


def test_scale_and_offset_of_the_cost_do_not_matter() -> None:
    toy, planner = TOYS["point mass"], Gradient(horizon=4, candidates=8, iterations=20)
    cost_fn, noise = toy.cost([0, 1]), noise_table([(0, 0, 0), (0, 1, 0)], planner, 2).double()
    plan = planner.plan(cost_fn, noise, toy.box)
    for scale in (1e-6, 1e6):
        other = planner.plan(lambda a, scale=scale: scale * cost_fn(a) - 1e-3, noise, toy.box)
        torch.testing.assert_close(other.action_BHA, plan.action_BHA, atol=1e-4, rtol=0)


def test_trace_is_the_recorded_one() -> None:
    """Golden: renew only when a change of numbers is the intention."""
    toy, row = TOYS["around a disc"], 3
    planner = Gradient(horizon=4, candidates=8, iterations=6, noise=0.1)
    plan = planner.plan(toy.cost([row]), noise_table([(0, row, 0)], planner, 2), toy.box)
    assert plan.best_cost_BI[0].tolist() == pytest.approx(
        [0.62447, 0.73319, 0.59497, 0.36964, 0.21636, 0.19394], abs=1e-3
    )
    assert plan.spread_BI[0].tolist() == pytest.approx([0.65570, 0.59281, 0.55327, 0.52108, 0.49892, 0.49525], abs=1e-3)
    assert plan.action_BHA[0, 0].tolist() == pytest.approx([-0.02242, -0.27862], abs=1e-3)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("horizon", 0, "at least 1"),
        ("candidates", 0, "at least 1"),
        ("iterations", -1, "at least 1"),
        ("learning_rate", 0.0, "positive and finite"),
        ("learning_rate", torch.nan, "positive and finite"),
        ("initial_std", -1.0, "positive and finite"),
        ("warm_std", torch.inf, "positive and finite"),
        ("noise", -0.1, "0 or more, and finite"),
        ("noise", torch.nan, "0 or more, and finite"),
        ("schedule", "linear", "'constant' or 'cosine'"),
    ],
)
def test_bad_config_value_is_refused(field: str, value: object, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"Gradient: {field} is {value!r}; it must be {allowed}"):
        Gradient(**{field: value})
