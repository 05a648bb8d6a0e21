"""`lewm bench plan --peer`: the search is the peer's, a row says what was timed, a missing peer is one sentence."""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peer_models import SMALL, open_peer, write_checkpoint
from torch import Tensor

from lewm.bench import peer_plan as module
from lewm.bench.peer_plan import (
    PeerRow,
    compare,
    cost_difference,
    fast,
    parse_size,
    peer_noise,
    peer_search,
    plain,
    table,
)
from lewm.cli import main
from lewm.import_model import DataFacts, read_model
from lewm.peer import Peer, PeerError, PeerPlan, Size
from lewm.planning.action_limits import action_box
from lewm.world_model import WorldModel
from planners import noise_table

UNSCALED = DataFacts("bench", (-torch.inf,) * 2, (torch.inf,) * 2, (0.0,) * 2, (1.0,) * 2, frame_skip=2)
SMALL_SIZE = Size(batch=2, iterations=6, candidates=60, elites=8, horizon=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WorldModel:
    return read_model(write_checkpoint(tmp_path_factory.mktemp("peer")), UNSCALED)


def problems(model: WorldModel, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """latent_BD, goal_BD and noise_BINHA."""
    latent, goal = torch.randn(2, size.batch, model.latent_dim, generator=torch.Generator().manual_seed(3))
    return latent, goal, noise_table([(7, b) for b in range(size.batch)], peer_search(size), model.action_dim)


class WrittenOut:
    """The peer's solver written out from its description, on our model: the reference where it is not installed.

    Gaussian with per-entry std, first candidate the mean, elites refit with the std of a sample, last mean executed.
    """

    version = "0 (written out)"

    def __init__(self, model: WorldModel, wrong: float = 1.0) -> None:
        self.model, self.wrong, self.seeds = model, wrong, list[int]()

    def plan(
        self,
        latent_BD: Tensor,
        goal_BD: Tensor,
        size: Size,
        noise_BINHA: Tensor | None = None,
        seed: int = 0,
        record: bool = False,
    ) -> PeerPlan:
        self.seeds += [seed] * (not record)
        if noise_BINHA is None:
            noise_BINHA = noise_table([(seed, b) for b in range(size.batch)], peer_search(size), self.model.action_dim)
        means, candidates, costs = [], [], []
        for latent, goal, noise_INHA in zip(latent_BD, goal_BD, noise_BINHA):
            mean, std = torch.zeros_like(noise_INHA[0, 0]), torch.ones_like(noise_INHA[0, 0])
            for noise in noise_INHA:
                tried = mean + std * noise
                tried[0] = mean
                future = self.model.rollout(latent[None, None, None], torch.zeros(1, 0, tried.shape[-1]), tried[None])
                cost = self.wrong * (future[0, :, -1, 0] - goal).square().sum(-1)
                elites = tried[cost.argsort()[: size.elites]]
                mean = elites.mean(0)
                std = ((elites - mean).square().sum(0) / (size.elites - 1)).sqrt()
                candidates.append(tried)
                costs.append(cost)
            means.append(mean)
        shape = (size.batch, size.iterations)
        kept = (torch.stack(candidates).unflatten(0, shape), torch.stack(costs).unflatten(0, shape))
        return PeerPlan(3.0 * size.batch, torch.stack(means), *(kept if record else (None, None)))


@pytest.mark.parametrize("ours", [plain, fast])
def test_our_search_is_the_peers(ours: Any, model: WorldModel) -> None:
    latent, goal, noise = problems(model, SMALL_SIZE)
    theirs = WrittenOut(model).plan(latent, goal, SMALL_SIZE, noise, record=True)
    cost_fn = ours(model)(latent[:, None, None], goal[:, None])
    search, box = peer_search(SMALL_SIZE), action_box(model)
    found = search.plan(cost_fn, peer_noise(noise, SMALL_SIZE.elites), box)
    torch.testing.assert_close(found.action_BHA, theirs.mean_BHA, rtol=0, atol=1e-3)
    assert cost_difference(cost_fn, theirs, model) < 1e-4
    # Without the correction of the std the search is another one.
    assert (search.plan(cost_fn, noise, box).action_BHA - theirs.mean_BHA).abs().max() > 0.01


def test_a_row_says_what_was_timed(model: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a clock that moves a second each time somebody looks, a plan of two problems takes half a second each."""
    peer: Any = WrittenOut(model)
    monkeypatch.setattr(module.time, "perf_counter", itertools.count().__next__)
    row = compare(peer, model, SMALL_SIZE, plans=3, name="small")
    assert peer.seeds == [1, 2, 3]
    assert (row.batch, row.candidates, row.iterations, row.horizon) == (2, 60, 6, 4)
    assert (row.peer, row.model, row.device) == ("stable-worldmodel 0 (written out)", "small", "cpu")
    assert (row.threads, row.torch) == (torch.get_num_threads(), torch.__version__)
    assert row.peer_ms_p50 == 3.0, "milliseconds are per problem"
    assert (row.ours_ms_p50, row.ours_ms_p95) == (500.0, 500.0)
    assert row.ratio == pytest.approx(3.0 / 500.0)
    assert 0 < row.max_cost_difference < 1e-4
    lines = table([row, row]).splitlines()
    assert len(lines) == 5 and "60x6x4" in lines[1] and "1 thread(s), cpu" in lines[-1]


def test_the_columns_of_a_row() -> None:
    assert list(PeerRow.__dataclass_fields__) == [
        *("case", "device", "threads", "model", "batch", "candidates", "iterations", "horizon"),
        *("ours_ms_p50", "ours_ms_p95", "peer", "peer_ms_p50", "ratio", "max_cost_difference", "hardware", "torch"),
    ]


def test_two_models_are_not_compared(model: WorldModel) -> None:
    peer: Any = WrittenOut(model, wrong=1.01)
    with pytest.raises(ValueError, match=r"disagree on the cost of a candidate by 9\.9e-03 of it, more than 0\.001"):
        compare(peer, model, SMALL_SIZE, plans=1)


def test_sizes() -> None:
    assert parse_size("50x10") == Size(batch=50, iterations=10, candidates=300, elites=30, horizon=5)
    for text in ("50", "0x10", "ax10", "1x2x3", "-1x3", ""):
        with pytest.raises(ValueError, match=rf"--sizes: '{text}' is not problems x iterations, such as 50x10"):
            parse_size(text)
    with pytest.raises(ValueError, match=r"elites is 1; it must lie in 2\.\.300"):
        Size(1, 1, elites=1)


def test_a_peer_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"nowhere cannot be started .*--peer-python"), Peer(tmp_path / "nowhere", 1):
        pass
    false = tmp_path / "python"
    false.write_text(f"#!{sys.executable}\nraise SystemExit('no torch here')\n")
    false.chmod(0o755)
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "plan", "--peer", "--peer-python", str(false), "--device", "cpu"])
    error = capsys.readouterr().err
    assert stopped.value.code == 1 and "Traceback" not in error
    assert f"stable-worldmodel does not work in {false} (it stopped: no torch here); install" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoint", "x"], "leave --checkpoint out"),
        (["--sizes", "3"], "--sizes: '3' is not"),
        (["--plans", "0"], "--plans is 0; time at least one plan per row"),
    ],
)
def test_what_cannot_be_compared(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "plan", "--peer", "--device", "cpu", *options])
    assert stopped.value.code == 1 and message in capsys.readouterr().err


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    with open_peer() as opened:
        yield opened


@pytest.mark.peers
@pytest.mark.parametrize("ours", [plain, fast])
def test_we_plan_what_the_peer_plans(ours: Any, peer: Peer, tmp_path: Path) -> None:
    """The same noise gives the same final mean and the same cost of every candidate on the way."""
    peer.make(SMALL, 1, tmp_path / "model")
    model = read_model(tmp_path / "model", UNSCALED)
    latent, goal, noise = problems(model, SMALL_SIZE)
    theirs = peer.plan(latent, goal, SMALL_SIZE, noise, record=True)
    cost_fn = ours(model)(latent[:, None, None], goal[:, None])
    found = peer_search(SMALL_SIZE).plan(cost_fn, peer_noise(noise, SMALL_SIZE.elites), action_box(model))
    torch.testing.assert_close(found.action_BHA, theirs.mean_BHA, rtol=0, atol=1e-3)
    assert theirs.mean_BHA.abs().max() > 0.5
    assert cost_difference(cost_fn, theirs, model) < 1e-4
    assert theirs.candidates_BINHA is not None and theirs.candidates_BINHA.shape == noise.shape


@pytest.mark.peers
def test_a_mistake_in_the_peer_is_a_sentence_and_not_its_end(peer: Peer, tmp_path: Path) -> None:
    peer.make(SMALL, 1, tmp_path / "model")
    model = read_model(tmp_path / "model", UNSCALED)
    latent, goal, noise = problems(model, SMALL_SIZE)
    with pytest.raises(
        PeerError, match=r"ValueError: the solver asked for noise of shape \(2, 60, 3, 4\); it was given"
    ):
        peer.plan(latent, goal, replace(SMALL_SIZE, horizon=3), noise)
    assert peer.plan(latent, goal, SMALL_SIZE, noise).ms > 0


@pytest.mark.peers
@pytest.mark.slow
def test_the_bench_itself(peer: Peer) -> None:
    """The paper's size, one iteration: tens of seconds."""
    (row,) = module.bench_peer(peer.python, [Size(1, 1)], threads=1, plans=1, device="cpu")
    assert row.peer_ms_p50 > 0 and row.max_cost_difference < 1e-4
