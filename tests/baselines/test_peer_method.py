"""Method `peer`: what another program decides is what its description says, and stays the problem's own.

A stand-in (`peer_stand_in`) answers where stable-worldmodel is not installed; tests marked `peers` ask the original in
the interpreter that LEWM_PEER_PYTHON names.
"""

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peer_models import (
    ENCODER,
    FACTS,
    LEWM,
    LEWM_FACTS,
    PREDICTOR,
    TINY_SEARCH,
    open_peer,
    saved,
    stirred,
    write_checkpoint,
)
from test_baselines import check_neighbours
from test_offline_folder import command
from torch import Tensor

import envs
from lewm.baselines import BASELINES, PeerMethod
from lewm.baselines import peer as module
from lewm.baselines.peer import PeerPolicy
from lewm.checkpoint import load
from lewm.config import load as load_run
from lewm.config import shipped
from lewm.data.store import Store, split_episodes
from lewm.evaluate import evaluate as evaluation
from lewm.evaluate.evaluate import EvaluateConfig
from lewm.evaluate.manifest import GoalSet, make_manifest
from lewm.evaluate.methods import PlanConfig, labels, training_budget, weight_files
from lewm.evaluate.runner import run_manifest
from lewm.evaluate.timing import time_plans
from lewm.export_model import export_model
from lewm.import_model import read_model
from lewm.nets.predictors import AdaLNConfig, MLPConfig
from lewm.peer import Decision, PeerError
from lewm.planning.policy import Start
from lewm.schema import SchemaError, build
from lewm.world_model import ModelConfig, WorldModel
from planners.noise import key_seed

GOALS = GoalSet("near", offset=8, budget=12, count=6)


@pytest.fixture(scope="module", params=["stand-in", pytest.param("original", marks=pytest.mark.peers)])
def method(request: pytest.FixtureRequest, tiny_peer: PeerMethod) -> PeerMethod:
    if request.param == "stand-in":
        return tiny_peer
    with open_peer() as peer:
        return replace(tiny_peer, python=str(peer.python))


@pytest.fixture(scope="module")
def policy(method: PeerMethod) -> PeerPolicy:
    return PeerPolicy(method, 3)


# The weights


def test_out_and_in_again_is_the_same_model(tmp_path: Path) -> None:
    for config in (LEWM, replace(LEWM, predictor=replace(PREDICTOR, action_smoothed=None))):
        model = stirred(config)
        export_model(model, "m", tmp_path)
        data = replace(FACTS, action_mean=LEWM_FACTS.action_mean, action_std=LEWM_FACTS.action_std)
        back = read_model(tmp_path, data)
        assert isinstance(config.predictor, AdaLNConfig)
        smoothed = config.predictor.action_smoothed or model.action_dim
        assert back.config == replace(config, predictor=replace(config.predictor, action_smoothed=smoothed))
        assert back.state_dict().keys() == model.state_dict().keys()
        for name, value in back.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), name


def test_in_and_out_again_is_the_same_file(tmp_path: Path) -> None:
    """Names, shapes and numbers as stable-worldmodel writes them."""
    source = write_checkpoint(tmp_path / "theirs")
    export_model(read_model(source, FACTS), "m", tmp_path / "again")
    theirs, again = (torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("theirs", "again"))
    assert theirs.keys() == again.keys()
    assert all(torch.equal(theirs[name], again[name]) for name in theirs)


