"""What an audit measures: the clips it reads, motion, what is new in an action, how well one thing tells another."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from toy_recordings import make_episode, make_meta

from lewm.data.audit_probe import innovations, score
from lewm.data.audit_sample import AuditConfig, motion_features, read_sample
from lewm.data.store import Store
from lewm.data.writer import StoreWriter


def test_the_news_of_an_action_is_what_the_one_before_does_not_tell() -> None:
    rng, actions = np.random.default_rng(0), []
    noise = rng.standard_normal((3, 2000, 1))
    for episode in noise:
        series = [episode[0]]
        for fresh in episode[1:]:
            series.append(0.9 * series[-1] + fresh)
        actions.append(np.array(series, np.float32))
    for news, fresh in zip(innovations(actions), noise):
        assert np.corrcoef(news[:, 0], fresh[1:, 0])[0, 1] > 0.999
    assert [len(news) for news in innovations([a[:n] for a, n in zip(actions, (5, 9, 2))])] == [4, 8, 1]


def test_motion_features_measure_the_move_of_a_ramp() -> None:
    """A ramp of slope g moved by u changes by -g u everywhere: gradient times change sums to -g g u per pixel."""
    y, x = np.mgrid[:32, :32].astype(np.float32)
    ramp = np.stack([0.02 * x + 0.03 * y, 0.02 * (x - 0.5) + 0.03 * y])[..., None]
    features = motion_features(np.repeat(ramp, 3, -1))
    assert features.shape == (1, 2 * (1 + 4 + 16))
    down, right = features[0, :21], features[0, 21:]
    assert_allclose(right[0], -0.02 * 0.02 * 0.5 * 3 * 32 * 32, rtol=1e-3)
    assert_allclose(down[0], -0.03 * 0.02 * 0.5 * 3 * 32 * 32, rtol=1e-3)
    assert_allclose(right[1:5], right[0] / 4, rtol=1e-3)
    assert_allclose(right[5:], right[0] / 16, rtol=1e-3)


def test_the_score_is_that_of_rows_it_was_not_fitted_on() -> None:
    rng = np.random.default_rng(0)
    features, scored = rng.standard_normal((900, 5)), np.arange(900) % 3 == 2
    told = features @ rng.standard_normal((5, 2)) * [1, 1000]
    assert score(features, told, scored) > 0.999
    assert abs(score(features, rng.standard_normal((900, 2)), scored)) < 0.05
    half = told / told.std(0) + rng.standard_normal((900, 2))
    assert score(features, half, scored) == pytest.approx(0.5, abs=0.1)  # as much signal as noise
    lucky = np.where(scored[:, None], rng.standard_normal((900, 2)), told)
    assert score(features, lucky, scored) < 0
    constant = np.c_[told[:, 0], np.ones(900)]
    assert score(features, constant, scored) > 0.999


def test_long_episodes_are_read_piece_by_piece(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", make_meta()) as writer:
        writer.write([make_episode(0, 300), make_episode(1, 130)])
    sample = read_sample(Store.open(tmp_path / "s"), AuditConfig(episodes=None))
    assert [(c.episode, c.start, len(c.same_nV)) for c in sample.clips] == [
        (0, 0, 128),
        (0, 128, 128),
        (0, 256, 44),
        (1, 0, 128),
        (1, 128, 2),
    ]
    assert sample.steps == 430
    clip = sample.clips[1]
    assert len(clip.brightness_nV) == len(clip.states_nS) == 129 and clip.actions_nA[0, 1] == 128
    middle = read_sample(Store.open(tmp_path / "s"), AuditConfig(episodes=2, steps=150)).clips
    assert [(c.episode, c.start, len(c.same_nV)) for c in middle] == [
        (0, 0, 128),
        (0, 128, 22),
        (1, 0, 128),
        (1, 128, 2),
    ]
