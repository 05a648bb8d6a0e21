"""The contract of every encoder, the sizes of the paper's, and what they refuse."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lewm.nets.encoders import ENCODERS, ConvConfig, EncoderConfig, ViTConfig, build_encoder

# One small config and a picture size per trained row of ENCODERS; a new row must be added here. What is frozen has no
# weights to draw and takes no gradient: test_frozen.py.
SMALL: dict[str, tuple[EncoderConfig, int]] = {
    "conv": (ConvConfig(latent_dim=6, channels=(4, 8)), 12),
    "vit": (ViTConfig(latent_dim=6, patch=4, layers=2, heads=2, width=8, mlp_ratio=2, projector_hidden=16), 12),
}
FROZEN = {"frozen"}
NAMES = sorted(set(ENCODERS) - FROZEN)


def small(name: str, channels: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config, size = SMALL[name]
    return build_encoder(config, channels, size)


def pixels(batch: int, channels: int = 3, size: int = 12) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_every_encoder_is_tested() -> None:
    assert set(SMALL) | FROZEN == set(ENCODERS)
    for name, (config_class, encoder_class) in ENCODERS.items():
        assert config_class().name == name
        assert name in FROZEN or isinstance(small(name), encoder_class)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [3, 6])
def test_shape_and_attributes(name: str, channels: int) -> None:
    encoder = small(name, channels)
    token_BKD = encoder(pixels(5, channels))
    assert token_BKD.shape == (5, encoder.tokens, encoder.latent_dim)
    assert (encoder.tokens, encoder.latent_dim) == (1, 6)
    assert token_BKD.dtype == torch.float32
    assert torch.isfinite(token_BKD).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    one, two, other = small(name), small(name), small(name, seed=1)
    x = pixels(4)
    assert torch.equal(one(x), two(x))
    assert not torch.equal(one(x), other(x))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter_and_the_pixels(name: str) -> None:
    encoder, x = small(name), pixels(5).requires_grad_()
    (encoder(x) ** 3).sum().backward()
    for key, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
    assert (x.grad.abs().sum((0, 1)) > 0).all()  # every pixel is seen


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_is_encoded_alike_alone_and_in_a_batch(name: str) -> None:
    encoder, x = small(name), pixels(7)
    encoder(x)
    encoder.eval()
    alone = torch.cat([encoder(frame[None]) for frame in x])
    torch.testing.assert_close(encoder(x), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_levels_are_what_the_encoder_computes_on_its_way(name: str) -> None:
    encoder, x = small(name), pixels(5)
    levels = encoder.levels(x)  # type: ignore[operator]
    assert [tuple(level.shape) for level in levels] == [(5, 1, width) for width in encoder.level_dims]
    encoder.eval()
    last = encoder.levels(x)[-1]  # type: ignore[operator]
    token = encoder.out(last) if name == "conv" else encoder.projector(encoder.norm(last))  # type: ignore[operator]
    torch.testing.assert_close(token, encoder(x))


@pytest.mark.parametrize("name", NAMES)
def test_batch_norm_gives_every_entry_mean_0_and_variance_1_over_the_batch(name: str) -> None:
    config, size = SMALL[name]
    encoder, x = build_encoder(replace(config, batch_norm=True), 3, size), pixels(64)
    with torch.no_grad():
        last = encoder.out if name == "conv" else encoder.projector.down  # type: ignore[union-attr]
        last.weight *= 1e2  # type: ignore[operator, union-attr]
        token_BD = encoder(x)[:, 0]
        last.weight *= 7  # type: ignore[operator, union-attr]
        last.bias += 5  # type: ignore[operator, union-attr]
        torch.testing.assert_close(encoder(x)[:, 0], token_BD, rtol=0, atol=1e-3)  # no scale is better than another
    torch.testing.assert_close(token_BD.mean(0), torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(token_BD.var(0, correction=0), torch.ones(6), rtol=0, atol=1e-2)
    assert {key for key, p in encoder.named_parameters() if not p.requires_grad} == {"scale.weight", "scale.bias"}
    assert not [key for key in small(name).state_dict() if key.startswith("scale")]  # a model without it is as before


@pytest.mark.parametrize("name", NAMES)
def test_batch_norm_encodes_a_frame_alone_by_the_running_statistics(name: str) -> None:
    config, size = SMALL[name]
    torch.manual_seed(0)
    encoder, x = build_encoder(replace(config, batch_norm=True), 3, size), pixels(7)
    encoder(x)
    encoder.eval()
    alone = torch.cat([encoder(frame[None]) for frame in x])
    torch.testing.assert_close(encoder(x), alone, rtol=1e-5, atol=1e-6)
    torch.manual_seed(0)
    bare = build_encoder(config, 3, size)
    bare(x)
    token, scale = bare.eval()(x), encoder.scale  # the same weights, because the scale draws none
    by_hand = (token - scale.running_mean) / (scale.running_var + 1e-5).sqrt()  # type: ignore[operator, union-attr]
    torch.testing.assert_close(encoder(x), by_hand, rtol=1e-5, atol=1e-6)


def test_levels_of_the_defaults() -> None:
    assert build_encoder(ConvConfig(), 3, 64).level_dims == (256, 512, 1024, 1024)
    assert build_encoder(ViTConfig(), 3, 224).level_dims == (192,) * 12


def test_conv_levels_are_averaged_to_the_grid_of_the_last_layer() -> None:
    conv, x = small("conv").eval(), pixels(2)
    lower = conv.layers[:3](x)  # type: ignore[index, operator]
    by_hand = lower.view(2, 4, 3, 2, 3, 2).mean((3, 5)).flatten(1)[:, None]
    torch.testing.assert_close(conv.levels(x)[0], by_hand)  # type: ignore[operator]


def test_vit_levels_are_the_cls_token_after_each_block() -> None:
    vit, x = small("vit"), pixels(2)
    seen: list[Tensor] = []
    for block in vit.blocks:  # type: ignore[union-attr]
        block.register_forward_hook(lambda _, args, out: seen.append(out))
    vit(x)
    for level, tokens in zip(vit.levels(x), seen[:2], strict=True):  # type: ignore[operator]
        torch.testing.assert_close(level, tokens[:, :1])


def test_parameter_counts() -> None:
    vit = build_encoder(ViTConfig(), 3, 224)
    projector = count(vit.projector)  # type: ignore[arg-type, union-attr]
    assert (count(vit) - projector, projector) == (5_501_376, 792_768)
    assert count(build_encoder(ConvConfig(), 3, 64)) == 126_288


def test_vit_patches_are_those_of_a_strided_convolution() -> None:
    vit, x = small("vit"), pixels(2)
    weight = vit.embed.weight.view(8, 3, 4, 4)
    seen: list[Tensor] = []
    vit.blocks.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    vit(x)
    patches = nn.functional.conv2d(x, weight, vit.embed.bias, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(seen[0][:, 1:], patches + vit.position[:, 1:])
    torch.testing.assert_close(seen[0][:, 0], (vit.cls + vit.position[:, :1])[:, 0].expand(2, -1))


@pytest.mark.parametrize(("size", "layers"), [(32, 4), (48, 4), (96, 5), (224, 5)])
def test_conv_takes_any_size_its_stride_divides(size: int, layers: int) -> None:
    encoder = build_encoder(ConvConfig(channels=(4,) * layers), 3, size)
    assert encoder(torch.zeros(2, 3, size, size)).shape == (2, 1, 64)


def test_a_size_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match=r"size 60 is not divisible by 16, the stride of 4 layers"):
        build_encoder(ConvConfig(), 3, 60)
    with pytest.raises(ValueError, match=r"size 64 is not divisible by encoder\.patch \(14\)"):
        build_encoder(ViTConfig(), 3, 64)


def test_bad_configs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"width is 192; it must be divisible by heads \(5\)"):
        ViTConfig(heads=5)
    with pytest.raises(ValueError, match=r"layers is 0; it must be at least 1"):
        ViTConfig(layers=0)
    with pytest.raises(ValueError, match=r"channels is \(\); it must name at least one layer"):
        ConvConfig(channels=())
    with pytest.raises(ValueError, match=r"latent_dim is 0"):
        ConvConfig(latent_dim=0)
