"""The fast path is the plain one: same costs, same gradients, same elites, less arithmetic.

Equality is asserted in double precision, where a term that is folded wrongly cannot hide behind rounding.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from toy_models import FACTS, stir, toy_checkpoint, toy_head, toy_readout

from lewm.cost_to_go import CostToGo
from lewm.nets.blocks import BatchNorm
from lewm.nets.encoders import ConvConfig
from lewm.nets.predictors import (
    PREDICTORS,
    ACConfig,
    AdaLNConfig,
    DinoWMConfig,
    MLPConfig,
    PredictorConfig,
    RotaryConfig,
    build_predictor,
)
from lewm.planning.agent import Agent
from lewm.planning.costs import DISTANCES, CostConfig, GoalCost, Situation
from lewm.planning.fast_block import attend_many, attend_one
from lewm.planning.fast_rollout import FAST_PREDICTORS, FastModel, prepare
from lewm.planning.fast_transformer import FastTransformer
from lewm.world_model import ModelConfig, WorldModel
from planners import CEM, noise_table

D, B, N = 8, 2, 24
ADALN = AdaLNConfig(layers=3, heads=2, head_dim=4, mlp_hidden=16, action_hidden=12, projector_hidden=16)
ROTARY = RotaryConfig(context=4, width=16, layers=2, heads=2, mlp_ratio=2)
AC = ACConfig(context=4, width=28, layers=2, heads=2, mlp_ratio=2)
DINO_WM = DinoWMConfig(layers=2, heads=2, head_dim=4, mlp_hidden=16)
# Small configs per row of PREDICTORS with the tokens per frame to test; a new row must be added here.
SMALL: dict[str, list[tuple[PredictorConfig, int]]] = {
    "mlp": [(MLPConfig(width=16, depth=3), 1), (MLPConfig(width=16, depth=1, link="relu"), 1)],
    "adaln": [
        (ADALN, 1),
        (ADALN, 2),
        (replace(ADALN, action_smoothed=3, norm_eps=1e-2, link="relu"), 1),
        (replace(ADALN, history=1), 1),
    ],
    "rotary": [
        (ROTARY, 1),
        (ROTARY, 3),
        (replace(ROTARY, link="relu"), 1),
        (replace(ROTARY, positions="axial"), 16),
    ],
    "ac": [(AC, 1), (AC, 4), (replace(AC, compat=True, normalise=False, grid=3, link="relu"), 4)],
    "dino_wm": [(DINO_WM, 1), (DINO_WM, 3), (replace(DINO_WM, link="relu"), 1)],
}
CASES = [case for cases in SMALL.values() for case in cases]
IDS = [f"{name}{i}" for name, cases in SMALL.items() for i in range(len(cases))]


def world(config: PredictorConfig, tokens: int = 1, dtype: torch.dtype = torch.float64) -> WorldModel:
    """A world model whose every number matters; the encoder is not used, so it may have another K."""
    torch.manual_seed(0)
    encoder = ConvConfig(latent_dim=D, channels=(4, 4, 4), link=config.link)
    model = WorldModel(ModelConfig(encoder, config, frame_skip=2), FACTS)
    model.tokens = tokens
    model.predictor = build_predictor(config, D, model.action_dim, tokens)
    for seed in range(3):
        stir(model.predictor, seed)
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval().requires_grad_(False).to(dtype)


def distance_head(model: WorldModel, dtype: torch.dtype = torch.float64) -> CostToGo:
    """A head that reads its goal and scales its input."""
    head, generator = toy_head(model), torch.Generator().manual_seed(4)
    for seed in range(3):
        stir(head, seed)
    head.mean_D.normal_(generator=generator)
    head.std_D.uniform_(0.5, 2, generator=generator)
    return head.to(dtype)


def problem(
    model: WorldModel, seen: int, horizon: int, dtype: torch.dtype = torch.float64, candidates: int = N
) -> tuple[Situation, Tensor, Tensor]:
    """Situation, goal_BKD and action_BNHA."""
    generator = torch.Generator().manual_seed(10 * seen + horizon)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    latent, past = draw(B, seen, model.tokens, D), draw(B, seen - 1, model.action_dim)
    measured = draw(B, D - model.picture_dim)
    return (
        Situation(latent, past, goal_measured_BM=measured),
        draw(B, model.tokens, D),
        draw(B, candidates, horizon, model.action_dim),
    )


def both(model: WorldModel, head: CostToGo | None, config: CostConfig, seen: int, horizon: int) -> tuple[Tensor, ...]:
    """Plain and fast costs, and their gradients by the actions."""
    situation, goal, action = problem(model, seen, horizon)
    found = []
    for fast in (None, prepare(model, head)):
        leaf = action.clone().requires_grad_()
        cost = GoalCost(model, head, config, situation, goal, fast, toy_readout(model).to(leaf))(leaf)
        found += [cost.detach(), *torch.autograd.grad(cost.square().sum(), leaf)]
    assert found[0].std() > 1e-3 and found[1].abs().max() > 1e-3
    return found[0], found[2], found[1], found[3]


def assert_equal(plain: Tensor, fast: Tensor) -> None:
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9 * plain.abs().max().item())


def test_every_predictor_is_made_ready() -> None:
    assert set(FAST_PREDICTORS) == set(PREDICTORS) == set(SMALL)


@pytest.mark.parametrize(("config", "tokens"), CASES, ids=IDS)
@pytest.mark.parametrize("seen", [1, 2, 3, 5])
@pytest.mark.parametrize("horizon", [1, 2, 6])
def test_costs_and_gradients_are_the_plain_ones(config: PredictorConfig, tokens: int, seen: int, horizon: int) -> None:
    """Histories below, at and beyond the context; horizons that stay inside it and that make the window slide."""
    model = world(config, tokens)
    cost, fast_cost, gradient, fast_gradient = both(model, None, CostConfig({"latent_l2": 1.0}), seen, horizon)
    assert_equal(cost, fast_cost)
    assert_equal(gradient, fast_gradient)


@pytest.mark.parametrize(
    "terms", [{name: 1.0} for name in DISTANCES] + [{"cost_to_go": 0.5, "latent_l1": 2.0}], ids=str
)
@pytest.mark.parametrize("reduce", ["terminal", "sum", "min", "discounted"])
@pytest.mark.parametrize(("config", "tokens"), [CASES[0], (ROTARY, 3)], ids=["mlp", "rotary"])
def test_every_distance_and_reduction(config: PredictorConfig, tokens: int, terms: dict, reduce: str) -> None:
    model = world(config, tokens)
    model.picture_dim = D - 2  # as if the two last entries were measured
    settings = CostConfig(terms, reduce, action_penalty=0.1)
    cost, fast_cost, gradient, fast_gradient = both(model, distance_head(model), settings, 1, 3)
    assert_equal(cost, fast_cost)
    assert_equal(gradient, fast_gradient)


@pytest.mark.parametrize(("config", "tokens"), [(AC, 4), (DINO_WM, 3)], ids=["ac", "dino_wm"])
@pytest.mark.parametrize("together", [False, True])
def test_frames_of_many_tokens_visited_again_as_one(config: PredictorConfig, tokens: int, together: bool) -> None:
    """What a GPU does once the window slides, with kept frames in one buffer and joined anew for gradients."""
    model = world(config, tokens)
    situation, goal, action = problem(model, 3, 6)
    fast = prepare(model)
    other = FastModel(replace(fast.rollout, together=together), None)  # type: ignore[type-var]
    expected = GoalCost(model, None, CostConfig({"latent_l2": 1.0}), situation, goal)(action)
    for wanted in (False, True):
        cost = GoalCost(model, None, CostConfig({"latent_l2": 1.0}), situation, goal, other)
        assert_equal(expected, cost(action.clone().requires_grad_(wanted)).detach())


@pytest.mark.parametrize("config", [ADALN, ROTARY, replace(ADALN, history=1)], ids=["adaln", "rotary", "one"])
@pytest.mark.parametrize("attend", [attend_one, attend_many])
@pytest.mark.parametrize("together", [False, True])
def test_the_order_of_work_does_not_change_the_costs(config: PredictorConfig, attend: Callable, together: bool) -> None:
    """What a GPU does with frames visited again, on the CPU, and the other way round."""
    model = world(config)
    situation, goal, action = problem(model, 2, 6)
    fast = prepare(model)
    assert isinstance(fast.rollout, FastTransformer)
    blocks = tuple(replace(block, attend=attend) for block in fast.rollout.blocks)
    other = FastModel(replace(fast.rollout, blocks=blocks, together=together), None)
    plain, changed = (
        GoalCost(model, None, CostConfig({"latent_l2": 1.0}), situation, goal, f)(action) for f in (None, other)
    )
    assert_equal(plain, changed)


@pytest.mark.parametrize(("config", "tokens"), CASES, ids=IDS)
def test_the_elites_survive_single_precision(config: PredictorConfig, tokens: int) -> None:
    """Within 1e-4 of the spread of the costs; nobody among the fast path's best ten is worse than the plain tenth."""
    model = world(config, tokens, torch.float32)
    head = distance_head(model, torch.float32)
    situation, goal, action = problem(model, 1, 5, torch.float32, candidates=200)
    plain, fast = (
        GoalCost(model, head, CostConfig(), situation, goal, f)(action) for f in (None, prepare(model, head))
    )
    allowed = 1e-4 * plain.std(1, keepdim=True) + 5e-7 * plain.abs()  # four roundings where costs hardly differ
    assert ((fast - plain).abs() < allowed).all()
    tenth = plain.sort(1).values[:, 9:10]
    assert (plain.gather(1, fast.topk(10, largest=False).indices) <= tenth + allowed.amax(1, keepdim=True)).all()


