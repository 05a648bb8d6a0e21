"""The cost-to-go head: its loss by hand, its draws by brute force, and that it learns shortest distances."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_models import toy_model

from lewm.config import RunConfig
from lewm.cost_to_go import (
    CostToGo,
    CostToGoConfig,
    Transitions,
    expectile_loss,
    td_loss,
    train_cost_to_go,
)
from lewm.data.store import Store
from lewm.heads_training import encode_store
from lewm.world_model import WorldModel

QUIET = True


def test_expectile_loss_by_hand() -> None:
    distance, target = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 2.0])
    assert expectile_loss(distance, target, 0.9).item() == pytest.approx((0.9 * 4 + 0.1 * 1 + 0) / 3)
    assert expectile_loss(distance, target, 0.5).item() == pytest.approx(0.5 * (4 + 1) / 3)


def test_td_target_by_hand() -> None:
    """1 + what is left, never more than the recording took nor than the horizon; no gradient into the target."""
    config = CostToGoConfig(width=4, horizon=5.0, expectile=0.5)
    head, target = CostToGo(config, 2, 1), CostToGo(config, 2, 1)
    for module, value in ((head, 0.0), (target, 0.0)):
        for parameter in module.parameters():
            torch.nn.init.constant_(parameter, value)
    torch.nn.init.constant_(target.net[-1].bias, 3.0)
    left = math.log1p(math.exp(3.0))
    latent = torch.zeros(3, 1, 2)
    recorded = torch.tensor([torch.inf, 0.4, 2.0])
    loss = td_loss(head, target, (latent, latent, latent, recorded), config)
    ours = math.log(2)
    assert loss.item() == pytest.approx(0.5 * np.mean([(ours - t) ** 2 for t in (1 + left, 0.4, 2.0)]), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in target.parameters())
    torch.nn.init.constant_(target.net[-1].bias, 9.0)
    clipped = td_loss(head, target, (latent, latent, latent, torch.full((3,), torch.inf)), config)
    assert clipped.item() == pytest.approx(0.5 * (ours - 5) ** 2, rel=1e-5)


def test_head_is_positive_normalises_and_broadcasts() -> None:
    torch.manual_seed(0)
    head = CostToGo(CostToGoConfig(width=8), 3, 2).eval()
    generator = torch.Generator().manual_seed(0)
    latent, goal = torch.randn(2, 5, 4, 2, 3, generator=generator), torch.randn(2, 2, 3, generator=generator)
    blocks = head(latent, goal[:, None, None])
    assert blocks.shape == (2, 5, 4) and (blocks >= 0).all()
    torch.testing.assert_close(blocks[1, 3, 2], head(latent[1, 3, 2], goal[1]))
    moved = CostToGo(CostToGoConfig(width=8), 3, 2)
    moved.load_state_dict(head.state_dict())
    moved.mean_D += 2
    moved.std_D *= 3
    torch.testing.assert_close(moved(3 * latent + 2, 3 * goal[:, None, None] + 2), blocks)


def labelled(lengths: np.ndarray) -> torch.Tensor:
    """latent_FKD that says (episode, frame)."""
    rows = [(episode, frame) for episode, n in enumerate(lengths) for frame in range(n + 1)]
    return torch.tensor(rows, dtype=torch.float32)[:, None]


@pytest.mark.parametrize("skip", [1, 3, 5])
def test_transitions_stay_in_their_episode_and_know_the_recorded_distance(skip: int) -> None:
    lengths = np.array([7, 2, 12, 5, 6])
    latent = labelled(lengths)
    data = Transitions(latent, latent + 0.5, lengths, skip)
    z, following, goal, recorded = data.draw(20_000, 0.5, torch.Generator().manual_seed(0))
    episode, frame = z[:, 0].T
    assert torch.equal(following[:, 0, 0], episode)
    assert torch.equal(following[:, 0, 1], frame + skip)
    every_start = {(e, t) for e, n in enumerate(lengths) for t in range(n + 1 - skip)}
    assert {(int(e), int(t)) for e, t in zip(episode, frame, strict=True)} == every_start
    own = recorded.isfinite()
    assert own.float().mean() == pytest.approx(0.5, abs=0.02)
    goal = goal[:, 0] - 0.5
    assert torch.equal(goal[own, 0], episode[own])
    torch.testing.assert_close(recorded[own], (goal[own, 1] - frame[own]) / skip)
    assert (recorded[own] >= 0).all()
    assert (recorded[own] == 0).any()  # d(z, z) = 0 is drawn, so it is trained
    reached = {(int(e), int(t), int(g)) for e, t, g in zip(episode[own], frame[own], goal[own, 1], strict=True)}
    assert reached == {(e, t, g) for e, t in every_start for g in range(t, lengths[e] + 1)}
    everything = {(e, t) for e, n in enumerate(lengths) for t in range(n + 1)}
    assert {(int(e), int(t)) for e, t in goal[~own]} == everything


def test_share_of_hindsight_goals() -> None:
    latent = labelled(np.array([9, 9]))
    data = Transitions(latent, latent, np.array([9, 9]), 3)
    for share in (0.0, 1.0):
        recorded = data.draw(500, share, torch.Generator().manual_seed(0))[3]
        assert recorded.isfinite().float().mean() == share


def walks(neighbours: Callable[[int], list[int]], places: int, count: int, length: int) -> np.ndarray:
    """Random walks, (count, length + 1) places."""
    rng = np.random.default_rng(0)
    place = rng.integers(places, size=count)
    walk = [place]
    for _ in range(length):
        place = np.array([rng.choice(neighbours(int(p))) for p in place])
        walk.append(place)
    return np.stack(walk, 1)


def fit_world(
    points: np.ndarray, walk: np.ndarray, model: WorldModel, folder: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> np.ndarray:
    """Train a head on latents that are the given points; distances (P, P) between all places."""
    latent = torch.tensor(points, dtype=torch.float32)[torch.from_numpy(walk.reshape(-1))][:, None]
    monkeypatch.setattr("lewm.heads_training.encode_store", lambda *_, **__: (latent, latent))
    lengths = np.zeros(len(walk), [("length", np.int64)])
    lengths["length"] = walk.shape[1] - 1
    fake = type("Walks", (), {"num_episodes": len(walk), "episodes": lengths, "path": folder, "meta": None})()
    # The split holds one walk out; the latents are those of all, so hand every walk to the fit.
    monkeypatch.setattr("lewm.heads_training.split_episodes", lambda *_: (np.arange(len(walk)), np.arange(0)))
    config = CostToGoConfig(width=64, steps=steps, batch=256, horizon=30.0, learning_rate=3e-3, target_rate=0.02)
    head = train_cost_to_go(model, config, fake, folder, 0.1, 0, QUIET)
    places = torch.tensor(points, dtype=torch.float32)[:, None]
    with torch.no_grad():
        return head(places[:, None], places[None]).numpy()


def shortest(neighbours: Callable[[int], list[int]], places: int) -> np.ndarray:
    distance = np.full((places, places), np.inf)
    for start in range(places):
        front, steps = {start}, 0
        while front:
            for place in front:
                distance[start, place] = steps
            front, steps = {n for p in front for n in neighbours(p) if not np.isfinite(distance[start, n])}, steps + 1
    return distance


def test_it_learns_shortest_paths_around_a_wall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 4 x 4 grid cut by a wall with one door, seen through random walks only.

    Measured: correlation with the truth 0.99 (straight lines: 0.62), 7.8 blocks where the truth is 7 and a straight
    line is 1, 1.2 blocks to a neighbour, at most 0.23 blocks from a place to itself.
    """
    side = 4

    def neighbours(place: int) -> list[int]:
        y, x = divmod(place, side)
        steps = [(y, x + 1), (y, x - 1), (y + 1, x), (y - 1, x)]
        inside = [(v, u) for v, u in steps if 0 <= v < side and 0 <= u < side]
        return [v * side + u for v, u in inside if y == 0 or {x, u} != {1, 2}]

    model = toy_model(frame_skip=1)
    points = np.array([[x, y, math.sin(x), math.cos(y)] for y in range(side) for x in range(side)], float)
    truth = shortest(neighbours, side * side)
    learned = fit_world(points, walks(neighbours, side * side, 60, 40), model, tmp_path, monkeypatch, 1200)
    apart = ~np.eye(side * side, dtype=bool)
    straight = np.abs(points[:, None, :2] - points[None, :, :2]).sum(-1)
    assert np.corrcoef(straight[apart], truth[apart])[0, 1] < 0.65
    assert np.corrcoef(learned[apart], truth[apart])[0, 1] > 0.95
    assert learned.diagonal().max() < 0.6
    bottom = side * (side - 1)
    across, along = learned[bottom + 1, bottom + 2], learned[bottom, bottom + 1]
    assert across > 4 > 2.5 > along


