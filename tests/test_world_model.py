"""encode, predict and rollout: shapes, scaling, causality, and the window that slides."""

from dataclasses import replace

import pytest
import torch
from toy_models import FACTS, SIZE, toy_model

from lewm.nets.encoders import ConvConfig
from lewm.nets.predictors import AdaLNConfig, MLPConfig, PredictorConfig, RotaryConfig
from lewm.world_model import ModelConfig, WorldModel

PREDICTORS: dict[str, PredictorConfig] = {
    "mlp": MLPConfig(width=16),
    "adaln": AdaLNConfig(history=3, layers=2, heads=2, head_dim=4, mlp_hidden=8, action_hidden=8, projector_hidden=8),
    "rotary": RotaryConfig(context=3, width=8, layers=2, heads=2),
}
B, N, H = 2, 3, 5


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stepwise(
    model: WorldModel, latent_TKD: torch.Tensor, past_TA: torch.Tensor, action_HA: torch.Tensor
) -> torch.Tensor:
    """One candidate of one problem, one prediction at a time, each from the last `context` frames."""
    frames, actions = list(latent_TKD), [*past_TA, *action_HA]
    seen = len(frames)
    for now in range(seen, seen + len(action_HA)):
        first = max(0, now - model.context)
        window, blocks = torch.stack(frames[first:now]), torch.stack(actions[first:now])
        frames.append(model.predict(window[None], blocks[None])[0, -1])
    return torch.stack(frames[seen:])


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("seen", [1, 2, 3])
def test_rollout_is_stepwise_prediction(name: str, seen: int) -> None:
    """Also where history and horizon together exceed the context, so that the window slides."""
    model = toy_model(PREDICTORS[name])
    latent, past = draw(B, seen, 1, 4), draw(B, seen - 1, model.action_dim, seed=1)
    action = draw(B, N, H, model.action_dim, seed=2)
    imagined = model.rollout(latent, past, action)
    assert imagined.shape == (B, N, H, 1, 4)
    assert seen + H > model.context
    for b in range(B):
        for n in range(N):
            torch.testing.assert_close(imagined[b, n], stepwise(model, latent[b], past[b], action[b, n]))


@pytest.mark.parametrize("name", PREDICTORS)
def test_candidates_and_problems_are_independent(name: str) -> None:
    model = toy_model(PREDICTORS[name])
    latent, past, action = (
        draw(B, 2, 1, 4),
        draw(B, 1, model.action_dim, seed=1),
        draw(B, N, H, model.action_dim, seed=2),
    )
    imagined = model.rollout(latent, past, action)
    changed = action.clone()
    changed[1, 2] += 1
    other = model.rollout(latent, past, changed)
    same = torch.ones(B, N, dtype=torch.bool)
    same[1, 2] = False
    torch.testing.assert_close(other[same], imagined[same])
    assert (other[1, 2, 0] - imagined[1, 2, 0]).abs().max() > 1e-3
    torch.testing.assert_close(model.rollout(latent[1:], past[1:], action[1:, :1]), imagined[1:, :1])


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_later_action_changes_nothing_before_it(name: str) -> None:
    model = toy_model(PREDICTORS[name])
    latent, action = draw(1, 1, 1, 4), draw(1, 1, H, model.action_dim, seed=2)
    changed = action.clone()
    changed[:, :, 2:] += 1
    empty = torch.zeros(1, 0, model.action_dim)
    before, after = model.rollout(latent, empty, action), model.rollout(latent, empty, changed)
    torch.testing.assert_close(after[:, :, :2], before[:, :, :2])
    assert (after[:, :, 2] - before[:, :, 2]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["adaln", "rotary"])
def test_the_past_matters_to_predictors_with_memory(name: str) -> None:
    model = toy_model(PREDICTORS[name])
    latent, past, action = (
        draw(1, 3, 1, 4),
        draw(1, 2, model.action_dim, seed=1),
        draw(1, 1, 1, model.action_dim, seed=2),
    )
    imagined = model.rollout(latent, past, action)
    assert (model.rollout(latent, past + 1, action) - imagined).abs().max() > 1e-4
    other = torch.cat([draw(1, 1, 1, 4, seed=9), latent[:, 1:]], 1)
    assert (model.rollout(other, past, action) - imagined).abs().max() > 1e-4


def test_rollout_refuses_a_past_that_does_not_fit() -> None:
    model = toy_model()
    with pytest.raises(ValueError, match="2 frames need 1 past action blocks, got 2"):
        model.rollout(draw(1, 2, 1, 4), draw(1, 2, 4), draw(1, 1, 1, 4))


def test_pixels_are_scaled_by_the_statistics_of_every_stacked_frame() -> None:
    model = toy_model(frame_stack=2)
    seen = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    pixels = torch.arange(6, dtype=torch.uint8).mul(40).view(1, 1, 6, 1, 1).expand(1, 1, 6, SIZE, SIZE)
    model.encode(pixels)
    for channel in range(6):
        expected = (40 * channel / 255 - FACTS.pixel_mean[channel % 3]) / FACTS.pixel_std[channel % 3]
        assert seen[0][0, channel, 0, 0].item() == pytest.approx(expected, abs=1e-5)


def test_raw_actions_are_scaled_per_entry_of_the_block() -> None:
    model = toy_model(frame_skip=2)
    scaled = model.scale_action(torch.tensor([0.1, -0.1, 0.6, 0.3]))
    torch.testing.assert_close(scaled, torch.tensor([0.0, 0.0, 1.0, 1.0]))


def test_frames_are_encoded_each_on_its_own() -> None:
    model = toy_model()
    pixels = torch.randint(0, 256, (2, 3, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latent = model.encode(pixels)
    assert latent.shape == (2, 3, 1, 4)
    torch.testing.assert_close(model.encode(pixels[1:, 2:])[0, 0], latent[1, 2])


def test_pixels_that_do_not_fit_are_refused() -> None:
    model = toy_model()
    good = torch.zeros(1, 1, 3, SIZE, SIZE, dtype=torch.uint8)
    for bad, expected in (
        (good.float(), r"pixels are torch.float32 of shape \(1, 1, 3, 32, 32\); they must be uint8"),
        (good[0], r"of shape \(1, 3, 32, 32\); they must be uint8 \(B, T, C, Y, X\)"),
        (good[..., :16], r"frames are \(3, 32, 16\).*reads \(3, 32, 32\): resize"),
        (good.repeat(1, 1, 2, 1, 1), r"frames are \(6, 32, 32\)"),
    ):
        with pytest.raises(ValueError, match=expected):
            model.encode(bad)


def test_statistics_of_constant_inputs_do_not_divide_by_zero() -> None:
    facts = replace(FACTS, pixel_std=(0.0,) * 3, action_std=(0.0,) * 2)
    model = WorldModel(ModelConfig(ConvConfig(latent_dim=4, channels=(4, 4)), MLPConfig(width=8), 2), facts).eval()
    latent = model.encode(torch.full((1, 1, 3, SIZE, SIZE), 7, dtype=torch.uint8))
    assert latent.isfinite().all()
    assert model.predict(latent, torch.ones(1, 1, 4)).isfinite().all()


def test_statistics_live_in_the_facts_and_not_in_the_weights() -> None:
    keys = toy_model().state_dict().keys()
    assert not [key for key in keys if "pixel" in key or "action_mean" in key or "action_std" in key]


def test_encoder_and_predictor_must_share_their_link() -> None:
    with pytest.raises(ValueError, match=r"predictor\.link is 'identity' and model\.encoder\.link is 'relu'.*the same"):
        ModelConfig(ConvConfig(link="relu"), MLPConfig())
