"""The contract of every predictor (causal, batch-independent, refusing long windows) and the sizes of the paper's."""

import pytest
import torch
from torch import Tensor, nn

from lewm.nets.encoders import ViTConfig, build_encoder
from lewm.nets.predictors import (
    PREDICTORS,
    ACConfig,
    AdaLNConfig,
    DinoWMConfig,
    MLPConfig,
    PredictorConfig,
    RotaryConfig,
    build_predictor,
)

D, A, T = 6, 5, 3
# Small configs per row of PREDICTORS, each with the tokens per frame to test; a new row must be added here.
SMALL_ADALN = AdaLNConfig(layers=2, heads=2, head_dim=4, mlp_hidden=16, action_hidden=12, projector_hidden=16)
SMALL: dict[str, tuple[PredictorConfig, tuple[int, ...]]] = {
    "mlp": (MLPConfig(width=16, depth=3), (1,)),
    "adaln": (SMALL_ADALN, (1, 2)),
    "rotary": (RotaryConfig(context=4, width=16, layers=2, heads=2, mlp_ratio=2), (1, 3)),
    "ac": (ACConfig(context=4, width=16, layers=2, heads=2, mlp_ratio=2), (1, 4)),
    "dino_wm": (DinoWMConfig(layers=2, heads=2, head_dim=4, mlp_hidden=16), (1, 3)),
}
CASES = [(name, tokens) for name in sorted(PREDICTORS) for tokens in SMALL[name][1]]
LIMITED = [name for name in sorted(PREDICTORS) if name != "mlp"]


def small(name: str, tokens: int) -> nn.Module:
    """A predictor with every parameter moved off its initial value: AdaLN-zero starts with zeros."""
    torch.manual_seed(0)
    predictor = build_predictor(SMALL[name][0], D, A, tokens)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return predictor


def window(tokens: int, batch: int = 4, frames: int = T) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, frames, tokens, D, generator=generator),
        torch.randn(batch, frames, A, generator=generator),
    )


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_every_predictor_is_tested() -> None:
    assert set(SMALL) == set(PREDICTORS)
    for name, (config_class, predictor_class) in PREDICTORS.items():
        assert config_class().name == name
        assert isinstance(small(name, 1), predictor_class)


@pytest.mark.parametrize(("name", "tokens"), CASES)
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_shape(name: str, tokens: int, frames: int) -> None:
    latent_BTKD, action_BTA = window(tokens, frames=frames)
    predicted_BTKD = small(name, tokens)(latent_BTKD, action_BTA)
    assert predicted_BTKD.shape == latent_BTKD.shape
    assert predicted_BTKD.dtype == torch.float32
    assert torch.isfinite(predicted_BTKD).all()


@pytest.mark.parametrize(("name", "tokens"), CASES)
@pytest.mark.parametrize("changed", ["latent", "action"])
@pytest.mark.parametrize("t", range(T))
def test_causal_in_time(name: str, tokens: int, changed: str, t: int) -> None:
    predictor = small(name, tokens).eval()
    latent_BTKD, action_BTA = window(tokens)
    before = predictor(latent_BTKD, action_BTA)
    (latent_BTKD if changed == "latent" else action_BTA)[:, t] *= -1  # a layer norm would not see a constant
    after = predictor(latent_BTKD, action_BTA)
    torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=0)
    moved = (after - before).abs().amax((0, 2, 3)) > 1e-4
    assert moved[t]
    if predictor.context == 1:
        assert not moved[t + 1 :].any()  # each frame on its own
    else:
        assert moved[t:].all()  # and every later frame has seen it


@pytest.mark.parametrize(("name", "tokens"), CASES)
def test_every_token_of_a_frame_sees_the_others(name: str, tokens: int) -> None:
    predictor = small(name, tokens).eval()
    latent_BTKD, action_BTA = window(tokens)
    before = predictor(latent_BTKD, action_BTA)
    latent_BTKD[:, 0, -1] *= -1
    assert ((predictor(latent_BTKD, action_BTA) - before)[:, 0].abs().amax((0, 2)) > 1e-4).all()


@pytest.mark.parametrize(("name", "tokens"), CASES)
def test_a_prefix_is_predicted_alike_alone(name: str, tokens: int) -> None:
    predictor = small(name, tokens).eval()
    latent_BTKD, action_BTA = window(tokens)
    whole = predictor(latent_BTKD, action_BTA)
    for frames in (1, 2):
        prefix = predictor(latent_BTKD[:, :frames], action_BTA[:, :frames])
        torch.testing.assert_close(prefix, whole[:, :frames], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "tokens"), CASES)
def test_a_window_is_predicted_alike_alone_and_in_a_batch(name: str, tokens: int) -> None:
    predictor = small(name, tokens)
    latent_BTKD, action_BTA = window(tokens, batch=7)
    predictor(latent_BTKD, action_BTA)
    predictor.eval()
    alone = torch.cat([predictor(z[None], a[None]) for z, a in zip(latent_BTKD, action_BTA, strict=True)])
    torch.testing.assert_close(predictor(latent_BTKD, action_BTA), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "tokens"), CASES)
def test_gradients_reach_every_parameter_and_input(name: str, tokens: int) -> None:
    predictor = small(name, tokens)
    latent_BTKD, action_BTA = (x.requires_grad_() for x in window(tokens))
    (predictor(latent_BTKD, action_BTA) ** 3).sum().backward()
    for key, parameter in predictor.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
    assert (latent_BTKD.grad.abs().sum((0, 2, 3)) > 0).all()
    assert (action_BTA.grad.abs().sum((0, 2)) > 0).all()


