"""Measured numbers and several cameras, from the store through model, cost and agent to success."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from toy_models import FACTS, SIZE, stir, toy_head, toy_origin

from lewm import pipeline
from lewm.checkpoint import Checkpoint, load, save_checkpoint
from lewm.config import RunConfig
from lewm.data.codec import one_behind_another, side_by_side
from lewm.data.meta import Column, PolicyMeta, Provenance, StoreMeta
from lewm.data.proprio import Measured, measured, read_proprio
from lewm.data.store import Store
from lewm.data.windows import Windows, WindowSpec
from lewm.data.writer import Episode, StoreWriter
from lewm.evaluate.manifest import GoalSet
from lewm.nets.encoders import ConvConfig
from lewm.nets.predictors import MLPConfig
from lewm.planning.agent import Agent
from lewm.planning.costs import CostConfig, GoalCost, Situation
from lewm.planning.episode import read_goal
from lewm.planning.fast_rollout import prepare
from lewm.world_model import ModelConfig, WorldModel
from planners import CEM

ENTRIES = (Measured("state", 0, False, 2.0, 4.0), Measured("state", 2, True, 0.0, 1.0))
PLANNER = CEM(candidates=8, iterations=2, elites=2, horizon=2)


def measuring_model(cameras: int = 1, history: int = 2) -> WorldModel:
    """Sees `cameras` pictures, a number and an angle."""
    torch.manual_seed(0)
    config = ModelConfig(
        ConvConfig(latent_dim=4, channels=(4, 4, 4)), MLPConfig(width=16), 2, proprio=("x", "angle"), proprio_width=3
    )
    facts = replace(FACTS, pixel_mean=FACTS.pixel_mean * cameras, pixel_std=FACTS.pixel_std * cameras, proprio=ENTRIES)
    model = WorldModel(config, facts).eval().requires_grad_(False)
    stir(model)
    return model


def checkpoint_of(model: WorldModel) -> Checkpoint:
    return Checkpoint(model, toy_head(model), toy_origin(), Path("toy"))


def frames(count: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, channels), np.uint8)


def write_recordings(path: Path, columns: tuple[Column, ...] = ()) -> Store:
    """Two cameras, a state (x, y, angle), and a per-frame column `force` of two numbers."""
    columns = columns or (Column("force", "frame", (2,)), Column("reward", "action"))
    meta = StoreMeta(
        "toy", {}, (SIZE, SIZE, 6), "png", 2, (-1.0, -1.0), (1.0, 1.0), ("x", "y", "angle"), ("angle",), 0.1,
        Provenance((PolicyMeta("p", 1.0, 0.0),)), columns, cameras=("front", "wrist"),
    )  # fmt: skip
    rng = np.random.default_rng(1)
    with StoreWriter(path, meta) as writer:
        writer.write(
            Episode(
                rng.integers(0, 256, (13, SIZE, SIZE, 6), np.uint8),
                rng.uniform(-1, 1, (12, 2)).astype(np.float32),
                rng.normal(size=(13, 3)).astype(np.float32),
                extra={"force": rng.normal(size=(13, 2)), "reward": rng.normal(size=12)},
            )
            for _ in range(6)
        )
    return Store.open(path)


def test_names_stand_for_state_entries_and_columns(tmp_path: Path) -> None:
    store = write_recordings(tmp_path / "s")
    entries = measured(store.meta, ("angle", "force", "x"))
    assert [(e.source, e.index, e.angle) for e in entries] == [
        ("state", 2, True), ("force", 0, False), ("force", 1, False), ("state", 0, False),
    ]  # fmt: skip
    states, force = store.states(3), store.column("force", 3)
    expected = np.column_stack([states[:, 2], force, states[:, 0]]).astype(np.float32)
    np.testing.assert_array_equal(read_proprio(store, entries, 3), expected)
    assert entries[1].mean == pytest.approx(np.mean([store.column("force", e)[:, 0] for e in range(6)]), abs=1e-6)
    for name in ("reward", "z"):
        with pytest.raises(ValueError, match=f"model.proprio names '{name}'.* they hold x, y, angle, force"):
            measured(store.meta, (name,))


@pytest.mark.parametrize("resident", ["disk", "ram"])
def test_windows_read_the_measurements_of_their_frames(tmp_path: Path, resident: str) -> None:
    store = write_recordings(tmp_path / "s")
    windows = Windows(store, WindowSpec(3, 2, proprio=("force",)), None, resident)
    batch = windows.batch(np.array([0, 11]))
    episode, start = windows.locate(np.array([11]))
    assert batch.pixels_BTCYX.shape == (2, 3, 6, SIZE, SIZE)
    at = slice(int(start[0]), int(start[0]) + 5, 2)
    np.testing.assert_allclose(batch.proprio_BTP[1], store.column("force", int(episode[0]))[at], rtol=1e-6)
    pixels = store.pixels(int(episode[0]))[at]
    np.testing.assert_array_equal(batch.pixels_BTCYX[1].movedim(1, -1), pixels)
    assert Windows(store, WindowSpec(3, 2), None, resident).batch(np.array([0])).proprio_BTP is None


def test_the_measured_part_of_a_latent() -> None:
    """It depends on the measurements alone, sees an angle through its turn, and is zero where nothing was measured."""
    model = measuring_model()
    pixels = torch.from_numpy(frames(3)).movedim(-1, 1)[None]
    proprio = torch.tensor([[[1.0, 0.3], [5.0, 0.3], [1.0, 0.3 + 2 * torch.pi]]])
    latent = model.encode(pixels, proprio)
    assert latent.shape == (1, 3, 1, 7) and model.latent_dim == 7 and model.picture_dim == 4
    part = latent[0, :, 0, 4:]
    torch.testing.assert_close(part[0], part[2], rtol=0, atol=1e-5)
    assert (part[0] - part[1]).abs().max() > 1e-2
    torch.testing.assert_close(part, model.measure(proprio[0]))
    picture = model.encode_picture(pixels)
    torch.testing.assert_close(model.pictured(picture), model.pictured(latent))
    assert picture[..., 4:].abs().max() == 0
    with pytest.raises(ValueError, match="this model measures x, angle; pass proprio_BTP"):
        model.encode(pixels)


def test_a_model_that_measures_nothing_takes_no_measurements() -> None:
    model = WorldModel(ModelConfig(ConvConfig(latent_dim=4, channels=(4, 4, 4))), FACTS).eval()
    pixels = torch.from_numpy(frames(1)).movedim(-1, 1)[None]
    torch.testing.assert_close(model.encode_picture(pixels), model.encode(pixels))
    with pytest.raises(ValueError, match="measures nothing beside the picture; leave proprio_BTP out"):
        model.encode(pixels, torch.zeros(1, 1, 2))
    with pytest.raises(ValueError, match=r"cost measured: toy measures nothing"):
        Agent(Checkpoint(model, None, toy_origin(), Path("toy")), PLANNER, CostConfig({"measured": 1.0}))


@pytest.mark.parametrize("fast", [False, True])
def test_costs_compare_pictures_and_measurements_apart(fast: bool) -> None:
    model = measuring_model()
    draw = torch.Generator().manual_seed(3)
    now, actions = torch.randn(2, 1, 1, 7, generator=draw), torch.randn(2, 5, 3, 4, generator=draw)
    goal, target = torch.randn(2, 1, 7, generator=draw), torch.randn(2, 3, generator=draw)
    situation = Situation(now, torch.zeros(2, 0, 4), goal_measured_BM=target)
    future = model.rollout(now, situation.past_BTA, actions)[..., 0, :]
    pictures = (future[..., :4] - goal[:, None, None, 0, :4]).square().mean(-1).mean(-1)
    measurements = (future[..., 4:] - target[:, None, None]).square().mean(-1).mean(-1)
    prepared = prepare(model) if fast else None
    for terms, expected in (
        ({"latent_l2": 1.0}, pictures),
        ({"measured": 1.0}, measurements),
        ({"latent_l2": 2.0, "measured": 0.5}, 2 * pictures + 0.5 * measurements),
    ):
        cost = GoalCost(model, None, CostConfig(terms), situation, goal, prepared)
        torch.testing.assert_close(cost(actions), expected, rtol=1e-4, atol=1e-5)


def test_an_agent_plans_from_what_it_measures() -> None:
    """Another measurement, another plan; a problem's plan does not depend on its neighbours."""
    agent = Agent(checkpoint_of(measuring_model()), PLANNER, CostConfig({"latent_l2": 1.0, "measured": 1.0}), 1)
    pictures, goals = frames(2), frames(2)[::-1].copy()
    proprio, goal_proprio = np.array([[1.0, 0.5], [9.0, -2.0]]), np.array([[3.0, 0.0], [0.0, 1.0]])

    def first(rows: list[int], measured_now: np.ndarray, target: np.ndarray) -> np.ndarray:
        agent.reset(goals[rows], episodes=rows, goal_proprio=target[rows])
        return agent.act(pictures[rows], proprio=measured_now[rows])

    both = first([0, 1], proprio, goal_proprio)
    np.testing.assert_allclose(both[1], first([1], proprio, goal_proprio)[0], atol=1e-5)
    assert np.abs(both - first([0, 1], proprio + np.array([2.0, 0.0]), goal_proprio)).max() > 1e-3
    assert np.abs(both - first([0, 1], proprio, -20.0 * goal_proprio)).max() > 1e-3