@pytest.mark.parametrize(("config", "tokens"), CASES, ids=IDS)
def test_problems_and_candidates_do_not_see_each_other(config: PredictorConfig, tokens: int) -> None:
    model = world(config, tokens)
    situation, goal, action = problem(model, 2, 4)
    fast = prepare(model, distance_head(model))
    cost = GoalCost(model, None, CostConfig(), situation, goal, fast)(action)
    alone = Situation(situation.latent_BTKD[1:], situation.past_BTA[1:])
    one = GoalCost(model, None, CostConfig(), alone, goal[1:], fast)(action[1:, 3:4])
    assert_equal(cost[1:, 3:4], one)


@pytest.mark.parametrize(("config", "tokens"), CASES, ids=IDS)
def test_nothing_given_is_changed_and_calls_repeat(config: PredictorConfig, tokens: int) -> None:
    model = world(config, tokens)
    head = distance_head(model)
    situation, goal, action = problem(model, 2, 4)
    given = [*model.state_dict().values(), *head.state_dict().values()]
    given += [situation.latent_BTKD, situation.past_BTA, goal, action]
    before = [x.clone() for x in given]
    cost = GoalCost(model, head, CostConfig(), situation, goal, prepare(model, head))
    first, _, again = cost(action), cost(-action), cost(action)
    assert torch.equal(first, again)
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))


