"""Every run that ships with lewm records, trains, fits its cost-to-go, loads and plans; shrunk to seconds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_encoders import PATCH, SIZE, save_encoder
from task_rows import needs

import envs
from lewm import config, pipeline
from lewm.checkpoint import load
from lewm.evaluate.methods import PlanConfig
from lewm.nets.frozen import FrozenConfig
from lewm.nets.predictors import ACConfig
from lewm.planning.agent import Agent
from lewm.planning.observation import measured_in

RUNS = [pytest.param(name, marks=needs(config.load(name).task)) for name in sorted(config.shipped())]


@pytest.mark.parametrize("name", RUNS)
def test_every_shipped_run_works_from_recording_to_action(name: str, tmp_path: Path) -> None:
    run = config.load(name)
    steps = (run.train.frames - 1) * run.model.frame_skip + 1
    run = replace(
        run,
        collect=replace(run.collect, episodes=3, steps=steps, shard_episodes=2),
        train=replace(run.train, steps=1, batch=2, probe_every=0, held_out=0.3),
        cost_to_go=replace(run.cost_to_go, steps=2, batch=4),
        proposal=replace(run.proposal, steps=min(run.proposal.steps, 2), batch=4),
    )
    if isinstance(run.model.encoder, FrozenConfig):  # whose weights would have to be downloaded
        family = "vjepa2" if "vjepa2" in run.model.encoder.path else "dinov2"
        path, grid = save_encoder(family, tmp_path / "encoder"), min(run.model.encoder.grid, SIZE // PATCH)
        encoder = replace(run.model.encoder, path=str(path), grid=grid, size=None)
        run = replace(run, model=replace(run.model, encoder=encoder))
    if isinstance(run.model.predictor, ACConfig):  # 24 blocks of width 1024 are a matter of minutes and gigabytes
        run = replace(run, model=replace(run.model, predictor=replace(run.model.predictor, layers=2)))
    store = pipeline.record(run, tmp_path / "data", processes=1, quiet=True)
    path = pipeline.fit(run, store, tmp_path, torch.device("cpu"), quiet=True)
    assert config.load(tmp_path / "config.yaml") == run
    checkpoint = load(path)
    method = run.evaluate.methods[0]
    assert isinstance(method, PlanConfig)
    planner = replace(method.planner, candidates=4, iterations=1, elites=2)
    agent = Agent(checkpoint, planner, method.cost, method.replan_every, method.history)
    env = envs.make(run.task, **run.settings)
    pixels, info = env.reset(seed=0)
    agent.reset(env.goal_image(info["goal_state"]))
    assert env.action_space.contains(agent.act(pixels, proprio=measured_in(agent.model, [env.state])))
    env.close()
