"""Compiling changes nothing but the time: same latents, and whatever it was not made for runs as before."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_models import SIZE, toy_checkpoint, toy_model

from lewm.nets.predictors import RotaryConfig
from lewm.planning import agent as agent_module
from lewm.planning.agent import Agent
from lewm.planning.costs import CostConfig
from lewm.planning.fast_compile import CompiledRollout, compile_rollout
from lewm.planning.fast_rollout import FastModel, prepare
from lewm.world_model import WorldModel
from planners import CEM

N, H = 6, 3


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return toy_model(RotaryConfig(context=4, width=16, layers=1, heads=2, mlp_ratio=2))


@pytest.fixture(scope="module")
def compiled(model: WorldModel) -> FastModel:
    """Traced as for the real backend, without the C++ compiler."""
    return compile_rollout(prepare(model), model, N, H, backend="eager")


def problem(model: WorldModel, problems: int, candidates: int, horizon: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(problems, 1, 1, model.latent_dim, generator=generator)
    action = torch.randn(problems, candidates, horizon, model.action_dim, generator=generator)
    return latent, torch.zeros(problems, 0, model.action_dim), action


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.parametrize(("problems", "candidates", "horizon"), [(1, N, H), (2, N, H), (1, 1, H), (1, N, H + 2)])
def test_the_latents_are_the_same_and_no_other_shape_is_compiled(
    model: WorldModel, compiled: FastModel, problems: int, candidates: int, horizon: int
) -> None:
    assert isinstance(compiled.rollout, CompiledRollout)
    latent, past, action = problem(model, problems, candidates, horizon)
    before = graphs()
    with torch.no_grad():
        expected = compiled.rollout.eager.begin(latent, past)(action)
        found = compiled.rollout.begin(latent, past)(action)
    assert graphs() == before > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_gradients_flow_as_before(model: WorldModel, compiled: FastModel) -> None:
    latent, past, action = problem(model, 1, N, H)
    action.requires_grad_()
    found, expected = (
        torch.autograd.grad(rollout.begin(latent, past)(action)[-1].square().sum(), action)[0]
        for rollout in (compiled.rollout, prepare(model).rollout)
    )
    torch.testing.assert_close(found, expected)
    assert found.abs().sum() > 0


def test_it_says_what_it_does(model: WorldModel, capsys: pytest.CaptureFixture[str]) -> None:
    compile_rollout(prepare(model), model, N, H, backend="eager")
    assert "compiling the rollout of 6 candidates x 3 blocks, once took" in capsys.readouterr().err


def test_without_a_compiler_planning_goes_on(
    model: WorldModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> object:
        def call(action: Tensor) -> list[Tensor]:
            raise RuntimeError("no C++ compiler found\nand much more text")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    fast = prepare(model)
    assert compile_rollout(fast, model, N, H) is fast
    told = capsys.readouterr().err
    assert "failed, planning goes on without it: RuntimeError: no C++ compiler found\n" in told
    assert "much more" not in told


def test_an_mlp_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Its calls are so short that checking what was compiled costs more than it saves."""
    mlp = toy_model()
    fast = prepare(mlp)
    assert compile_rollout(fast, mlp, N, H) is fast
    assert "an mlp predictor plans faster as it is" in capsys.readouterr().err


def test_an_agent_plans_the_same_compiled(model: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice compiled is compiled once; a plan of other size than the planner's runs as before."""
    monkeypatch.setattr(agent_module, "compile_rollout", partial(compile_rollout, backend="eager"))
    planner = CEM(candidates=N, iterations=2, elites=2, horizon=H)
    agent = Agent(toy_checkpoint(model), planner, CostConfig())
    goal = np.full((SIZE, SIZE, 3), 200, np.uint8)
    actions = []
    for chosen in (agent, agent.compiled().compiled()):
        chosen.reset(goal)
        actions.append(chosen.act(np.zeros_like(goal)))
    np.testing.assert_allclose(actions[1], actions[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="made with fast=False, and only fast rollouts are compiled"):
        Agent(toy_checkpoint(model), planner, CostConfig(), fast=False).compiled()


def test_only_on_the_cpu(model: WorldModel) -> None:
    with pytest.raises(ValueError, match="the model is on meta; only rollouts on the CPU are compiled"):
        compile_rollout(prepare(model), toy_model().to("meta"), N, H)