def test_weights_are_copied_when_prepared() -> None:
    """A later training step reaches the fast path only through another `prepare`."""
    model = world(CASES[0][0])
    situation, goal, action = problem(model, 1, 2)
    fast, config = prepare(model), CostConfig({"latent_l2": 1.0})
    before = GoalCost(model, None, config, situation, goal, fast)(action)
    stir(model.predictor)
    assert torch.equal(GoalCost(model, None, config, situation, goal, fast)(action), before)
    assert not torch.allclose(GoalCost(model, None, config, situation, goal, prepare(model))(action), before)


HOISTED = 3 * 6 * 8 * 8 + 2 * 8 * 16 + 4 * 12 + 12 * 8
"""Multiply-adds per block of 4 actions in `ADALN`: modulations of 3 layers, projector, condition."""


def flops(model: WorldModel, fast: FastModel | None, horizon: int) -> int:
    """Floating point operations of the matrix products of one call, after everything shared is done."""
    situation, goal, action = problem(model, 1, horizon)
    cost = GoalCost(model, None, CostConfig({"latent_l2": 1.0}, "terminal"), situation, goal, fast)
    cost(action)
    with FlopCounterMode(display=False) as counter:
        cost(action)
    return counter.get_total_flops()


def test_rotary_work_grows_with_the_frames_and_not_with_their_square() -> None:
    """Inside the context every frame is visited once; the plain rollout visits 1 + 2 + ... + H."""
    model = world(replace(ROTARY, context=8))
    fast = prepare(model)
    steps = [flops(model, fast, horizon) for horizon in range(1, 8)]
    growth = [after - before for before, after in itertools.pairwise(steps)]
    assert set(growth[1:]) == {growth[1]}  # the first also keeps what a lone frame need not
    assert flops(model, None, 7) > 3 * steps[-1]


