"""World models of stochastic worlds: rollouts that draw, clips explained, and what training makes of chance."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_world_model import PREDICTORS, draw
from torch import Tensor
from toy_models import FACTS, stir, toy_checkpoint, toy_model

from lewm.checkpoint import load, save_checkpoint
from lewm.nets.encoders import ConvConfig
from lewm.nets.predictors import MLPConfig, PredictorConfig
from lewm.nets.variable import DiscreteConfig, GaussianConfig, VariableConfig
from lewm.world_model import ModelConfig, WorldModel

VARIABLES: dict[str, VariableConfig] = {
    "discrete": DiscreteConfig(codes=3, information=0.002),
    "gaussian": GaussianConfig(dims=2),
}
B, N, H = 2, 3, 5


def chancy(kind: str, predictor: PredictorConfig | None = None) -> WorldModel:
    torch.manual_seed(0)
    config = ModelConfig(ConvConfig(latent_dim=4, channels=(4, 4, 4)), predictor or MLPConfig(width=16), 2)
    model = WorldModel(replace(config, variable=VARIABLES[kind]), FACTS).eval().requires_grad_(False)
    stir(model)
    return model


def noise_for(model: WorldModel, *shape: int) -> Tensor:
    assert model.variable is not None
    return model.variable.noise(shape, torch.Generator().manual_seed(4))


def last(model: WorldModel, frames: list[Tensor], actions: list[Tensor], values: list[Tensor]) -> Tensor:
    """The frame after the last one of a single problem, from the latest frames that the predictor can see."""
    parts = [torch.stack(part[-model.context :])[None] for part in (frames, actions, values)]
    return model.predict(*parts)[0, -1]


@pytest.mark.parametrize("kind", VARIABLES)
@pytest.mark.parametrize("name", PREDICTORS)
def test_rollout_draws_in_every_block(kind: str, name: str) -> None:
    """One candidate at a time: draw from the prior where it stands, predict with it, go on; the window slides."""
    model = chancy(kind, PREDICTORS[name])
    latent, action, noise = draw(B, 1, 1, 4), draw(B, N, H, model.action_dim, seed=2), noise_for(model, B, N, H)
    imagined = model.rollout(latent, torch.zeros(B, 0, model.action_dim), action, noise)
    assert model.context < H
    for b in range(B):
        for n in range(N):
            frames, values = [latent[b, 0]], []
            for h in range(H):
                scaled = model.scale_action(action[b, n, h])
                values.append(model.variable.draw(frames[-1][None], scaled[None], noise[b, n, h][None])[0])
                frames.append(last(model, frames, list(action[b, n, : h + 1]), values))
            torch.testing.assert_close(imagined[b, n], torch.stack(frames[1:]))
    assert (model.rollout(latent, torch.zeros(B, 0, model.action_dim), action) - imagined).abs().max() > 1e-3


@pytest.mark.parametrize("kind", VARIABLES)
@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("history", [1, 3, 5])
def test_follow_explains_block_by_block(kind: str, name: str, history: int) -> None:
    """Given frames as long as there are any, its own predictions after; in each block the variable that explains the
    next frame best: found by trying all codes, or by asking the inference net."""
    model = chancy(kind, PREDICTORS[name])
    latent, action = draw(1, H + 1, 1, 4), draw(1, H, model.action_dim, seed=2)
    followed = model.follow(latent, action, history)
    frames, values = [latent[0, 0]], []
    for t in range(H):
        scaled, following = model.scale_action(action[0, t]), latent[0, t + 1]
        if kind == "discrete":
            tried = [last(model, frames, list(action[0, : t + 1]), [*values, code]) for code in torch.eye(3)]
            surprise = -model.variable.log_prior(frames[-1][None], scaled[None])[0]
            errors = torch.stack([(guess - following).square().mean() for guess in tried]) + 0.002 * surprise
            values.append(torch.eye(3)[errors.argmin()])
        else:
            seen = torch.cat([frames[-1].flatten(), scaled, following.flatten()])
            values.append(model.variable.posterior(seen)[:2])
        predicted = last(model, frames, list(action[0, : t + 1]), values)
        torch.testing.assert_close(followed.predicted_BTKD[0, t], predicted)
        torch.testing.assert_close(followed.value_BTV[0, t], values[-1])
        frames.append(latent[0, t + 1] if t + 1 < history else predicted)
    assert followed.nats_BT.shape == followed.loss_BT.shape == (1, H)


@pytest.mark.parametrize("kind", VARIABLES)
def test_the_past_of_a_rollout_is_explained_by_the_frames_seen(kind: str) -> None:
    model = chancy(kind, PREDICTORS["rotary"])
    latent, past, action = (
        draw(1, 3, 1, 4),
        draw(1, 2, model.action_dim, seed=1),
        draw(1, 1, 1, model.action_dim, seed=2),
    )
    values = list(model.follow(latent, past, 2).value_BTV[0])
    values.append(model.variable.draw(latent[:, -1], model.scale_action(action[:, 0, 0]))[0])
    expected = last(model, list(latent[0]), [*past[0], action[0, 0, 0]], values)
    torch.testing.assert_close(model.rollout(latent, past, action)[0, 0, 0], expected)
    other = [1 - value for value in values[:2]] + values[2:]
    assert (last(model, list(latent[0]), [*past[0], action[0, 0, 0]], other) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("kind", VARIABLES)
def test_without_a_variable_predict_takes_the_likeliest(kind: str) -> None:
    model = chancy(kind)
    latent, action = draw(B, 3, 1, 4), draw(B, 3, model.action_dim, seed=1)
    likeliest = model.variable.draw(latent, model.scale_action(action))
    assert torch.equal(model.predict(latent, action), model.predict(latent, action, likeliest))
    assert (model.predict(latent, action, likeliest + 1) - model.predict(latent, action)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", VARIABLES)
def test_problems_and_candidates_are_independent(kind: str) -> None:
    model = chancy(kind, PREDICTORS["adaln"])
    latent, past, action = draw(B, 2, 1, 4), draw(B, 1, 4, seed=1), draw(B, N, H, 4, seed=2)
    noise = noise_for(model, B, N, H)
    together = model.rollout(latent, past, action, noise)
    alone = model.rollout(latent[1:], past[1:], action[1:, 2:], noise[1:, 2:])
    torch.testing.assert_close(alone, together[1:, 2:])


def test_a_deterministic_model_has_no_trace_of_it() -> None:
    model = toy_model()
    assert model.variable is None and not [key for key in model.state_dict() if "variable" in key]
    assert model.predictor.action.in_features == model.action_dim  # type: ignore[union-attr]
    for call in (
        lambda: model.predict(draw(1, 1, 1, 4), draw(1, 1, 4), draw(1, 1, 2)),
        lambda: model.follow(draw(1, 2, 1, 4), draw(1, 1, 4), 1),
    ):
        with pytest.raises(ValueError, match=r"this model has no latent variable.*set model.variable"):
            call()


def test_a_clip_of_one_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="a clip of 1 frames has nothing to predict; give 2 or more"):
        chancy("discrete").follow(draw(1, 1, 1, 4), draw(1, 0, 4), 1)


@pytest.mark.parametrize("kind", VARIABLES)
def test_checkpoints_keep_the_variable(kind: str, tmp_path: Path) -> None:
    model = chancy(kind)
    save_checkpoint(tmp_path / "c", model, None, toy_checkpoint(toy_model()).origin, {})
    loaded = load(tmp_path / "c").model
    assert loaded.config.variable == VARIABLES[kind]
    latent, action = draw(B, 3, 1, 4), draw(B, 2, model.action_dim, seed=1)
    for ours, theirs in zip(
        vars(loaded.follow(latent, action, 1)).values(), vars(model.follow(latent, action, 1)).values()
    ):
        assert torch.equal(ours, theirs)


# What training makes of chance ----------------------------------------------------------------------------------------


def coin_world(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """latent_BTKD (count, 2, 1, 2) and action_BTA (count, 1, 2): where the first action is positive the first entry
    jumps by +1 or -1, by a fair coin; the second entry moves by the second action."""
    action = 2 * torch.rand(count, 2, generator=generator) - 1
    coin = torch.randint(2, (count,), generator=generator) * 2 - 1
    now = torch.randn(count, 2, generator=generator)
    jump = torch.stack([coin * (action[:, 0] > 0), action[:, 1]], -1)
    return torch.stack([now, now + jump], 1)[:, :, None], action[:, None]


def trained(variable: VariableConfig | None, steps: int = 500) -> WorldModel:
    torch.manual_seed(0)
    config = ModelConfig(ConvConfig(latent_dim=2, channels=(4, 4, 4)), MLPConfig(width=64), 1, variable=variable)
    model, generator = WorldModel(config, FACTS), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        latent, action = coin_world(128, generator)
        if model.variable is None:
            loss = (model.predict(latent[:, :1], action) - latent[:, 1:]).square().mean()
        else:
            followed = model.follow(latent, action, 1, model.variable.noise((128, 1), generator))
            loss = (followed.scored_BTKD - latent[:, 1:]).square().mean() + followed.loss_BT.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def coin_error(model: WorldModel) -> tuple[float, float]:
    """Squared error per transition: where the coin is tossed, and elsewhere."""
    latent, action = coin_world(4000, torch.Generator().manual_seed(9))
    if model.variable is None:
        predicted = model.predict(latent[:, :1], action)
    else:
        predicted = model.follow(latent, action, 1).predicted_BTKD
    error = (predicted - latent[:, 1:]).square().sum((1, 2, 3))
    tossed = action[:, 0, 0] > 0
    return error[tossed].mean().item(), error[~tossed].mean().item()


def coin_draws(model: WorldModel) -> tuple[float, float, float]:
    """Jumps drawn from the prior: share of upward ones and mean size where the coin is tossed, mean size elsewhere."""
    latent, action = coin_world(4000, torch.Generator().manual_seed(9))
    noise = model.variable.noise((4000, 1, 1), torch.Generator().manual_seed(10))  # type: ignore[union-attr]
    drawn = model.rollout(latent[:, :1], action[:, :0], action[:, None], noise)[:, 0, 0, 0, 0] - latent[:, 0, 0, 0]
    tossed = action[:, 0, 0] > 0
    up, size = (drawn[tossed] > 0).float().mean(), drawn[tossed].abs().mean()
    return up.item(), size.item(), drawn[~tossed].abs().mean().item()


def test_a_deterministic_model_predicts_the_mean() -> None:
    """Its best answer to a jump of +1 or -1 is 0, whose squared error is 1."""
    tossed, rest = coin_error(trained(None, 300))
    assert 0.95 < tossed < 1.05 and rest < 0.01


def test_two_codes_are_the_two_futures() -> None:
    """Measured: error 0.034 where the coin is tossed (29 times less than the mean's 1), 0.014 elsewhere; 0.70 and 0.03
    nats, where a fair coin holds log 2 = 0.693."""
    model = trained(DiscreteConfig())
    tossed, rest = coin_error(model)
    assert tossed < 1 / 15 and rest < 0.05
    latent, action = coin_world(4000, torch.Generator().manual_seed(9))
    nats = model.follow(latent, action, 1).nats_BT[:, 0]
    on = action[:, 0, 0] > 0
    assert nats[on].mean().item() == pytest.approx(math.log(2), abs=0.07)
    assert nats[~on].mean() < 0.12
    up, size, elsewhere = coin_draws(model)
    assert 0.4 < up < 0.6 and size > 0.75 and elsewhere < 0.25


def test_the_plain_minimum_wastes_information_where_nothing_is_random() -> None:
    """Why `information` is there: without it the codes share deterministic transitions: whichever wins by a hair."""
    latent, action = coin_world(4000, torch.Generator().manual_seed(9))
    free = trained(DiscreteConfig(information=0.0))
    assert free.follow(latent, action, 1).nats_BT[action[:, 0, 0] <= 0].mean() > 0.2


def test_gaussian_numbers_hold_the_coin_at_a_price() -> None:
    """Measured: error 0.025 where the coin is tossed (39 times less than the mean's 1), 0.006 elsewhere; 0.98 and 0.06
    nats. A Gaussian needs more than log 2 to hold a coin."""
    model = trained(GaussianConfig(dims=1, information=0.1))
    tossed, rest = coin_error(model)
    assert tossed < 1 / 15 and rest < 0.02
    latent, action = coin_world(4000, torch.Generator().manual_seed(9))
    nats = model.follow(latent, action, 1).nats_BT[:, 0]
    on = action[:, 0, 0] > 0
    assert math.log(2) - 0.01 < nats[on].mean() < 1.5
    assert nats[~on].mean() < 0.25
    up, size, elsewhere = coin_draws(model)
    assert 0.35 < up < 0.65 and size > 0.5 and elsewhere < 0.3
