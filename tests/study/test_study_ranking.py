"""Rank correlation, the candidates of a search, and what they cost in the simulator."""

import numpy as np
import pytest
import torch

import envs
from lewm.checkpoint import Checkpoint
from lewm.data.store import Store
from lewm.evaluate.manifest import GoalSet, make_manifest
from lewm.planning.costs import CostConfig
from lewm.study.ranking import (
    ELITES,
    MIDDLE,
    RANDOM,
    Candidates,
    RankingConfig,
    Watched,
    measure,
    ranking_row,
    ranks,
    spearman,
    true_cost,
)
from lewm.study.subject import make_subject
from planners import CEM, ActionBox, noise_table

SEARCH = CEM(candidates=12, iterations=5, elites=4, horizon=2)


def test_ranks_share_ties() -> None:
    np.testing.assert_array_equal(ranks(np.array([3.0, 1.0, 3.0, 2.0])), [2.5, 0, 2.5, 1])


def test_spearman_of_small_samples() -> None:
    """1 - 6 sum d^2 / (n (n^2 - 1)) without ties; d = (0, 1, 1, 0) and (3, 1, 1, 3)."""
    one = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(one, np.array([10.0, 30.0, 20.0, 100.0])) == pytest.approx(1 - 6 * 2 / 60)
    assert spearman(one, np.exp(-one)) == pytest.approx(-1)
    assert spearman(one, one**3) == pytest.approx(1)
    assert np.isnan(spearman(one, np.ones(4)))


def test_a_cost_equal_to_the_true_cost_orders_perfectly() -> None:
    true = np.random.default_rng(0).random((6, 20))
    episode = np.arange(6) // 2
    for cost, rho in ((true, 1.0), (-true, -1.0), (np.exp(true), 1.0)):
        row = ranking_row("t", "ahead 25", Candidates("c", RANDOM, 0, cost, true), episode, 0.05, 0)
        assert row.rho is not None
        assert (row.rho.value, row.rho.low, row.rho.high) == pytest.approx((rho, rho, rho))
        assert (row.problems, row.level, row.rho.n, row.candidates) == (6, 0, 3, 20)
        assert row.true_std == pytest.approx(np.median(true.std(1)))


def test_problems_without_an_order_are_left_out_and_counted() -> None:
    true = np.random.default_rng(0).random((4, 20))
    true[1] = 0.3
    row = ranking_row("t", "g", Candidates("c", RANDOM, 0, np.where(true == 0.3, 1, true), true), np.arange(4), 0.05, 0)
    assert (row.problems, row.level) == (3, 1) and row.rho is not None and row.rho.value == pytest.approx(1)
    level = ranking_row("t", "g", Candidates("c", RANDOM, 0, true, np.ones_like(true)), np.arange(4), 0.05, 0)
    assert (level.problems, level.level, level.rho) == (0, 4, None)


def test_the_watched_search_is_the_search() -> None:
    box = ActionBox.from_bounds(-torch.ones(2), torch.ones(2))
    noise = noise_table([(0, 0, 0), (0, 1, 0)], SEARCH, 2)
    watched = Watched(SEARCH)

    def cost(action: torch.Tensor) -> torch.Tensor:
        return (action - 0.3).square().sum((-2, -1))

    plan, plain = watched.plan(cost, noise, box), SEARCH.plan(cost, noise, box)
    assert torch.equal(plan.action_BHA, plain.action_BHA)
    kinds = watched.kinds()
    assert {kind: (i, tuple(a.shape)) for kind, (i, a, _) in kinds.items()} == {
        RANDOM: (0, (2, 12, 2, 2)), MIDDLE: (2, (2, 12, 2, 2)), ELITES: (4, (2, 4, 2, 2)),
    }  # fmt: skip
    for _, action, scored in kinds.values():
        torch.testing.assert_close(cost(action), scored)
    torch.testing.assert_close(kinds[ELITES][2][:, 0], plain.best_cost_BI[:, -1])
    assert (kinds[ELITES][2].diff(dim=1) >= 0).all()


@pytest.mark.parametrize("reduce, rule", [("terminal", lambda d: d[-1]), ("sum", np.mean), ("min", np.min)])
def test_the_true_cost_is_that_of_executing_the_plan(tiny_store: Store, reduce: str, rule) -> None:
    problem = make_manifest(GoalSet("g", "ahead", 10, 10, 1), tiny_store, np.arange(8), 0).problems[0]
    task = envs.make("two_room", **tiny_store.meta.settings)
    plans = torch.rand(3, 2, 10, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = true_cost(task, problem, plans, CostConfig({"latent_l2": 1.0}, reduce), 5)
    for plan, cost in zip(plans, found, strict=True):
        task.set_state(np.array(problem.start_state))
        distance = []
        for action in plan.reshape(10, 2).numpy():
            task.advance(action)
            distance.append(float(task.distance(task.state, np.array(problem.goal_state))))
        assert cost == pytest.approx(rule(distance[4::5]), abs=1e-9)


def test_costs_are_those_of_the_checkpoint(tiny_checkpoint: Checkpoint, tiny_store: Store) -> None:
    subject = make_subject(tiny_checkpoint, tiny_store)
    config = RankingConfig(problems=4, offset=10, planner=SEARCH)
    found = measure(subject, config, quiet=True)
    assert [(r.cost, r.plans, r.candidates) for r in found.rows] == [
        (cost, kind, count)
        for cost in ("latent_l2", "cost_to_go")
        for kind, count in ((RANDOM, 12), (MIDDLE, 12), (ELITES, 4))
    ]
    first, second = found.candidates[0], found.candidates[3]
    np.testing.assert_array_equal(first.true_PN, second.true_PN)  # the first draws are the same for every cost
    assert measure(subject, config, quiet=True).rows == found.rows
    bare = make_subject(
        Checkpoint(tiny_checkpoint.model, None, tiny_checkpoint.origin, tiny_checkpoint.path), tiny_store
    )
    only = measure(bare, config, quiet=True)
    assert {row.cost for row in only.rows} == {"latent_l2"} and "no cost-to-go" in only.notes[0]
    with pytest.raises(ValueError, match="has no cost-to-go head"):
        measure(bare, RankingConfig(problems=4, offset=10, costs=("cost_to_go",), planner=SEARCH), quiet=True)