def test_ac_work_grows_with_the_frames_and_not_with_their_square() -> None:
    """The products of every frame but the first, whose candidates share nothing, are the same; attention grows."""
    model = world(replace(AC, context=8, layers=3), 4)
    fast = prepare(model)
    steps = [flops(model, fast, horizon) for horizon in range(1, 8)]
    growth = [after - before for before, after in itertools.pairwise(steps)]
    assert len({after - before for before, after in itertools.pairwise(growth)}) == 1
    assert flops(model, None, 7) > 3.5 * steps[-1]


def test_adaln_visits_nine_frames_where_the_plain_rollout_visits_twelve() -> None:
    """History 1, context 3, horizon 5. By hand, in multiply-adds of one candidate and one layer of width w = 8, inner
    i = 8 and MLP 2 w m, m = 16: a frame that sees itself alone 2 w i + w w + 2 w m, one that sees others 4 w i + 2 w m,
    one only seen, in the last layer, 2 w i. Attention entry by entry is not counted.
    """
    w, i, m = 8, 8, 16
    alone, asked, silent = 2 * w * i + w * w + 2 * w * m, 4 * w * i + 2 * w * m, 2 * w * i
    growing = 3 * alone + 2 * 3 * asked
    sliding = 2 * alone + silent + 2 * asked + silent + 3 * asked
    assert flops(world(ADALN), prepare(world(ADALN)), 5) == 2 * B * N * (growing + 2 * sliding + 5 * HOISTED)


def test_a_frame_that_only_ever_sees_itself_costs_one_square_map() -> None:
    """Context 1: neither query nor key, value and output map as one."""
    model = world(replace(ADALN, history=1))
    assert flops(model, prepare(model), 4) == 2 * B * N * 4 * (3 * (8 * 8 + 2 * 8 * 16) + HOISTED)


def test_a_model_in_training_mode_is_refused() -> None:
    model = world(ADALN)
    with pytest.raises(ValueError, match=r"the world model is in training mode.*call \.eval\(\) first"):
        prepare(model.train())
    with pytest.raises(ValueError, match="the cost-to-go head is in training mode"):
        prepare(model.eval(), distance_head(model).train())


@pytest.mark.parametrize("config", [MLPConfig(width=16), ADALN, ROTARY], ids=lambda config: config.name)
def test_a_past_that_does_not_fit_is_refused(config: PredictorConfig) -> None:
    model = world(config)
    situation, goal, action = problem(model, 3, 2)
    short = Situation(situation.latent_BTKD, situation.past_BTA[:, 1:])
    for fast in (None, prepare(model)):
        with pytest.raises(ValueError, match="3 frames need 2 past action blocks, got 1"):
            GoalCost(model, None, CostConfig({"latent_l2": 1.0}), short, goal, fast)(action)


def test_an_agent_plans_the_same_either_way() -> None:
    model = world(ROTARY, dtype=torch.float32)
    checkpoint = toy_checkpoint(model)
    planner = CEM(candidates=16, iterations=2, elites=4, horizon=3)
    plain, fast = (Agent(checkpoint, planner, CostConfig(), fast=chosen) for chosen in (False, True))
    assert plain.fast is None and fast.fast is not None
    situation, goal, _ = problem(model, 1, 3, torch.float32)
    noise = noise_table([(0, b, 0) for b in range(B)], planner, model.action_dim)
    plans = [planner.plan(agent._cost(situation, goal), noise, agent.box) for agent in (plain, fast)]
    torch.testing.assert_close(plans[1].action_BHA, plans[0].action_BHA, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plans[1].cost_B, plans[0].cost_B, rtol=1e-4, atol=1e-5)
