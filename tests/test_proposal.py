"""The proposal: its loss by hand, its draws by brute force, what it learns, and the folder and command it lives in."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_models import FACTS, toy_head, toy_model, toy_origin

import lewm
from lewm import pipeline
from lewm.checkpoint import load, save_checkpoint
from lewm.cli import main
from lewm.config import RunConfig, dump
from lewm.data.store import Store
from lewm.heads_training import Recorded
from lewm.planning.action_limits import action_box
from lewm.planning.informed_start import informed_start, propose
from lewm.proposal import Demonstrations, Proposal, ProposalConfig, beta_nll, recorded_actions, train_proposal
from lewm.world_model import WorldModel
from planners import CEM, Plan, WarmStart, noise_table

SMALL = ProposalConfig(width=16, layers=1, horizon=2, steps=8, batch=16)


def small_proposal(model: WorldModel, config: ProposalConfig = SMALL) -> Proposal:
    torch.manual_seed(2)
    head = Proposal(config, model.latent_dim, model.tokens, model.action_dim)
    head.longest.fill_(20.0)
    return head.eval().requires_grad_(False)


def test_loss_by_hand() -> None:
    """std 2, error 1: log 2 + 1/8; std 1, error 3: 9/2; the third is masked. beta 0.5 weighs them with their stds."""
    mean, target = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1.0, -3.0, 50.0])
    std, known = torch.tensor([2.0, 1.0, 1.0]), torch.tensor([True, True, False])
    first, second = math.log(2) + 1 / 8, 9 / 2
    for beta, weights in ((0.0, (1, 1)), (0.5, (2, 1)), (1.0, (4, 1))):
        expected = (weights[0] * first + weights[1] * second) / 2
        assert beta_nll(mean, std, target, known, beta).item() == pytest.approx(expected, rel=1e-6)


def test_gradients_of_the_loss_by_hand() -> None:
    """d/dmean = -weight error / var, d/dstd = weight (1/std - error^2 / std^3); nothing goes through the weight."""
    mean, std = torch.tensor([0.0], requires_grad=True), torch.tensor([2.0], requires_grad=True)
    beta_nll(mean, std, torch.tensor([1.0]), torch.tensor([True]), 0.5).backward()
    assert mean.grad is not None and std.grad is not None
    assert mean.grad.item() == pytest.approx(-2 * 1 / 4)
    assert std.grad.item() == pytest.approx(2 * (1 / 2 - 1 / 8))


@pytest.mark.parametrize("skip", [1, 3])
def test_draws_are_the_recorded_actions_on_the_way_to_the_goal(skip: int) -> None:
    """Latents say (episode, frame), actions say the frame they leave: everything drawn can be read off."""
    lengths, horizon = np.array([7, 2, 12, 5]), 2
    rows = torch.tensor([(e, t) for e, n in enumerate(lengths) for t in range(n + 1)], dtype=torch.float32)
    action_Fa = torch.stack([rows[:, 0] * 100 + rows[:, 1], -rows[:, 1]], -1)
    recorded = Recorded(rows[:, None], rows[:, None] + 0.5, np.arange(4), lengths)
    data = Demonstrations(recorded, action_Fa, skip, horizon)
    latent, goal, left, action, known = data.draw(20_000, 1.0, torch.Generator().manual_seed(0))
    episode, frame = latent[:, 0].T
    goal = goal[:, 0] - 0.5
    assert torch.equal(goal[:, 0], episode)
    steps = goal[:, 1] - frame
    torch.testing.assert_close(left, steps / skip)
    assert steps.min() == 1
    assert (goal[:, 1] <= torch.from_numpy(lengths)[episode.long()]).all()
    assert action.shape == known.shape == (20_000, horizon, 2 * skip)
    raw, mask = action.reshape(-1, horizon * skip, 2), known.reshape(-1, horizon * skip, 2)
    later = frame[:, None] + torch.arange(horizon * skip)
    assert torch.equal(mask[..., 0], later < goal[:, 1:]) and torch.equal(mask[..., 1], mask[..., 0])
    assert torch.equal(raw[..., 0][mask[..., 0]], (episode[:, None] * 100 + later)[mask[..., 0]])
    assert torch.equal(raw[..., 1][mask[..., 0]], -later[mask[..., 0]])
    seen = {(int(e), int(t), int(g)) for e, t, g in zip(episode, frame, goal[:, 1], strict=True)}
    assert seen == {(e, t, g) for e, n in enumerate(lengths) for t in range(n + 1 - skip) for g in range(t + 1, n + 1)}


def test_actions_lie_at_the_frame_they_leave(tiny_store: Store) -> None:
    episodes = np.array([1, 4])
    action_Fa = recorded_actions(tiny_store, episodes)
    first = len(tiny_store.actions(1))
    np.testing.assert_array_equal(action_Fa[:first], tiny_store.actions(1))
    np.testing.assert_array_equal(action_Fa[first + 1 : -1], tiny_store.actions(4))
    assert not action_Fa[first].any() and not action_Fa[-1].any()


def test_what_comes_out() -> None:
    """Scaled means and stds of every action; steps left matter up to the longest recording and not beyond."""
    model = toy_model()
    head = small_proposal(model, replace(SMALL, min_std=0.4))
    generator = torch.Generator().manual_seed(0)
    latent, goal = torch.randn(2, 5, 1, 4, generator=generator)
    mean, std = head(latent, goal, torch.full((5,), 3.0))
    assert mean.shape == std.shape == (5, 2, model.action_dim)
    assert (std > 0.4).all()
    assert not torch.allclose(mean, head(latent, goal, torch.full((5,), 6.0))[0])
    assert torch.equal(head(latent, goal, torch.full((5,), 20.0))[0], head(latent, goal, torch.full((5,), 90.0))[0])
    alone = head(latent[3:4], goal[3:4], torch.full((1,), 3.0))
    torch.testing.assert_close((mean[3:4], std[3:4]), alone)


class Walks:
    """Recordings of a point that each action moves by itself, in units of the actions' own mean and std."""

    def __init__(self, episodes: int, length: int) -> None:
        self.num_episodes = episodes
        self.episodes = np.zeros(episodes, [("length", np.int64)])
        self.episodes["length"] = length
        self.scaled = np.random.default_rng(0).normal(size=(episodes, length, 2)).astype(np.float32)

    def actions(self, episode: int) -> np.ndarray:
        return self.scaled[episode] * np.float32(FACTS.action_std) + np.float32(FACTS.action_mean)

    def latents(self) -> torch.Tensor:
        place = np.pad(self.scaled.cumsum(1), ((0, 0), (1, 0), (0, 0)))
        return torch.from_numpy(np.pad(place, ((0, 0), (0, 0), (0, 2))).reshape(-1, 1, 4))


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> tuple[WorldModel, Proposal]:
    """A proposal for blocks of two steps, fitted on 200 random walks of 24 steps whose latent is the position."""
    walks, model, patch = Walks(200, 24), toy_model(frame_skip=2), pytest.MonkeyPatch()
    patch.setattr("lewm.heads_training.encode_store", lambda *_, **__: (walks.latents(), walks.latents()))
    patch.setattr("lewm.heads_training.split_episodes", lambda *_: (np.arange(200), np.arange(0)))
    config = ProposalConfig(width=64, layers=2, horizon=4, steps=1500, batch=256, learning_rate=3e-3, blocks_left=4)
    proposal = train_proposal(model, config, walks, tmp_path_factory.mktemp("walks"), 0.1, 0, True)
    patch.undo()
    return model, proposal


