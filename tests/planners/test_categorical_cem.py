"""CategoricalCEM against exhaustive search and arithmetic by hand."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from planners import CEM, ActionBox, CategoricalCEM, WarmStart, noise_table
from planners.categorical_cem import draw, frequencies, uniform

BOX = ActionBox.discrete((2, 4))


def table_cost(choices: tuple[int, ...], horizon: int, seed: int) -> tuple[Tensor, Tensor]:
    """(prices, best_HA): a random price for every sequence, pulled towards a random good one, and the cheapest."""
    generator = torch.Generator().manual_seed(seed)
    sizes = choices * horizon
    target = torch.tensor([int(torch.randint(n, (), generator=generator)) for n in sizes])
    every = torch.tensor(list(product(*map(range, sizes))))
    wrong = (every != target).sum(1)
    price = (wrong + 1.5 * torch.rand(len(every), generator=generator)).reshape(sizes)
    return price, every[price.flatten().argmin()].reshape(horizon, -1)


@pytest.mark.parametrize(("choices", "horizon"), [((2, 4), 3), ((5,), 4), ((2, 3, 7), 2)])
def test_finds_what_exhaustive_search_finds(choices: tuple[int, ...], horizon: int) -> None:
    """On 20 problems each, with a tenth or more of all sequences scored; at least 18 to the letter."""
    planner = CategoricalCEM(horizon=horizon, candidates=64, iterations=6, elites=8)
    found = 0
    for seed in range(20):
        price, best_HA = table_cost(choices, horizon, seed)
        plan = planner.plan(
            lambda a, price=price: price[tuple(a.flatten(2).long().unbind(2))],
            noise_table([(seed,)], planner, len(choices)),
            ActionBox.discrete(choices),
        )
        assert plan.cost_B.item() < price.min() + 1.0
        found += int(torch.equal(plan.action_BHA[0].long(), best_HA))
    assert found >= 18


def test_draws_follow_the_probabilities_and_never_pass_the_last_choice() -> None:
    prob_BHAC = torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]])[None, None]
    share = torch.arange(1000.0)[None, :, None, None].add(0.5).div(1000).expand(1, 1000, 1, 2)
    action = draw(prob_BHAC, share, torch.tensor([1.0, 3.0]))
    assert [(action[..., 0] == c).sum().item() for c in range(4)] == [900, 100, 0, 0]
    assert [(action[..., 1] == c).sum().item() for c in range(4)] == [100, 200, 300, 400]
    extremes = draw(prob_BHAC * 0.99, torch.tensor([0.0, 1.0])[None, :, None, None].expand(1, 2, 1, 2), BOX.high_A)
    assert extremes[0, :, 0].tolist() == [[0, 0], [1, 3]]
    never = torch.tensor([[0.0, 1.0, 0, 0], [0.0, 0.0, 1.0, 0]])[None, None]
    assert draw(never, share[:, :1] * 0, BOX.high_A).flatten().tolist() == [1, 2], "what has no probability"


def test_first_candidates_are_uniform_over_unequal_choices() -> None:
    planner = CategoricalCEM(horizon=1, candidates=4000, iterations=1, keep_mode=False)
    seen: list[Tensor] = []

    def cost(action_BNHA: Tensor) -> Tensor:
        seen.append(action_BNHA)
        return action_BNHA.sum((2, 3))

    planner.plan(cost, noise_table([(0,)], planner, 2), BOX)
    for entry, choices in enumerate((2, 4)):
        share = [(seen[0][..., entry] == c).float().mean().item() for c in range(choices)]
        assert sum(share) == pytest.approx(1)
        assert share == pytest.approx([1 / choices] * choices, abs=0.03), "three sigma of 4000 draws"
    torch.testing.assert_close(uniform(BOX, BOX.high_A), torch.tensor([[0.5, 0.5, 0, 0], [0.25] * 4]))


def test_two_iterations_by_hand() -> None:
    """One entry of 2 choices. Shares 0.2, 0.4, 0.6, 0.9 draw 0, 0, 1, 1; the elites are the two ones.

    p(1) = 0.25 x 0.5 + 0.75 x 1 = 0.875; drawn with p(0) = 0.8 x 0.125 + 0.2 x 0.5 = 0.2: the same shares now give
    1 (0.2 reaches the edge), 1, 1, 1.
    """
    planner = CategoricalCEM(
        horizon=1, candidates=4, iterations=2, elites=2, momentum=0.25, uniform_mix=0.2, keep_mode=False, execute="mode"
    )
    noise = torch.special.ndtri(torch.tensor([0.2001, 0.4, 0.6, 0.9])).reshape(1, 1, 4, 1, 1).expand(1, 2, 4, 1, 1)
    seen: list[Tensor] = []

    def cost(action_BNHA: Tensor) -> Tensor:
        seen.append(action_BNHA.flatten())
        return 1 - action_BNHA.sum((2, 3))

    plan = planner.plan(cost, noise, ActionBox.discrete((2,)))
    assert [drawn.tolist() for drawn in seen] == [[0, 0, 1, 1], [1, 1, 1, 1], [1]]
    entropy = -(0.2 * math.log2(0.2) + 0.8 * math.log2(0.8))
    assert plan.spread_BI[0].tolist() == pytest.approx([1, entropy])
    assert plan.best_cost_BI.tolist() == [[0, 0]]
    assert plan.cost_B.item() == 0
    assert plan.mean_BHA.item() == 1


def test_frequencies_count_elites() -> None:
    action = torch.tensor([[0.0, 3.0], [1.0, 3.0], [0.0, 1.0]]).reshape(1, 3, 1, 2)
    expected = torch.tensor([[2 / 3, 1 / 3, 0, 0], [0, 1 / 3, 0, 2 / 3]])
    torch.testing.assert_close(frequencies(action, 4)[0, 0], expected)


def lock(action_BNHA: Tensor) -> Tensor:
    """A lock of 6 entries x 4 choices: every right number counts only when all before it are right.

    A wrong last number is a little cheaper than the right one until the lock opens: the first elites agree on it.
    """
    right = action_BNHA[:, :, 0] == torch.tensor([3.0, 1, 2, 0, 3, 2])
    opened = right.cumprod(-1).sum(-1).to(action_BNHA)
    lure = 0.5 * (action_BNHA[:, :, 0, -1] == 0)
    return 6 - opened - torch.where(right.all(-1), torch.zeros_like(opened), lure)


def test_without_a_uniform_share_the_search_collapses_before_it_opens_the_lock() -> None:
    keys = [(row,) for row in range(20)]
    opened = {}
    for mix in (0.0, CategoricalCEM().uniform_mix):
        planner = CategoricalCEM(horizon=1, candidates=64, iterations=15, elites=6, momentum=0.0, uniform_mix=mix)
        plan = planner.plan(lock, noise_table(keys, planner, 6), ActionBox.discrete((4,) * 6))
        opened[mix] = (plan.cost_B == 0).sum().item()
    assert opened[0.0] <= 8, opened
    assert opened[CategoricalCEM().uniform_mix] >= 18, opened


def test_warm_start_shifts_probability_to_its_choices() -> None:
    """warm_weight 0.6 on choice 2 of 4: 0.6 + 0.4 / 4 = 0.7; the other entry, 1 of 2, 0.6 + 0.4 / 2 = 0.8."""
    planner = CategoricalCEM(horizon=2, candidates=4000, iterations=1, uniform_mix=0.0, warm_weight=0.6, keep_mode=True)
    seen: list[Tensor] = []

    def cost(action_BNHA: Tensor) -> Tensor:
        seen.append(action_BNHA)
        return action_BNHA.sum((2, 3))

    start = WarmStart(torch.tensor([0.8, 2.3]).expand(1, 2, 2))
    planner.plan(cost, noise_table([(0,)], planner, 2), BOX, start)
    assert (seen[0][0, 0] == torch.tensor([1.0, 2.0])).all(), "the warm start, rounded, is candidate 0"
    assert (seen[0][..., 0] == 1).float().mean((0, 1)).tolist() == pytest.approx([0.8, 0.8], abs=0.02)
    assert (seen[0][..., 1] == 2).float().mean((0, 1)).tolist() == pytest.approx([0.7, 0.7], abs=0.02)
    assert (seen[0][..., 1] == 0).float().mean((0, 1)).tolist() == pytest.approx([0.1, 0.1], abs=0.02)


def test_best_and_mode_differ_as_they_say() -> None:
    """Elites (0, 1), (1, 0), (1, 1) in turn: the mode is (1, 1), which costs 5, the best candidate (0, 1) costs 0."""
    shares = torch.tensor([[0.2, 0.7], [0.7, 0.2], [0.7, 0.7]]).reshape(1, 1, 3, 1, 2)
    options = {"horizon": 1, "candidates": 3, "iterations": 1, "elites": 3, "momentum": 0.0, "keep_mode": False}

    def cost(action_BNHA: Tensor) -> Tensor:
        return (5 * action_BNHA[..., 0, 0] * action_BNHA[..., 0, 1]) + action_BNHA[..., 0, 0]

    box = ActionBox.discrete((2, 2))
    best, mode = (
        CategoricalCEM(execute=how, **options).plan(cost, torch.special.ndtri(shares), box) for how in ("best", "mode")
    )
    assert best.action_BHA.flatten().tolist() == [0, 1]
    assert best.cost_B.item() == 0
    assert mode.action_BHA.flatten().tolist() == mode.mean_BHA.flatten().tolist() == [1, 1]
    assert mode.cost_B.item() == 6


def test_boxes_of_the_other_kind_are_refused() -> None:
    discrete, continuous = CategoricalCEM(horizon=1), CEM(horizon=1)
    open_box = ActionBox.from_bounds(torch.zeros(2), torch.ones(2))
    noise = noise_table([(0,)], discrete, 2)
    with pytest.raises(ValueError, match=r"CategoricalCEM .*discrete.*"):
        discrete.plan(lambda a: a.sum((2, 3)), noise, open_box)
    with pytest.raises(ValueError, match=r"CEM .*discrete.*categorical_cem"):
        continuous.plan(lambda a: a.sum((2, 3)), noise, BOX)


def test_a_warm_start_with_a_std_is_refused() -> None:
    planner = CategoricalCEM(horizon=1)
    zeros = torch.zeros(1, 1, 2)
    with pytest.raises(ValueError, match=r"warm start has a std, but categorical_cem knows no width: leave std_BHA"):
        planner.plan(lambda a: a.sum((2, 3)), noise_table([(0,)], planner, 2), BOX, WarmStart(zeros, zeros + 1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("horizon", 0),
        ("candidates", 0),
        ("iterations", -1),
        ("elites", 0),
        ("elites", 301),
        ("momentum", 1.0),
        ("uniform_mix", -0.1),
        ("uniform_mix", 1.0),
        ("warm_weight", 1.1),
        ("warm_weight", math.nan),
        ("execute", "mean"),
    ],
)
def test_bad_config_value_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"CategoricalCEM: {field} is {value!r}; it must"):
        CategoricalCEM(**{field: value})  # type: ignore[arg-type]
