"""The token transformer: rotary positions along each axis, tubelets, pictures among clips, tokens left out."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lewm.nets.blocks import rotate
from lewm.nets.token_vit import TokenViT, TokenViTConfig, TokenViTFacts, grid_positions, grid_rotary, take_tokens

SMALL = TokenViTConfig(patch=4, width=24, depth=3, heads=2, mlp_ratio=2)
VIDEO = TokenViTFacts(video=True, tubelet=2)


def vit(facts: TokenViTFacts = VIDEO, config: TokenViTConfig = SMALL) -> TokenViT:
    torch.manual_seed(0)
    return TokenViT(config, facts)


def clip(batch: int = 2, frames: int = 4, size: int = 12) -> Tensor:
    return torch.randn(batch, frames, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("axes", [2, 3])
def test_products_of_rotated_vectors_depend_on_the_distance_along_each_axis(axes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 14, generator=generator, dtype=torch.float64)
    here, there = torch.tensor([[1, 4, 2][:axes]]), torch.tensor([[0, 1, 7][:axes]])

    def product(a: Tensor, b: Tensor) -> float:
        tables = [grid_rotary(p, 14, 100.0).double() for p in (a, b)]
        return (rotate(query, tables[0]) @ rotate(key, tables[1]).T).item()

    base = product(here, there)
    for axis in range(axes):
        step = torch.zeros(axes, dtype=torch.long)
        step[axis] = 3
        assert product(here + step, there + step) == pytest.approx(base, abs=1e-5)  # both moved: the same
        assert abs(product(here + step, there) - base) > 1e-3  # one moved: another product
    turned = rotate(query, grid_rotary(here, 14, 100.0).double())
    assert turned.norm().item() == pytest.approx(query.norm().item(), rel=1e-6)


def test_rotary_angles_by_hand() -> None:
    """Heads 14 wide have 7 pairs: 2 per axis at frequencies 1 and base^-1/2, and one that never turns."""
    cos, sin = grid_rotary(torch.tensor([[2, 3, 5]]), 14, 100.0)
    angles = torch.tensor([2, 0.2, 3, 0.3, 5, 0.5, 0])
    torch.testing.assert_close(cos[0], angles.cos())
    torch.testing.assert_close(sin[0], angles.sin())


def test_positions_count_frames_then_rows_then_columns() -> None:
    assert grid_positions((2, 1, 2), 3).tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]
    assert grid_positions((1, 2, 2), 2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_patches_are_those_of_a_strided_3d_convolution() -> None:
    net, x = vit(), clip()
    weight = net.embed.weight.view(24, 2, 3, 4, 4).transpose(1, 2)  # out, channels, tubelet, patch, patch
    by_hand = nn.functional.conv3d(x.transpose(1, 2), weight, net.embed.bias, stride=(2, 4, 4))
    torch.testing.assert_close(net.embed(net.patches(x)), by_hand.flatten(2).mT, rtol=1e-4, atol=1e-5)


def test_a_single_picture_is_repeated_to_fill_a_tubelet() -> None:
    net, x = vit(), clip(frames=1)
    torch.testing.assert_close(net(x), net(x.expand(-1, 2, -1, -1, -1)))
    assert net(x).shape == (2, 9, 24)


def test_an_image_path_reads_pictures_with_a_patch_embedding_of_one_frame() -> None:
    net, x = vit(replace(VIDEO, image_path=True)), clip(frames=1)
    assert net.embed_image.weight.shape == (24, 48)
    seen: list[Tensor] = []
    net.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net(x)
    torch.testing.assert_close(seen[0], net.embed_image(net.patches(x)) + net.modality_2D[1])
    net(clip())
    torch.testing.assert_close(seen[1], net.embed(net.patches(clip())) + net.modality_2D[0])


def test_tokens_left_out_are_not_seen() -> None:
    net, x = vit(), clip()
    keep = torch.tensor([[0, 3, 7, 11], [1, 2, 4, 17]])
    some = net(x, keep)
    assert some.shape == (2, 4, 24)
    changed = x.clone()
    changed[0, :, :, :4, 4:8] += 1.0  # patch 1 of the first clip, in all frames
    torch.testing.assert_close(net(changed, keep), some, rtol=0, atol=0)
    assert (net(changed)[0] - net(x)[0]).abs().max() > 1e-3
    everything = torch.arange(18).expand(2, -1)
    torch.testing.assert_close(net(x, everything), net(x))
    assert torch.equal(take_tokens(net.patches(x), keep)[1, 3], net.patches(x)[1, 17])


def test_order_of_the_kept_tokens_does_not_matter() -> None:
    net, x = vit(), clip()
    keep, order = torch.tensor([[0, 5, 9]]).expand(2, -1), [2, 0, 1]
    torch.testing.assert_close(net(x, keep[:, order]), net(x, keep)[:, order])


def test_levels_have_a_norm_each_and_end_with_the_output() -> None:
    net, x = vit(replace(VIDEO, levels=(0, 2))), clip()
    out = net.outputs(x)
    assert len(out) == 3
    low, high = net.levels(x)
    torch.testing.assert_close(low, net.norms[0](out[0]))
    torch.testing.assert_close(high, net.norms[1](out[2]))
    torch.testing.assert_close(net(x), high)


def test_hidden_patches_become_the_given_token() -> None:
    net, x = vit(), clip()
    mask = torch.zeros(2, 18, dtype=torch.bool)
    mask[:, :9] = True
    changed = x.clone()
    changed[:, :2] += 1.0  # the first tubelet, all of it hidden
    token = torch.randn(24, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(net.outputs(changed, hidden=(mask, token)), net.outputs(x, hidden=(mask, token)))


def test_another_size_and_length_is_read_by_the_same_weights() -> None:
    net = vit()
    assert net(clip(frames=6, size=20)).shape == (2, 3 * 25, 24)
    pictures = vit(TokenViTFacts())
    assert pictures.facts.axes == 2 and pictures(clip(frames=1, size=8)).shape == (2, 4, 24)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: TokenViTConfig(depth=0), "depth is 0; it must be at least 1"),
        (lambda: TokenViTConfig(width=10, heads=3), r"width is 10; it must be divisible by heads \(3\)"),
        (lambda: TokenViTConfig(width=9, heads=3), "width / heads is 3; rotary positions turn pairs"),
        (lambda: TokenViTConfig(rotary_base=math.nan), "rotary_base is nan; it must exceed 1"),
        (lambda: TokenViTFacts(tubelet=2), "no tubelets and no image path; set video"),
        (lambda: TokenViTFacts(channels=0), "channels is 0"),
        (lambda: vit(config=replace(SMALL, width=8)), "width / heads is 4; .* need at least 6"),
        (lambda: vit(replace(VIDEO, levels=(0, 1))), r"levels are \(0, 1\); .* to the last \(2\)"),
        (lambda: vit()(clip(frames=3)), "clip of 3 frames; it must be a multiple of tubelet"),
        (lambda: vit(TokenViTFacts())(clip()), "clip of 4 frames; it reads single pictures"),
        (lambda: vit()(clip(size=10)), "frames are 3 x 10 x 10; .* divisible by the patch"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