@pytest.mark.parametrize("name", sorted(PREDICTORS))
def test_an_untrained_predictor_has_something_to_learn_the_action_with(name: str) -> None:
    torch.manual_seed(0)
    predictor = build_predictor(SMALL[name][0], D, A, 1)
    optimizer = torch.optim.SGD(predictor.parameters(), lr=0.1)
    latent_BTKD, action_BTA = window(1)
    for _ in range(2):  # AdaLN-zero opens its gates with the first step
        action = action_BTA.clone().requires_grad_()
        loss = (predictor(latent_BTKD, action) - latent_BTKD.flip(0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert action.grad is not None and action.grad.abs().max() > 0


def test_parameter_counts() -> None:
    adaln = build_predictor(AdaLNConfig(), 192, 10, 1)
    action, projector = count(adaln.action), count(adaln.projector)  # type: ignore[arg-type, union-attr]
    assert (count(adaln) - action - projector, action, projector) == (10_791_360, 156_206, 792_768)
    vit = build_encoder(ViTConfig(), 3, 224)
    assert count(vit) + count(adaln) == 18_034_478
    assert sum(v.numel() for part in (vit, adaln) for v in part.state_dict().values()) == 18_042_672
    assert count(build_predictor(MLPConfig(), 64, 10, 1)) == 333_888


def test_contexts() -> None:
    assert build_predictor(MLPConfig(), 8, 2, 1).context == 1
    assert build_predictor(AdaLNConfig(history=5), 8, 2, 1).context == 5
    assert build_predictor(RotaryConfig(context=6), 8, 2, 1).context == 6


def test_adaln_blocks_are_the_identity_at_initialisation() -> None:
    torch.manual_seed(0)
    adaln = build_predictor(SMALL["adaln"][0], D, A, 1)
    adaln(*window(1))
    adaln.eval()
    latent_BTKD, action_BTA = window(1)
    untouched = adaln.projector(adaln.transformer.norm(latent_BTKD + adaln.position_TKD))  # type: ignore[operator, union-attr]
    torch.testing.assert_close(adaln(latent_BTKD, action_BTA), untouched, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mlp", "rotary"])
def test_residual_predictors_predict_the_change(name: str) -> None:
    predictor = small(name, 1)
    nn.init.zeros_(predictor.out.weight)
    nn.init.zeros_(predictor.out.bias)
    latent_BTKD, action_BTA = window(1)
    assert torch.equal(predictor(latent_BTKD, action_BTA), latent_BTKD)


@pytest.mark.parametrize("tokens", [1, 3])
def test_rotary_predictions_do_not_depend_on_where_a_window_starts(tokens: int) -> None:
    rotary = small("rotary", tokens).eval()
    latent_BTKD, action_BTA = window(tokens)
    here = rotary(latent_BTKD, action_BTA)
    torch.testing.assert_close(rotary(latent_BTKD, action_BTA, start=9), here, rtol=1e-4, atol=1e-5)


def test_rotary_knows_the_order_of_frames() -> None:
    rotary = small("rotary", 1).eval()
    latent_BTKD, action_BTA = window(1)
    order = [1, 0, 2]
    swapped = rotary(latent_BTKD[:, order], action_BTA[:, order])
    assert (swapped[:, 2] - rotary(latent_BTKD, action_BTA)[:, 2]).abs().max() > 1e-4


def test_rotary_tells_tokens_of_a_frame_apart() -> None:
    rotary = small("rotary", 3).eval()
    latent_BTKD, action_BTA = window(3)
    same = latent_BTKD[:, :, :1].expand(-1, -1, 3, -1)
    change = rotary(same, action_BTA) - same
    assert (change[:, :, 0] - change[:, :, 1]).abs().max() > 1e-4


def test_mlp_takes_any_number_of_frames() -> None:
    mlp = small("mlp", 1)
    latent_BTKD, action_BTA = window(1, frames=40)
    whole = mlp(latent_BTKD, action_BTA)
    single = mlp(latent_BTKD[:, 33:34], action_BTA[:, 33:34])
    torch.testing.assert_close(whole[:, 33:34], single, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LIMITED)
def test_a_window_longer_than_the_context_is_refused(name: str) -> None:
    predictor = small(name, 1)
    frames = predictor.context + 1
    with pytest.raises(ValueError, match=rf"has {frames} frames, more than the {frames - 1} this predictor can see"):
        predictor(*window(1, frames=frames))


@pytest.mark.parametrize(("name", "tokens"), CASES)
def test_windows_that_do_not_fit_are_refused(name: str, tokens: int) -> None:
    predictor = small(name, tokens)
    latent_BTKD, action_BTA = window(tokens)
    with pytest.raises(ValueError, match=r"3 frames of 4 windows come with actions of shape \(4, 1, 5\)"):
        predictor(latent_BTKD, action_BTA[:, :1])
    with pytest.raises(ValueError, match=rf"latents have {tokens + 1} tokens per frame; .* built for {tokens}"):
        predictor(window(tokens + 1)[0], action_BTA)


def test_bad_configs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder gives 4 tokens per frame and this predictor reads one"):
        build_predictor(MLPConfig(), D, A, 4)
    with pytest.raises(ValueError, match=r"width is 128; it must be divisible by twice the heads \(5\)"):
        RotaryConfig(heads=5)
    with pytest.raises(ValueError, match=r"context is 0; it must be at least 1"):
        RotaryConfig(context=0)
    with pytest.raises(ValueError, match=r"dropout is 1\.0; it must be in \[0, 1\)"):
        AdaLNConfig(dropout=1.0)
    with pytest.raises(ValueError, match=r"history is 0"):
        AdaLNConfig(history=0)
    with pytest.raises(ValueError, match=r"depth is 0"):
        MLPConfig(depth=0)