def places(count: int, reach: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Present positions and goals about `reach` away, as latents."""
    generator = torch.Generator().manual_seed(1)
    here = torch.zeros(count, 1, 4)
    here[..., :2] = torch.randn(count, 1, 2, generator=generator)
    there = here.clone()
    there[..., :2] += reach * torch.randn(count, 1, 2, generator=generator)
    return here, there


@pytest.mark.parametrize("blocks", [1, 3, 6])
def test_it_learns_the_conditional_gaussian(walker: tuple[WorldModel, Proposal], blocks: int) -> None:
    """Independent unit steps that sum to a displacement d in j steps have mean d / j and variance 1 - 1/j each.

    Measured: the mean is off by 0.02 - 0.03 (root mean square; its own is 0.29 - 0.71), the mean std by at most 0.021.
    """
    _, proposal = walker
    steps = 2 * blocks
    here, there = places(200, steps**0.5)
    mean, std = proposal(here, there, torch.full((200,), float(blocks)))
    known = min(steps, 8)
    mean, std = (x.reshape(200, 8, 2)[:, :known] for x in (mean, std))
    expected = ((there - here)[:, 0, None, :2] / steps).expand_as(mean)
    assert (mean - expected).square().mean().sqrt() < 0.06
    assert abs(std.mean() - math.sqrt(1 - 1 / steps)) < 0.05


def distance_left(model: WorldModel, here: torch.Tensor, there: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Cost of a plan in the walkers' world: distance from the goal at its end."""

    def cost(action_BNHA: torch.Tensor) -> torch.Tensor:
        moved = model.scale_action(action_BNHA).unflatten(-1, (2, 2)).sum((2, 3))
        return (here[:, :, :2] + moved - there[:, :, :2]).norm(dim=-1)

    return cost


def plan_for(model: WorldModel, proposal: Proposal, planner: CEM, use: str) -> Plan:
    here, there = places(64, 3.0)
    box = action_box(model)
    start: WarmStart | None = None
    if use != "none":
        guess = propose(proposal, None, here, there, box, planner.horizon)
        start = informed_start(use, None, *guess, planner, box)
    noise = noise_table([(0, row, 0) for row in range(64)], planner, model.action_dim)
    return planner.plan(distance_left(model, here, there), noise, box, start)


def test_alone_it_reaches_the_goal(walker: tuple[WorldModel, Proposal]) -> None:
    """Followed open loop for its 4 blocks, from 4.2 away on average. Measured: 0.10 left."""
    model, proposal = walker
    here, there = places(64, 3.0)
    cost = distance_left(model, here, there)
    box = action_box(model)
    mean, _ = propose(proposal, None, here, there, box, 4)
    assert cost(box.mean_A.expand(64, 1, 4, -1)).mean() > 3.5
    assert cost(mean[:, None]).mean() < 0.3


def test_a_seeded_search_needs_little(walker: tuple[WorldModel, Proposal]) -> None:
    """CEM 8 x 1 against 64 x 3, distance left. Measured: 2.43 alone, 0.10 seeded or with the prior, 0.20 for 64 x 3."""
    model, proposal = walker
    little = CEM(horizon=4, candidates=8, iterations=1, elites=2, execute="best")
    much = CEM(horizon=4, candidates=64, iterations=3, elites=8, execute="best")
    uses = ("none", "seed", "prior")
    alone, seeded, narrowed = (plan_for(model, proposal, little, use).cost_B.mean() for use in uses)
    searched = plan_for(model, proposal, much, "none").cost_B.mean()
    assert seeded < searched and narrowed < searched
    assert alone > 5 * searched


def fit(model: WorldModel, store: Store, out: Path, **changes: float) -> dict[str, torch.Tensor]:
    return train_proposal(model, replace(SMALL, **changes), store, out, 0.25, 0, True).state_dict()


def test_same_seed_same_proposal_and_a_finished_fit_is_kept(tiny_store: Store, tmp_path: Path) -> None:
    model = toy_model(frame_skip=5)
    first = fit(model, tiny_store, tmp_path / "a")
    again, other = fit(model, tiny_store, tmp_path / "a"), fit(model, tiny_store, tmp_path / "b")
    for key, value in first.items():
        assert torch.equal(value, again[key]) and torch.equal(value, other[key])
    assert first["longest"] == 40 / 5 and first["mean_D"].any()


def test_an_interrupted_fit_continues_to_the_same_proposal(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model(frame_skip=5)
    whole = fit(model, tiny_store, tmp_path / "whole", steps=30)
    draw, clock, calls = Demonstrations.draw, iter(range(0, 10_000, 30)), [0]

    def draw_then_die(self: Demonstrations, *arguments: object) -> tuple[torch.Tensor, ...]:
        calls[0] += 1
        if calls[0] == 12:
            raise KeyboardInterrupt
        return draw(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Demonstrations, "draw", draw_then_die)
        patch.setattr("lewm.heads_training.time.monotonic", lambda: next(clock))
        with pytest.raises(KeyboardInterrupt):
            fit(model, tiny_store, tmp_path / "cut", steps=30)
    assert torch.load(tmp_path / "cut" / "proposal.pt", weights_only=True)["step"] == 11
    for key, value in fit(model, tiny_store, tmp_path / "cut", steps=30).items():
        assert torch.equal(value, whole[key]), key
    with pytest.raises(RuntimeError, match=r"proposal\.pt was fitted with another config"):
        fit(model, tiny_store, tmp_path / "cut", steps=30, beta=0.0)


def test_a_loss_that_is_not_finite_is_an_error(tiny_store: Store, tmp_path: Path) -> None:
    model = toy_model(frame_skip=5)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(RuntimeError, match="proposal: the loss is nan at step 8; lower its learning_rate"):
        fit(model, tiny_store, tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"beta": 1.5}, r"proposal\.beta is 1\.5; it must lie in \[0, 1\]"),
        ({"horizon": 0}, r"proposal\.horizon is 0; it must be at least 1"),
        ({"min_std": 0.0}, r"proposal\.min_std is 0\.0; it must be positive"),
        ({"steps": -1}, r"proposal\.steps is -1; it must be 0 or more"),
        ({"blocks_left": 0.5}, r"proposal\.blocks_left is 0\.5; it must be at least 1"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProposalConfig(**changes)


@pytest.mark.parametrize("with_head", [True, False])
def test_checkpoint_round_trip(with_head: bool, tmp_path: Path) -> None:
    model = toy_model()
    proposal, head = small_proposal(model), toy_head(model) if with_head else None
    save_checkpoint(tmp_path / "c", model, head, toy_origin(), {}, proposal=proposal)
    loaded = load(tmp_path / "c")
    assert loaded.proposal is not None and loaded.proposal.config == SMALL
    assert (loaded.cost_to_go is not None) == with_head
    for key, value in proposal.state_dict().items():
        assert torch.equal(loaded.proposal.state_dict()[key], value), key
    assert not any(p.requires_grad for p in loaded.proposal.parameters())
    assert "with a proposal" in (tmp_path / "c" / "README.md").read_text()


def test_a_checkpoint_from_before_there_were_proposals_loads(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", toy_model(), None, toy_origin(), {})
    assert "without a proposal" in (tmp_path / "c" / "README.md").read_text()
    path = tmp_path / "c" / "config.json"
    header = json.loads(path.read_text())
    assert header.pop("proposal") is None
    path.write_text(json.dumps(header))
    assert load(tmp_path / "c").proposal is None


def test_a_run_fits_it_after_the_cost_to_go(tiny_run: RunConfig, tiny_store: Store, tmp_path: Path) -> None:
    """The same run with a proposal has the same model and the same cost-to-go, and one part more."""
    plain = lewm.load(pipeline.fit(tiny_run, tiny_store, tmp_path / "plain", torch.device("cpu"), quiet=True))
    run = replace(tiny_run, proposal=SMALL)
    both = lewm.load(pipeline.fit(run, tiny_store, tmp_path / "both", torch.device("cpu"), quiet=True))
    assert plain.proposal is None and both.proposal is not None and both.proposal.config == SMALL
    assert plain.cost_to_go is not None and both.cost_to_go is not None
    for ours, theirs in ((plain.model, both.model), (plain.cost_to_go, both.cost_to_go)):
        for key, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[key]), key


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and last line of what the command says."""
    try:
        main(list(words))
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, (captured.err if code else captured.out).strip().splitlines()[-1]


def test_the_command_adds_one_to_a_checkpoint(
    tiny_run: RunConfig,
    tiny_store: Store,
    tiny_checkpoint_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "run.yaml").write_text(dump(tiny_run))
    start = ["train", str(tmp_path / "run.yaml"), "--data", str(tiny_store.path), "--device", "cpu"]
    give = [*start, "--proposal-only", str(tiny_checkpoint_path), "--out", str(tmp_path / "r")]
    code, said = command(capsys, *give)
    assert (code, said) == (1, "lewm train: proposal.steps is 0, which fits none: add --proposal.steps 4000")
    code, said = command(capsys, *give, "--proposal.steps", "3", "--proposal.width", "8")
    assert (code, said) == (0, f"checkpoint {tmp_path / 'r' / 'checkpoint'}")
    given, before = lewm.load(tmp_path / "r" / "checkpoint"), lewm.load(tiny_checkpoint_path)
    assert given.proposal is not None and (given.proposal.config.steps, given.proposal.config.width) == (3, 8)
    assert given.cost_to_go is not None and before.cost_to_go is not None
    assert torch.equal(given.cost_to_go.net[0].weight, before.cost_to_go.net[0].weight)
    refit = [*start, "--cost-to-go-only", str(tmp_path / "r" / "checkpoint"), "--out", str(tmp_path / "s")]
    assert command(capsys, *refit, "--cost_to_go.steps", "2")[0] == 0
    kept = lewm.load(tmp_path / "s" / "checkpoint").proposal
    assert kept is not None and torch.equal(kept.net[0].weight, given.proposal.net[0].weight)
    code, said = command(capsys, *give, "--cost-to-go-only", str(tiny_checkpoint_path))
    assert code == 2 and "--cost-to-go-only: not allowed with argument --proposal-only" in said