def test_the_agent_refuses_missing_and_misshapen_measurements() -> None:
    agent = Agent(checkpoint_of(measuring_model()), PLANNER, CostConfig({"measured": 1.0}), 1)
    with pytest.raises(ValueError, match="the goal's proprio is missing: this model measures x, angle"):
        agent.reset(frames(1)[0])
    agent.reset(frames(1)[0], goal_proprio=np.zeros(2))
    with pytest.raises(ValueError, match="the proprio is missing"):
        agent.act(frames(1)[0])
    with pytest.raises(ValueError, match=r"the proprio has shape \(3,\); it must be 2 finite numbers"):
        agent.act(frames(1)[0], proprio=np.zeros(3))
    with pytest.raises(ValueError, match="2 finite numbers"):
        agent.act(frames(1)[0], proprio=np.array([np.nan, 0.0]))


def test_two_cameras_and_columns_train_and_plan(tmp_path: Path, tiny_run: RunConfig) -> None:
    """Record, train both heads, save, load, and act by hand; the same numbers come back from the folder."""
    store = write_recordings(tmp_path / "s")
    run = replace(
        tiny_run,
        model=replace(tiny_run.model, proprio=("x", "force"), proprio_width=5, frame_skip=2),
        train=replace(tiny_run.train, steps=2, batch=4, frames=3),
    )
    path = pipeline.fit(run, store, tmp_path / "run", torch.device("cpu"), quiet=True)
    agent = Agent.load(path, PLANNER, CostConfig({"cost_to_go": 1.0, "measured": 1.0}))
    assert agent.frame_shape == (SIZE, SIZE, 6) and agent.proprio_dim == 3
    pixels, proprio = store.pixels(0), read_proprio(store, agent.model.facts.proprio, 0)
    agent.reset(pixels[9], goal_proprio=proprio[9])
    actions = [agent.act(pixels[t], proprio=proprio[t]) for t in range(4)]
    assert np.isfinite(actions).all()
    loaded = load(path)
    save_checkpoint(tmp_path / "again", loaded.model, loaded.cost_to_go, loaded.origin, {})
    again = Agent.load(tmp_path / "again", PLANNER, CostConfig({"cost_to_go": 1.0, "measured": 1.0}))
    again.reset(pixels[9], goal_proprio=proprio[9])
    np.testing.assert_array_equal([again.act(pixels[t], proprio=proprio[t]) for t in range(4)], actions)


