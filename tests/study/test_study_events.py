"""Altered clips: what changes, when, and that nothing else does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_models import toy_model

import envs
from lewm.checkpoint import Checkpoint
from lewm.data.store import Store
from lewm.data.windows import Windows, WindowSpec
from lewm.evaluate.worlds import recorded_world
from lewm.nets.predictors import AdaLNConfig
from lewm.study.events import Clip, Film, Filmed, colour_factors, open_task
from lewm.study.subject import make_subject
from lewm.study.surprise import SurpriseConfig, differs, measure, one_step
from lewm.world_model import ModelConfig

CLIPS, LENGTH, EVENT, SKIP = [Clip(1, 3), Clip(2, 0), Clip(5, 9)], 6, 3, 5


def film(store: Store, stack: int = 1, event: int = EVENT) -> Film:
    task, reason = open_task(store)
    assert task is not None and not reason
    return Film(store, task, ModelConfig(frame_skip=SKIP, frame_stack=stack), CLIPS, LENGTH, event, 0)


def same_before(altered: Filmed, plain: Filmed) -> bool:
    return torch.equal(altered.pixels_BTCYX[:, :EVENT], plain.pixels_BTCYX[:, :EVENT])


@pytest.mark.parametrize("stack", [1, 3])
def test_unaltered_clips_are_what_training_saw(tiny_store: Store, stack: int) -> None:
    """The painter draws what it drew then: drawn clips equal the windows of the recordings, history included."""
    windows = Windows(tiny_store, WindowSpec(LENGTH, SKIP, stack), np.array([1, 2, 5]))
    located = list(zip(*windows.locate(np.arange(len(windows))), strict=True))
    index = np.array([located.index((clip.episode, clip.start)) for clip in CLIPS])
    drawn = film(tiny_store, stack).unaltered()
    assert torch.equal(drawn.pixels_BTCYX, windows.batch(index).pixels_BTCYX)
    np.testing.assert_allclose(drawn.state_BTS, windows.batch(index).state_BTS.numpy())
    assert film(tiny_store).difference_from_recorded() == 0


def test_clips_of_varied_recordings_are_filmed_in_the_recorded_worlds(varied_store: Store) -> None:
    taken = film(varied_store)
    assert taken.difference_from_recorded() == 0
    plain, jumped, painted = taken.unaltered(), taken.teleported(), taken.recoloured("floor")
    assert same_before(jumped, plain) and differs(plain, jumped, EVENT).all() and differs(plain, painted, EVENT).all()
    task, _ = open_task(varied_store)
    assert task is not None
    for b, clip in enumerate(CLIPS):
        task.vary(recorded_world(task, varied_store, clip.episode))
        shown = jumped.pixels_BTCYX[b, -1].movedim(0, -1).numpy()
        np.testing.assert_array_equal(shown, task.goal_image(jumped.state_BTS[b, -1]))


def test_a_frozen_picture_stays_while_the_state_goes_on(tiny_store: Store) -> None:
    taken = film(tiny_store)
    plain, frozen = taken.unaltered(), taken.frozen()
    assert same_before(frozen, plain)
    for t in range(EVENT, LENGTH):
        assert torch.equal(frozen.pixels_BTCYX[:, t], plain.pixels_BTCYX[:, EVENT - 1])
    np.testing.assert_array_equal(frozen.state_BTS, plain.state_BTS)
    moved = (plain.state_BTS[:, EVENT] != plain.state_BTS[:, EVENT - 1]).any(1)
    assert moved.any() and (differs(plain, frozen, EVENT) == moved).all()


def test_after_a_teleport_the_recorded_actions_go_on(tiny_store: Store) -> None:
    taken = film(tiny_store)
    plain, jumped = taken.unaltered(), taken.teleported()
    assert same_before(jumped, plain) and differs(plain, jumped, EVENT).all()
    task = envs.make("two_room", **tiny_store.meta.settings)
    for b, clip in enumerate(CLIPS):
        assert not task.is_success(jumped.state_BTS[b, EVENT], plain.state_BTS[b, EVENT])
        task.set_state(jumped.state_BTS[b, EVENT])
        actions = tiny_store.actions(clip.episode)[clip.start + EVENT * SKIP : clip.start + (LENGTH - 1) * SKIP]
        for t, block in enumerate(actions.reshape(-1, SKIP, 2), EVENT + 1):
            for action in block:
                task.advance(action)
            np.testing.assert_allclose(task.state, jumped.state_BTS[b, t], atol=1e-9)
            shown = jumped.pixels_BTCYX[b, t].movedim(0, -1).numpy()
            np.testing.assert_array_equal(shown, task.render())
    again = film(tiny_store).teleported()
    assert torch.equal(again.pixels_BTCYX, jumped.pixels_BTCYX)


def test_a_changed_colour_changes_the_picture_alone(tiny_store: Store) -> None:
    taken = film(tiny_store)
    plain = taken.unaltered()
    for name in ("floor", "wall", "agent"):
        altered = taken.recoloured(name)
        assert same_before(altered, plain) and differs(plain, altered, EVENT).all()
        np.testing.assert_array_equal(altered.state_BTS, plain.state_BTS)
    assert taken.task is not None and taken.task.variation == {}


def test_at_the_event_the_older_frames_of_a_stack_are_still_unaltered(tiny_store: Store) -> None:
    taken = film(tiny_store, stack=2)
    plain = taken.unaltered().pixels_BTCYX
    for altered in (taken.teleported().pixels_BTCYX, taken.recoloured("agent").pixels_BTCYX):
        assert torch.equal(altered[:, EVENT, :3], plain[:, EVENT, :3])
        assert not torch.equal(altered[:, EVENT, 3:], plain[:, EVENT, 3:])
        assert not torch.equal(altered[:, EVENT + 1, :3], plain[:, EVENT + 1, :3])


@pytest.mark.parametrize(
    "task, colours",
    [
        ("two_room", ["floor", "wall", "agent"]),
        ("reacher", ["floor", "upper_arm", "forearm", "tip"]),
        ("push_t", ["floor", "block", "agent"]),
        ("gym:Pendulum-v1", ["warmth"]),
    ],
)
def test_colours_of_a_task(task: str, colours: list[str]) -> None:
    env = envs.make(task, size=32)
    assert list(colour_factors(env)) == colours
    env.close()


def test_colours_of_every_kind_are_measured(tiny_checkpoint: Checkpoint, tiny_store: Store) -> None:
    subject = make_subject(tiny_checkpoint, tiny_store)
    found = measure(subject, SurpriseConfig(clips=8, before=2, after=1), quiet=True)
    assert [row.event for row in found.rows] == [
        "unaltered", "teleport", "frozen", "colour of floor", "colour of wall", "colour of agent",
    ]  # fmt: skip
    usual = [estimate.value for estimate in found.rows[0].surprise if estimate is not None]
    assert np.mean(usual) == pytest.approx(1)
    for row in found.rows[1:]:
        assert row.clips + row.unchanged == 8 and row.auroc is not None
        before = row.surprise[0]
        assert (before is not None and row.clips < 8) or before == found.rows[0].surprise[0]


def test_one_step_predictions_see_the_context_and_no_more() -> None:
    small = AdaLNConfig("adaln", 2, 1, 2, 4, 8, action_hidden=8, projector_hidden=8)
    model = toy_model(small)
    assert model.context == 2
    generator = torch.Generator().manual_seed(0)
    latent, action = torch.randn(2, 6, 1, 4, generator=generator), torch.randn(2, 5, 4, generator=generator)
    found = one_step(model, latent, action)
    for t in range(5):
        window = slice(max(0, t - 1), t + 1)
        torch.testing.assert_close(found[:, t], model.predict(latent[:, window], action[:, window])[:, -1])


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"clips": 1}, "clips is 1, before 4, after 4; they must be at least 2, 1 and 0"),
        ({"before": 0}, "before 0"),
    ],
)
def test_settings_of_surprise_are_checked(given: dict[str, int], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        replace(SurpriseConfig(), **given)