def test_goals_are_single_pictures_stacked_with_themselves(tiny_store: Store) -> None:
    episodes = np.array([1, 4])
    model = toy_model(frame_skip=5, frame_stack=2, stack_stride=3)
    latent, goals = encode_store(model, tiny_store, episodes, QUIET)
    pixels = [torch.from_numpy(tiny_store.pixels(int(e))).permute(0, 3, 1, 2) for e in episodes]
    still = torch.cat([torch.cat([p, p], 1) for p in pixels])
    torch.testing.assert_close(goals, model.encode(still[:, None])[:, 0])
    moving = torch.cat([torch.cat([p[np.maximum(np.arange(len(p)) - 3, 0)], p], 1) for p in pixels])
    torch.testing.assert_close(latent, model.encode(moving[:, None])[:, 0])
    assert len(latent) == sum(tiny_store.episodes["length"][episodes] + 1)


def test_without_stacking_goals_are_what_is_seen(tiny_store: Store) -> None:
    latent, goals = encode_store(toy_model(frame_skip=5), tiny_store, np.array([0]), QUIET)
    assert goals is latent


def fit(model: WorldModel, store: Store, out: Path, **changes: float) -> dict[str, torch.Tensor]:
    config = replace(CostToGoConfig(width=16, steps=8, batch=16), **changes)
    return train_cost_to_go(model, config, store, out, 0.25, 0, QUIET).state_dict()


