"""What the planners that fit a Gaussian to their good candidates promise beyond test_contract.py."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor
from toys import TOYS, Toy

from planners import CEM, ICEM, MPPI, ActionBox, WarmStart, noise_table

Gaussian = type[CEM] | type[MPPI]
ROWS = list(range(8))
gaussians = pytest.mark.parametrize("Planner", [CEM, MPPI])
execute_modes = pytest.mark.parametrize("execute", ["mean", "best"])


def make(Planner: Gaussian, toy: Toy, candidates: int, iterations: int, execute: Literal["mean", "best"] = "mean"):
    return Planner(horizon=toy.horizon, candidates=candidates, iterations=iterations, execute=execute)


def noise_for(planner: CEM | MPPI, rows: list[int] = ROWS, seed: int = 0) -> Tensor:
    return noise_table([(seed, row, 0) for row in rows], planner, 2)


@gaussians
def test_candidates_are_clipped_to_the_box(Planner: Gaussian) -> None:
    toy, seen = TOYS["beyond the box"], []

    def cost(action_BNHA: Tensor) -> Tensor:
        seen.append(action_BNHA.clone())
        return toy.cost(ROWS)(action_BNHA)

    planner = make(Planner, toy, 256, 2)
    planner.plan(cost, noise_for(planner), toy.box, WarmStart(torch.full((8, toy.horizon, 2), 1.5)))
    assert (seen[0] == toy.box.high_A).float().mean() > 0.5, "clipped candidates lie on the bound"


@gaussians
def test_bounds_mean_and_std_are_those_of_each_action_entry(Planner: Gaussian) -> None:
    box = ActionBox.from_bounds(torch.tensor([-100.0, 0.001]), torch.tensor([300.0, 0.003]))
    goal = torch.tensor([250.0, 0.0012])
    planner = Planner(horizon=2, candidates=256, iterations=12)
    plan = planner.plan(lambda a: ((a - goal) / box.std_A).square().sum((2, 3)), noise_for(planner, [0]), box)
    torch.testing.assert_close(plan.action_BHA[0] / box.std_A, (goal / box.std_A).expand(2, 2), atol=0.05, rtol=0)


@gaussians
@execute_modes
def test_noise_of_every_iteration_matters(Planner: Gaussian, execute: Literal["mean", "best"]) -> None:
    toy = TOYS["point mass"]
    planner = make(Planner, toy, 256, 3, execute)
    noise = noise_for(planner)
    plan = planner.plan(toy.cost(ROWS), noise, toy.box)
    for i in range(3):
        other = noise.clone()
        other[:, i] *= -1
        assert not torch.equal(plan.action_BHA, planner.plan(toy.cost(ROWS), other, toy.box).action_BHA), i


@gaussians
def test_where_all_fail_the_search_does_not_narrow(Planner: Gaussian) -> None:
    toy = TOYS["point mass"]
    planner = make(Planner, toy, 64, 4)
    start = WarmStart(torch.full((8, toy.horizon, 2), 1.5))
    plan = planner.plan(lambda a: torch.full(a.shape[:2], torch.nan), noise_for(planner), toy.box, start)
    assert (plan.spread_BI == plan.spread_BI[0, 0]).all()
    assert (plan.mean_BHA == 1.5).all()
    assert (plan.action_BHA == 1).all(), "the warm start, clipped to the box"


@gaussians
def test_scale_and_offset_of_the_cost_do_not_matter(Planner: Gaussian) -> None:
    toy = TOYS["point mass"]
    planner = make(Planner, toy, 64, 4)
    cost_fn, noise = toy.cost(ROWS), noise_for(planner).double()
    plan = planner.plan(cost_fn, noise, toy.box)
    other = planner.plan(lambda a: 1e6 * cost_fn(a) - 1e5, noise, toy.box)
    torch.testing.assert_close(other.action_BHA, plan.action_BHA, atol=1e-6, rtol=0)


@gaussians
@pytest.mark.parametrize("toy_name", ["point mass", "valley"])
def test_best_executes_the_best_candidate_scored(Planner: Gaussian, toy_name: str) -> None:
    toy = TOYS[toy_name]
    planner = make(Planner, toy, 256, 12, "best")
    plan = planner.plan(toy.cost(ROWS), noise_for(planner), toy.box)
    assert torch.equal(plan.cost_B, plan.best_cost_BI.amin(1))


@gaussians
def test_keep_mean_scores_the_warm_start(Planner: Gaussian) -> None:
    toy = TOYS["around a disc"]
    planner = make(Planner, toy, 256, 12, "best")
    optimum_BHA = planner.plan(toy.cost(ROWS), noise_for(planner), toy.box).action_BHA
    small = make(Planner, toy, 64, 1, "best")
    kept = small.plan(toy.cost(ROWS), noise_for(small, seed=1), toy.box, WarmStart(optimum_BHA))
    assert (kept.cost_B <= toy.cost(ROWS)(optimum_BHA[:, None])[:, 0]).all()


@gaussians
def test_std_of_a_warm_start_is_the_first_spread(Planner: Gaussian) -> None:
    toy = TOYS["valley"]  # a box of std 2
    planner = make(Planner, toy, 64, 2)
    mean = torch.zeros(8, toy.horizon, 2)
    spreads = []
    for start in (None, WarmStart(mean), WarmStart(mean, torch.full_like(mean, 0.6))):
        spreads.append(planner.plan(toy.cost(ROWS), noise_for(planner), toy.box, start).spread_BI[:, 0])
    for spread_B, expected in zip(spreads, (planner.initial_std, planner.warm_std, 0.6 / 2), strict=True):
        torch.testing.assert_close(spread_B, torch.full((8,), expected))


@gaussians
def test_trace_tells_the_search(Planner: Gaussian) -> None:
    toy = TOYS["point mass"]
    planner = make(Planner, toy, 256, 12)
    plan = planner.plan(toy.cost(ROWS), noise_for(planner), toy.box)
    assert (plan.spread_BI[:, -1] < 0.5).all(), "the search narrows"
    assert (plan.spread_BI >= planner.min_std - 1e-6).all()
    assert (plan.best_cost_BI[:, -1] < plan.best_cost_BI[:, 0]).all()


@gaussians
def test_inference_mode_changes_nothing(Planner: Gaussian) -> None:
    toy = TOYS["point mass"]
    planner = make(Planner, toy, 64, 3)
    plan = planner.plan(toy.cost(ROWS), noise_for(planner), toy.box)
    with torch.inference_mode():
        again = planner.plan(toy.cost(ROWS), noise_for(planner), toy.box)
    assert torch.equal(plan.action_BHA, again.action_BHA)


@gaussians
@pytest.mark.parametrize(
    ("field", "value"),
    [
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
def test_bad_config_value_is_refused(Planner: Gaussian, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{Planner.__name__}: {field} is {value!r}; it must"):
        Planner(**{field: value})


@pytest.mark.parametrize("Planner", [CEM, MPPI, ICEM])
def test_seeds_are_candidates_of_the_first_iteration_alone(Planner: type[CEM] | type[MPPI] | type[ICEM]) -> None:
    """A seed that costs more than all else, so that no planner keeps it."""
    toy, scored = TOYS["point mass"], []
    seed = torch.full((1, 1, toy.horizon, 2), 0.987)

    def cost(action_BNHA: Tensor) -> Tensor:
        scored.append((action_BNHA == seed).all((2, 3)).sum().item())
        return action_BNHA.square().sum((2, 3))

    planner = Planner(horizon=toy.horizon, candidates=40, iterations=3, **({} if Planner is MPPI else {"elites": 5}))
    start = WarmStart(torch.zeros(1, toy.horizon, 2), None, seed)
    planner.plan(cost, noise_table([(0,)], planner, 2), toy.box, start)
    assert scored[:3] == [1, 0, 0]


@gaussians
def test_seeds_can_be_candidates_of_every_iteration(Planner: Gaussian) -> None:
    """A seed that is kept, whatever it costs."""
    toy, scored = TOYS["point mass"], []
    seed = torch.full((1, 1, toy.horizon, 2), 0.987)

    def cost(action_BNHA: Tensor) -> Tensor:
        scored.append((action_BNHA == seed).all((2, 3)).sum().item())
        return action_BNHA.square().sum((2, 3))

    planner = Planner(horizon=toy.horizon, candidates=40, iterations=3, keep_seeds=True)
    start = WarmStart(torch.zeros(1, toy.horizon, 2), None, seed)
    planner.plan(cost, noise_table([(0,)], planner, 2), toy.box, start)
    assert scored[:3] == [1, 1, 1]
