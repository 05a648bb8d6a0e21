"""Every study on a model that knows its world exactly, where the answers follow from a line of arithmetic."""

from pathlib import Path

import numpy as np
import pytest
import torch
from planted import SKIP, UNIT, KnownWorld, known_subject
from torch import Tensor

from lewm.data.store import Store
from lewm.study import probes, ranking, rollout, straightness, surprise
from lewm.study.probes import FRESH, HALF, LATENT, LINEAR, MLP, PICTURE


def test_a_latent_that_is_the_state_is_probed_perfectly(tmp_path: Path) -> None:
    subject = known_subject(tmp_path / "s")
    rows = probes.measure(subject, probes.ProbesConfig(frames=120, test_frames=80, steps=150), quiet=True).rows
    found = {(row.factor, row.features, row.probe): row for row in rows}
    assert {key[0] for key in found} == {"x", "y"}
    assert {key[1:] for key in found} == {(n, p) for n in (LATENT, FRESH, PICTURE) for p in (LINEAR, MLP)} | {
        (LATENT, HALF)
    }
    for factor in ("x", "y"):
        linear, mlp = found[factor, LATENT, LINEAR], found[factor, LATENT, MLP]
        assert linear.r2 is not None and mlp.r2 is not None
        assert linear.r2.value > 0.9999 and linear.r2.low > 0.999 and mlp.r2.value > 0.97  # but for the ridge
        assert linear.r2.n == len(subject.held_ids) == 4 and linear.width == 2
        half = found[factor, LATENT, HALF]
        assert half.fit_frames == linear.fit_frames // 2


def test_probes_are_scored_on_episodes_they_were_not_fitted_on(tmp_path: Path) -> None:
    """Features that only name the episode explain all of the training episodes and nothing of the others."""
    generator = torch.Generator().manual_seed(0)
    episode = np.repeat(np.arange(10), 8)
    level = torch.randn(20, generator=generator).repeat_interleave(8)[:, None]
    name = torch.eye(20).repeat_interleave(8, 0)
    fit, test = (
        probes.Frames({LATENT: name[part]}, level[part], episode + first)
        for part, first in ((slice(0, 80), 0), (slice(80, 160), 10))
    )
    rows = probes.score(fit, test, ("x",), (), probes.ProbesConfig(steps=20))
    assert rows[0].probe == LINEAR and rows[0].r2 is not None and rows[0].r2.value < 0.05


def test_a_straight_path_has_straightness_one(tmp_path: Path) -> None:
    rows = straightness.measure(known_subject(tmp_path / "s"), straightness.StraightnessConfig(), quiet=True).rows
    found = {row.space: row for row in rows}
    for space in (LATENT, PICTURE, straightness.STATE):
        cosine = found[space].cosine
        assert cosine is not None and cosine.value == pytest.approx(1, abs=1e-6) and cosine.low > 1 - 1e-6
        assert found[space].pairs == 4 * (10 - 1) and len(found[space].by_episode) == 4