def test_a_task_tells_the_state_entries_that_a_model_measures(
    tmp_path: Path, tiny_store: Store, tiny_run: RunConfig
) -> None:
    """Evaluation drives such a model by itself; one that measures an extra column cannot be evaluated."""
    run = replace(
        tiny_run,
        model=replace(tiny_run.model, proprio=("x", "y"), proprio_width=4),
        train=replace(tiny_run.train, steps=2),
    )
    path = pipeline.fit(run, tiny_store, tmp_path / "run", torch.device("cpu"), quiet=True)
    checkpoint = load(path)
    goals = GoalSet("near", offset=5, budget=10, count=4)
    run = replace(run, evaluate=replace(run.evaluate, goals=(goals,)))
    rows = pipeline.measure(run, checkpoint, tiny_store, tmp_path / "run", quiet=True)
    assert {row.row.method for row in rows} >= {"cost_to_go"}


def test_cameras_side_by_side_and_back(tmp_path: Path) -> None:
    frame = frames(1, 6)[0]
    picture = side_by_side(frame)
    assert picture.shape == (SIZE, 2 * SIZE, 3)
    np.testing.assert_array_equal(picture[:, SIZE:], frame[..., 3:])
    np.testing.assert_array_equal(one_behind_another(picture, 2), frame)
    cv2.imwrite(str(tmp_path / "goal.png"), picture[..., ::-1])
    np.testing.assert_array_equal(read_goal(tmp_path / "goal.png", SIZE, cameras=2), frame)
    with pytest.raises(ValueError, match=r"64 x 32 pixels; this model sees 32 x 32: make it"):
        read_goal(tmp_path / "goal.png", SIZE)
