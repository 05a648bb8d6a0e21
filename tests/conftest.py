"""Shared fixtures: one thread, one tiny recorded store, one tiny checkpoint, two processes to compare with one."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import peer_stand_in
import pytest
import torch
from parallel import OnTwoRanks, two_processes
from peer_models import LEWM, TINY_SEARCH, saved, stirred

from lewm import pipeline
from lewm.baselines import PeerMethod
from lewm.checkpoint import Checkpoint, load
from lewm.config import RunConfig
from lewm.cost_to_go import CostToGoConfig
from lewm.data.collect import CollectConfig
from lewm.data.store import Store
from lewm.nets.encoders import ConvConfig
from lewm.nets.predictors import MLPConfig
from lewm.train import TrainConfig
from lewm.world_model import ModelConfig

TINY = RunConfig(
    task="two_room",
    settings={"size": 32},
    collect=CollectConfig(episodes=8, steps=40, noise=0.5, shard_episodes=4),
    model=ModelConfig(ConvConfig(latent_dim=8, channels=(8, 8, 8)), MLPConfig(width=32)),
    train=TrainConfig(steps=6, batch=8, frames=3, log_every=2, probe_every=0, checkpoint_every=2, held_out=0.25),
    cost_to_go=CostToGoConfig(width=16, steps=20, batch=32),
)
"""A complete run that takes seconds; its model knows nothing."""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_run() -> RunConfig:
    return TINY


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return pipeline.record(TINY, tmp_path_factory.mktemp("store") / "data", processes=1, quiet=True)


@pytest.fixture(scope="session")
def varied_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Every episode in a world of its own."""
    varied = replace(TINY, settings=TINY.settings | {"variation": "usual"})
    return pipeline.record(varied, tmp_path_factory.mktemp("varied") / "data", processes=1, quiet=True)


@pytest.fixture(scope="session")
def tiny_checkpoint_path(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    return pipeline.fit(TINY, tiny_store, out, torch.device("cpu"), quiet=True)


@pytest.fixture
def tiny_checkpoint(tiny_checkpoint_path: Path) -> Checkpoint:
    return load(tiny_checkpoint_path)


@pytest.fixture(scope="session", params=["state", "pixels"])
def tiny_sb3(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of stable-baselines3's, on states and on pixels; its policy knows nothing."""
    from lewm.sb3.config import Sb3Config
    from lewm.sb3.train import train_sb3

    out = tmp_path_factory.mktemp("sb3") / request.param
    frames = {"frames": 2, "stride": 2, "size": 16} if request.param == "pixels" else {}
    settings, few = {"size": 32}, {"steps": 20, "episode_steps": 10, "evaluations": 1}
    train_sb3(Sb3Config("two_room", settings, observation=request.param, **few, **frames), out, quiet=True)
    return out


@pytest.fixture(scope="session")
def tiny_peer(tmp_path_factory: pytest.TempPathFactory) -> PeerMethod:
    """A LeWM that knows nothing, planned with by a stand-in of stable-worldmodel."""
    folder = tmp_path_factory.mktemp("peer")
    checkpoint = saved(folder / "checkpoint", stirred(LEWM))
    return PeerMethod(str(checkpoint), python=str(peer_stand_in.install(folder)), **TINY_SEARCH)


@pytest.fixture(scope="session")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnTwoRanks]:
    with two_processes(tmp_path_factory.mktemp("ranks")) as run:
        yield run


@pytest.fixture
def store(tiny_store: Store, tmp_path: Path) -> Store:
    """A copy of the tiny store, that features may lie beside."""
    shutil.copytree(tiny_store.path, tmp_path / "data")
    return Store.open(tmp_path / "data")
