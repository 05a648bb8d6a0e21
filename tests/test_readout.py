"""The readout: recorded entries out of latents, the cost that compares them, and its place in the checkpoint."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_models import toy_checkpoint, toy_model

from lewm import pipeline
from lewm.checkpoint import load, save_checkpoint
from lewm.config import RunConfig
from lewm.data.store import Store
from lewm.data.windows import Windows
from lewm.planning.agent import Agent
from lewm.planning.costs import CostConfig, Heads, proprio
from lewm.probes import fit_linear, r2_score
from lewm.readout import Readout, ReadoutConfig, fit_readout
from planners import CEM


def test_a_linear_world_is_read_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    latent_ND, true_DS = torch.randn(200, 5, generator=generator) * 3 + 1, torch.randn(5, 2, generator=generator)
    weight_DS, bias_S = fit_linear(latent_ND, latent_ND @ true_DS + 4, ridge=1e-9)
    torch.testing.assert_close(weight_DS, true_DS, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bias_S, torch.full((2,), 4.0), atol=1e-3, rtol=1e-4)


def test_r2_by_hand() -> None:
    """Squared error 1 over a total of 2 about the mean; a constant has no R2."""
    truth, found = torch.tensor([[1.0, 5], [2, 5], [3, 5]]), torch.tensor([[1.0, 5], [3, 5], [3, 5]])
    r2_S = r2_score(found, truth)
    assert r2_S[0] == 0.5 and r2_S[1].isnan()


def test_the_proprioceptive_distance_is_that_of_the_entries() -> None:
    """Two entries: twice the first latent number, and the second plus one; the third does not count."""
    readout = Readout(ReadoutConfig(("a", "b")), features=3, angles=0)
    readout.weight_DP.copy_(torch.tensor([[2.0, 0], [0, 1], [0, 0]]))
    readout.bias_P.copy_(torch.tensor([0.0, 1]))
    latent_BNHKD, goal_BKD = torch.tensor([1.0, 5, 9]).view(1, 1, 1, 1, 3), torch.tensor([[[2.0, 2, 0]]])
    assert proprio(latent_BNHKD, goal_BKD, Heads(readout=readout)).item() == pytest.approx((2**2 + 3**2) / 2)
    with pytest.raises(ValueError, match=r"reads out no state entries; train with readout\.entries"):
        proprio(latent_BNHKD, goal_BKD, Heads())


def test_recorded_entries_are_fitted_and_scored(
    tiny_store: Store, tiny_checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the episodes it was fitted on, even an untrained encoder of eight numbers tells positions apart a little."""
    model, everything = load(tiny_checkpoint_path).model, np.arange(tiny_store.num_episodes)
    monkeypatch.setattr("lewm.readout.split_episodes", lambda *_: (everything, everything))
    readout, r2 = fit_readout(model, ReadoutConfig(("y", "x")), tiny_store, 0.25, 0)
    frames = Windows(tiny_store, model.config.window(1))
    seen = frames.batch(np.arange(len(frames)))
    state_FS, found_FP = seen.state_BTS[:, 0, [1, 0]], readout(model.encode(seen.pixels_BTCYX)[:, 0])
    r2_P = r2_score(found_FP, state_FS / state_FS.std(0))
    assert list(r2) == ["y", "x"] and list(r2.values()) == pytest.approx(r2_P.tolist(), abs=1e-3)
    assert r2_P.min() > 0.1
    with pytest.raises(ValueError, match=r"the recordings have no 'z'; there are x, y"):
        fit_readout(model, ReadoutConfig(("z",)), tiny_store, 0.25, 0)


def test_angles_are_read_as_cosine_and_sine_and_survive_the_checkpoint(tmp_path: Path) -> None:
    toy, model = toy_checkpoint(toy_model()), toy_model()
    origin = replace(toy.origin, state_names=("x", "turn"), angle_names=("turn",))
    readout = Readout(ReadoutConfig(("turn", "x")), model.latent_dim, angles=1)
    readout.weight_DP.copy_(torch.randn(readout.weight_DP.shape, generator=torch.Generator().manual_seed(0)))
    save_checkpoint(tmp_path / "checkpoint", model, None, origin, {}, readout=readout)
    loaded = load(tmp_path / "checkpoint").readout
    assert loaded is not None and loaded.config == readout.config and loaded.bias_P.shape == (3,)
    assert torch.equal(loaded.weight_DP, readout.weight_DP)


def test_a_run_with_entries_ends_in_a_checkpoint_that_plans_with_them(
    tiny_run: RunConfig, tiny_store: Store, tmp_path: Path
) -> None:
    run = replace(tiny_run, readout=ReadoutConfig(("x", "y")), cost_to_go=replace(tiny_run.cost_to_go, steps=0))
    path = pipeline.fit(run, tiny_store, tmp_path, torch.device("cpu"), quiet=True)
    planner = CEM(candidates=4, iterations=1, elites=2, horizon=2)
    agent = Agent.load(path, planner, CostConfig({"proprio": 1.0, "latent_l2": 0.1}))
    plain = Agent.load(path, planner, CostConfig({"proprio": 1.0, "latent_l2": 0.1}), fast=False)
    goal, frame = (np.full((32, 32, 3), value, np.uint8) for value in (10, 200))
    for each in (agent, plain):
        each.reset(goal)
    np.testing.assert_allclose(agent.act(frame), plain.act(frame), atol=1e-5)


def test_what_cannot_be_is_refused(tiny_checkpoint_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cost proprio: .* reads out no state entries; train one"):
        Agent.load(tiny_checkpoint_path, cost="proprio")
    with pytest.raises(ValueError, match=r"name each entry once"):
        ReadoutConfig(("x", "x"))
    with pytest.raises(ValueError, match=r"readout\.ridge is 0; it must be positive"):
        ReadoutConfig(("x",), ridge=0)