def test_same_seed_same_head_and_a_finished_fit_is_kept(tiny_store: Store, tmp_path: Path) -> None:
    model = toy_model(frame_skip=5)
    first = fit(model, tiny_store, tmp_path / "a")
    again, other = fit(model, tiny_store, tmp_path / "a"), fit(model, tiny_store, tmp_path / "b")
    for key, value in first.items():
        assert torch.equal(value, again[key]) and torch.equal(value, other[key])


def test_an_interrupted_fit_continues_to_the_same_head(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model(frame_skip=5)
    whole = fit(model, tiny_store, tmp_path / "whole", steps=30)
    draw, clock, calls = Transitions.draw, iter(range(0, 10_000, 30)), [0]

    def draw_then_die(self: Transitions, *arguments: object) -> tuple[torch.Tensor, ...]:
        calls[0] += 1
        if calls[0] == 12:
            raise KeyboardInterrupt
        return draw(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Transitions, "draw", draw_then_die)
        patch.setattr("lewm.heads_training.time.monotonic", lambda: next(clock))
        with pytest.raises(KeyboardInterrupt):
            fit(model, tiny_store, tmp_path / "cut", steps=30)
    assert torch.load(tmp_path / "cut" / "cost_to_go.pt", weights_only=True)["step"] == 11
    for key, value in fit(model, tiny_store, tmp_path / "cut", steps=30).items():
        assert torch.equal(value, whole[key]), key


@pytest.mark.parametrize("change", ["expectile", "steps", "model"])
def test_a_fit_for_anything_else_is_not_taken_for_this_one(tiny_store: Store, tmp_path: Path, change: str) -> None:
    """The folder holds a finished head; another setting or another model must neither reuse it nor mix with it."""
    model = toy_model(frame_skip=5)
    fit(model, tiny_store, tmp_path)
    changes = {"expectile": {"expectile": 0.6}, "steps": {"steps": 4}, "model": {}}[change]
    if change == "model":
        with torch.no_grad():
            next(model.parameters()).mul_(2)
    with pytest.raises(RuntimeError, match=r"cost_to_go\.pt"):
        fit(model, tiny_store, tmp_path, **changes)


def test_a_loss_that_is_not_finite_is_an_error(tiny_store: Store, tmp_path: Path) -> None:
    model = toy_model(frame_skip=5)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(RuntimeError, match="the loss is nan at step"):
        fit(model, tiny_store, tmp_path, steps=8)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expectile is 0\.3; it must lie in \[0\.5, 1\)"):
        CostToGoConfig(expectile=0.3)
    with pytest.raises(ValueError, match="hindsight is 2"):
        CostToGoConfig(hindsight=2)


def test_the_tiny_run_saves_its_head(tiny_checkpoint_path: Path, tiny_run: RunConfig) -> None:
    from lewm import load

    head = load(tiny_checkpoint_path).cost_to_go
    assert head is not None and head.config == tiny_run.cost_to_go
    assert not torch.equal(head.mean_D, torch.zeros_like(head.mean_D))