OTHERS: dict[str, tuple[ModelConfig, str]] = {
    "another encoder": (replace(ModelConfig(), predictor=PREDICTOR), "encoder.name conv"),
    "another predictor": (replace(LEWM, predictor=MLPConfig(width=16)), "predictor.name mlp"),
    "stacked": (replace(LEWM, frame_stack=2), "frame_stack 2"),
    "standardised": (replace(LEWM, encoder=replace(ENCODER, batch_norm=True)), "encoder.batch_norm True"),
    "rectified": (
        replace(LEWM, encoder=replace(ENCODER, link="relu"), predictor=replace(PREDICTOR, link="relu")),
        "encoder.link relu",
    ),
    "odd width": (replace(LEWM, predictor=replace(PREDICTOR, action_hidden=20)), "predictor.action_hidden 20"),
    "one head": (replace(LEWM, predictor=replace(PREDICTOR, heads=1, head_dim=8)), "predictor.heads 1"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_model_is_refused(other: str, tmp_path: Path) -> None:
    config, said = OTHERS[other]
    path = saved(tmp_path / "other", WorldModel(config, LEWM_FACTS))
    with pytest.raises(
        ValueError, match=rf"method m: .*other has model\.{said}, .*only .* encoder vit and predictor adaln .*lewm demo"
    ):
        PeerPolicy(PeerMethod(str(path), "m"), 0)


def test_two_cameras_are_refused(tmp_path: Path) -> None:
    facts = replace(LEWM_FACTS, pixel_mean=(0.5,) * 6, pixel_std=(0.5,) * 6)
    with pytest.raises(ValueError, match="m sees 2 cameras"):
        export_model(WorldModel(LEWM, facts), "m", tmp_path)


def test_another_model_under_its_name_is_noticed(method: PeerMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the peer is given other weights; another version of it may compute something else with the same ones."""
    monkeypatch.setattr(module, "export_model", lambda model, where, to: export_model(stirred(LEWM, seed=1), where, to))
    with pytest.raises(PeerError, match=r"differ in the latent of the same pictures by .*more than 0\.001"):
        PeerPolicy(method, 0)


# Its decisions


def searched(model: WorldModel, frame: np.ndarray, goal: np.ndarray, mean: Tensor, seed: int) -> Tensor:
    """The final mean of CEM as its paper and the peer's docstrings describe it, in scaled actions, on our model."""
    now, there = (
        model.encode(torch.from_numpy(picture).movedim(-1, 0)[None, None])[:, :, 0] for picture in (frame, goal)
    )
    generator, std = torch.Generator().manual_seed(seed), torch.ones_like(mean)
    for _ in range(TINY_SEARCH["iterations"]):
        scaled = mean + std * torch.randn(1, TINY_SEARCH["candidates"], *mean.shape, generator=generator)
        scaled[:, 0] = mean
        raw = scaled * model.action_std_A + model.action_mean_A
        future = model.rollout(now[:, :, None], raw[:, 0, :0], raw)
        cost = (future[0, :, -1, 0] - there[0, 0]).square().sum(-1)
        elites = scaled[0, cost.argsort()[: TINY_SEARCH["elites"]]]
        mean, std = elites.mean(0), elites.std(0)
    return mean


def test_it_decides_by_the_published_search(policy: PeerPolicy) -> None:
    """Two plans of one episode: the first from nothing, the second from what the first left over."""
    model, task, goal = load(policy.config.path).model, envs.make("two_room", size=32), np.array([0.8, 0.3])
    task.set_state((0.2, 0.7))
    policy.start([Start(11, task, goal, np.zeros((0, 2)))])
    mean = torch.zeros(3, 4)
    for decision in range(2):
        frame = task.render()
        mean = searched(model, frame, task.goal_image(goal), mean, key_seed((3, 11, decision)))
        raw_Ta = (mean * model.action_std_A + model.action_mean_A)[:2].reshape(4, 2).numpy()
        assert mean[:2].abs().max() > 0.3
        for step in range(4):
            assert policy.needs_frame == (step == 0)
            acted = policy.act(frame[None] if step == 0 else None, np.ones(1, bool))[0]
            np.testing.assert_allclose(acted, raw_Ta[step].clip(-1, 1), rtol=0, atol=2e-3)
            task.advance(acted)
        mean = torch.cat([mean[2:], torch.zeros(2, 4)])


def test_no_neighbour_changes_an_action(policy: PeerPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process for all of them, because starting one takes seconds."""
    monkeypatch.setattr(policy, "seed", policy.seed)

    def seeded(config: PeerMethod, seed: int) -> PeerPolicy:
        policy.seed = seed
        return policy

    monkeypatch.setitem(BASELINES, "peer", seeded)  # type: ignore[arg-type]
    check_neighbours("peer", policy.config, needs_frame=True)


def test_no_batch_size_changes_an_outcome(policy: PeerPolicy, tiny_store: Store, tmp_path: Path) -> None:
    manifest = make_manifest(GOALS, tiny_store, split_episodes(tiny_store.num_episodes, 0.25, 0)[1], 0)
    one, four, all_of_them = (run_manifest(policy, manifest, tmp_path / f"{n}", "key", n) for n in (1, 4, 6))
    assert one == four == all_of_them and len({outcome.final for outcome in one}) == 6


def test_it_plans_only_for_those_who_still_act(policy: PeerPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    task, asked = envs.make("two_room", size=32), []
    policy.start([Start(i, task, np.array([0.8, 0.2]), np.zeros((0, 2))) for i in (0, 1)])
    decide = policy.peer.decide
    monkeypatch.setattr(policy.peer, "decide", lambda row, *rest: asked.append(row) or decide(row, *rest))
    acted = policy.act(np.stack([task.render()] * 2), np.array([False, True]))
    assert asked == [1] and not acted[0].any() and acted[1].any()


# What it says when it cannot


def test_goals_it_was_not_trained_for(policy: PeerPolicy) -> None:
    for task, size, said in (
        ("reacher", 32, "was trained on two_room, and these goals are of another task"),
        ("two_room", 64, r"was trained on pictures of shape \(32, 32, 3\), and these are \(64, 64, 3\)"),
    ):
        env = envs.make(task, size=size)
        with pytest.raises(ValueError, match=rf"method peer: .*{said}"):
            policy.start([Start(0, env, env.state, np.zeros((0, len(env.state))))])


def test_a_peer_that_is_not_there(tiny_peer: PeerMethod, tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"nowhere cannot be started .*pass the peer's with `python` of method peer"):
        PeerPolicy(PeerMethod(tiny_peer.path, python=str(tmp_path / "nowhere")), 0)
    bare = tmp_path / "python"
    bare.write_text(f"#!{sys.executable}\nraise SystemExit('no torch here')\n")
    bare.chmod(0o755)
    with pytest.raises(
        PeerError,
        match=r"does not work in .*no torch here.*\(pip install stable-worldmodel==0\.1\.1 transformers\) and name its "
        r"interpreter with `python` of method m",
    ):
        PeerPolicy(PeerMethod(tiny_peer.path, "m", python=str(bare)), 0)


def test_a_peer_that_stops(method: PeerMethod) -> None:
    policy, task = PeerPolicy(method, 0), envs.make("two_room", size=32)
    policy.start([Start(0, task, np.array([0.8, 0.2]), np.zeros((0, 2)))])
    policy.peer.process.kill()
    policy.peer.process.wait()
    with pytest.raises(PeerError, match="it stopped: without a word"):
        policy.act(task.render()[None], np.ones(1, bool))


def test_its_process_ends_with_it(method: PeerMethod) -> None:
    policy = PeerPolicy(method, 0)
    process, folder = policy.peer.process, policy.peer.folder
    assert process.poll() is None and folder.is_dir()
    del policy
    gc.collect()
    assert process.poll() == 0 and not folder.exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"elites": 1}, r"elites is 1; it must lie in 2\.\.300, the candidates"),
        ({"elites": 301}, r"elites is 301; it must lie in 2\.\.300"),
        ({"iterations": 0}, "iterations is 0; it must be at least 1"),
        ({"replan_every": 6}, r"replan_every is 6; it must lie in 1\.\.5, the horizon"),
    ],
)
def test_a_search_that_cannot_be(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(SchemaError, match=rf"methods\.0: method peer: {said}"):
        build(EvaluateConfig, {"methods": [{"kind": "peer", "path": "x"} | wrong]}, "run.yaml")


# Its row


def test_its_row(method: PeerMethod) -> None:
    found = labels(method)
    assert (found.method, found.planner, found.cost) == ("peer", "cem of stable-worldmodel", "latent_l2 (terminal)")
    assert (found.candidates, found.iterations, found.horizon, found.replan_every) == (24, 3, 3, 2)
    assert training_budget(method, None) == "recordings, 7 optimiser steps"


def test_its_time_is_that_of_its_own_process(
    policy: PeerPolicy, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_manifest(GOALS, tiny_store, split_episodes(tiny_store.num_episodes, 0.25, 0)[1], 0)
    threads = []

    def decide(problem: int, pixels: np.ndarray, seed: int) -> Decision:
        threads.append(torch.get_num_threads())
        return Decision(np.zeros((4, 2), np.float32), 7.5, 2.5)

    monkeypatch.setattr(policy.peer, "decide", decide)
    times = time_plans(policy, manifest, plans=3, threads=2)
    assert (times.plan_ms_p50, times.plan_ms_p95, times.encode_ms_p50, times.plans) == (7.5, 7.5, 2.5, 3)
    assert set(threads) == {2}


def test_it_tells_how_long_it_took(policy: PeerPolicy) -> None:
    task = envs.make("two_room", size=32)
    policy.start([Start(0, task, np.array([0.8, 0.2]), np.zeros((0, 2)))])
    policy.act(task.render()[None], np.ones(1, bool))
    assert policy.clock.plan_ms is not None and 0 < policy.clock.encode_ms < policy.clock.plan_ms


def test_outcomes_belong_to_the_weights(tmp_path: Path, tiny_store: Store) -> None:
    manifest = make_manifest(GOALS, tiny_store, split_episodes(tiny_store.num_episodes, 0.25, 0)[1], 0)
    method, keys = PeerMethod(str(tmp_path / "c")), set()
    for seed in (0, 1):
        saved(tmp_path / "c", stirred(LEWM, seed=seed))
        keys.add(evaluation.outcome_key(method, manifest, None, 0))
    keys.add(evaluation.outcome_key(replace(method, iterations=10), manifest, None, 0))
    assert len(keys) == 3
    assert weight_files(method, None) == [tmp_path / "c" / "model.safetensors", tmp_path / "c" / "config.json"]


def test_from_the_command_line(
    method: PeerMethod, tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"kind": "peer", "path": method.path, "python": method.python, "candidates": 8, "iterations": 2, "elites": 3}
    goals = [{"name": "near", "offset": 8, "budget": 12, "count": 3}]
    text = json.dumps({"task": "two_room", "evaluate": {"goals": goals, "timed_plans": 1, "methods": [few]}})
    (tmp_path / "run.yaml").write_text(text)
    words = ["evaluate", str(tmp_path / "run.yaml"), "--checkpoint", method.path, "--device", "cpu"]
    code, said = command(capsys, *words, "--data", str(tiny_store.path), "--out", str(tmp_path / "e"))
    assert code == 0 and "cem of stable-worldmodel 8x2x5" in said
    (row,) = [row for row in json.loads((tmp_path / "e" / "results.json").read_text()) if row["kind"] == "peer"]
    assert (row["n"], row["device"], row["plan_ms_p50"] > row["encode_ms_p50"] > 0) == (3, "cpu", True)


def test_the_shipped_run_tells_how_to_add_it() -> None:
    """Its commented line is a method with the search of the run's own."""
    line = next(line for line in shipped()["two_room_lewm"].read_text().splitlines() if "kind: peer" in line)
    (given,) = yaml.safe_load(line.lstrip("# "))
    method = build(PeerMethod, given, "line")
    ours = load_run("two_room_lewm").evaluate.methods[0]
    assert isinstance(ours, PlanConfig)
    for name in ("candidates", "iterations", "elites", "horizon"):
        assert getattr(method, name) == getattr(ours.planner, name)
    assert method.replan_every == ours.replan_every