def test_turns_reversals_and_standstill() -> None:
    """Right angle 0, reversal -1, and pairs with a displacement of nothing do not count."""
    path = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0], [1.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    cosine = straightness.turn_cosines(path)
    np.testing.assert_allclose(cosine[:2], [0, -1], atol=1e-12)
    assert np.isnan(cosine[2:]).all()
    row = straightness.straightness_row("t", "s", [path, path, path[3:5].repeat(3, 1)[::2]], 0)
    assert row.cosine is not None and row.cosine.value == pytest.approx(-0.5) and row.pairs == 4
    assert row.by_episode == (-0.5, -0.5, None)


def test_independent_noise_around_a_point_bends_by_minus_one_half() -> None:
    generator = torch.Generator().manual_seed(0)
    row = straightness.straightness_row("t", "s", [torch.randn(200, 64, generator=generator) for _ in range(5)], 0)
    assert row.cosine is not None and row.cosine.value == pytest.approx(-0.5, abs=0.01)


def test_a_model_that_knows_the_dynamics_makes_no_rollout_error(tmp_path: Path) -> None:
    subject = known_subject(tmp_path / "s")
    found = rollout.measure(subject, rollout.RolloutConfig(horizon=4, clips=20), quiet=True)
    assert [(r.quantity, r.blocks, r.steps) for r in found.rows[:5]] == [
        *(("latent", h, h * SKIP) for h in (1, 2, 3, 4)),
        ("x", 1, SKIP),
    ]
    for row in found.rows:
        assert row.error is not None and row.encoded is not None and row.no_change is not None
        assert row.error.value == pytest.approx(row.encoded.value, abs=1e-6)
        assert row.error.value < (1e-9 if row.quantity == "latent" else 0.05) * row.no_change.value


def test_no_change_is_as_wrong_as_the_world_moves(tmp_path: Path) -> None:
    """Every clip of an episode moves by the same: the error follows from the actions alone."""
    subject = known_subject(tmp_path / "s", drift=0.01)
    found = rollout.measure(subject, rollout.RolloutConfig(horizon=3, clips=20), quiet=True)
    store: Store = subject.store
    move = np.array([store.actions(int(e))[0] for e in subject.held_ids])
    variance = np.concatenate([store.states(int(e)) for e in subject.held_ids]).var(0, ddof=1).mean()
    for row in found.rows:
        assert row.no_change is not None and row.error is not None
        apart = move * SKIP * row.blocks * UNIT
        if row.quantity == "latent":
            assert row.no_change.value == pytest.approx((apart**2).mean() / variance, rel=1e-3)
            assert row.error.value == pytest.approx((0.01 * row.blocks) ** 2 / variance, rel=1e-3)
        else:
            entry = ("x", "y").index(row.quantity)
            assert row.no_change.value == pytest.approx((apart[:, entry] ** 2).mean() ** 0.5, rel=0.05)
            assert row.error.value == pytest.approx(0.01 * row.blocks, rel=0.1)  # the probe adds its own


def test_angles_are_decoded_and_compared_the_shorter_way_round() -> None:
    state = torch.tensor([[0.5, 3.1], [-1.0, -3.1]])
    names, angles = ("x", "turn"), ("turn",)
    target, _ = rollout.state_targets(state, names, angles)
    torch.testing.assert_close(rollout.decode(2 * target, names, angles), state * torch.tensor([2.0, 1.0]))
    apart = rollout.difference(state[:1], state[1:], names, angles)
    torch.testing.assert_close(apart, torch.tensor([[1.5, 6.2 - 2 * np.pi]]))


def test_a_frozen_picture_is_as_surprising_as_the_missed_move(tmp_path: Path) -> None:
    """Nobody can draw this task, so only the frozen picture is possible, and the rest says why not."""
    drift = 0.002
    subject = known_subject(tmp_path / "s", drift)
    found = surprise.measure(subject, surprise.SurpriseConfig(clips=20, before=2, after=2), quiet=True)
    rows = {row.event: row for row in found.rows}
    assert list(rows) == ["unaltered", "frozen", "teleport", "colour of things"]
    assert rows["teleport"].reason.startswith("the task cannot be made here (unknown task 'toy'")
    plain, frozen = rows["unaltered"], rows["frozen"]
    assert plain.blocks == (-1, 0, 1, 2) and frozen.unchanged == 0
    for estimate in plain.surprise:
        assert estimate is not None and estimate.value == pytest.approx(1, rel=1e-3)
    move = np.array([subject.store.actions(int(e))[0] for e in subject.held_ids]) * SKIP * UNIT
    missed = ((move + drift) ** 2).mean() / drift**2
    values = [estimate.value for estimate in frozen.surprise if estimate is not None]
    assert values == pytest.approx([1, missed, missed, missed], rel=1e-3)
    assert frozen.auroc is not None and frozen.auroc.value == 1


class Collapsed(KnownWorld):
    """Sees nothing and expects nothing."""

    def _encode(self, pixels_BTCYX: Tensor, proprio_BTP: Tensor | None) -> Tensor:
        return torch.zeros(*pixels_BTCYX.shape[:2], 1, 2)

    def predict(self, latent_BTKD: Tensor, action_BTA: Tensor, variable_BTV: Tensor | None = None) -> Tensor:
        return latent_BTKD


def test_a_model_that_is_never_wrong_has_no_usual_level(tmp_path: Path) -> None:
    subject = known_subject(tmp_path / "s")
    subject.model.__class__ = Collapsed
    with pytest.raises(ValueError, match="the model's error in unaltered clips is 0, so there is no usual level"):
        surprise.measure(subject, surprise.SurpriseConfig(clips=8, before=2, after=1), quiet=True)


def test_recordings_without_states(tmp_path: Path) -> None:
    """Pictures and actions alone: what needs states says so, the rest goes on."""
    subject = known_subject(tmp_path / "s", drift=0.002, states=False)
    with pytest.raises(ValueError, match="holds no states, so there is nothing to probe for"):
        probes.measure(subject, probes.ProbesConfig(), quiet=True)
    with pytest.raises(ValueError, match="without them there is no true distance"):
        ranking.measure(subject, ranking.RankingConfig(), quiet=True)
    rolled = rollout.measure(subject, rollout.RolloutConfig(horizon=2, clips=8), quiet=True)
    assert {row.quantity for row in rolled.rows} == {"latent"} and "no states" in rolled.notes[0]
    straight = straightness.measure(subject, straightness.StraightnessConfig(), quiet=True)
    assert [row.space for row in straight.rows] == [LATENT, FRESH, PICTURE]
    config = surprise.SurpriseConfig(clips=8, before=2, after=1)
    rows = {row.event: row for row in surprise.measure(subject, config, quiet=True).rows}
    assert (
        rows["frozen"].auroc is not None
        and rows["teleport"].reason == "the recordings hold no states to draw or to set"
    )
