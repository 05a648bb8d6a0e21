"""Masks: disjoint, equally many tokens per sample, shapes as configured, tubes constant in time, drawn from a seed."""

import math

import pytest
import torch
from pretrain_toys import generator
from torch import Tensor

from lewm.pretrain.masks import (
    BlockConfig,
    Masks,
    TubeConfig,
    block_mask,
    block_size,
    choose_equally,
    multi_block,
    place_blocks,
    random_patches,
    tubes,
)
from lewm.pretrain.tubes import TUBES, nearness

GRID = (1, 8, 8)
CLIP = (4, 8, 8)


def drawn(kind: str, count: int = 16, seed: int = 0) -> tuple[Masks, int]:
    draws = {
        "blocks": lambda: (multi_block(GRID, BlockConfig(), count, generator(seed)), 64),
        "short": lambda: (tubes(CLIP, TUBES[0], count, generator(seed)), 256),
        "long": lambda: (tubes(CLIP, TUBES[1], count, generator(seed)), 256),
        "random": lambda: (random_patches(GRID, 0.75, count, generator(seed)), 64),
    }
    return draws[kind]()


KINDS = ["blocks", "short", "long", "random"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_context_and_targets_are_disjoint_distinct_and_within_the_grid(kind: str, seed: int) -> None:
    masks, tokens = drawn(kind, seed=seed)
    for context, groups in zip(masks.context_BN.tolist(), masks.target_BMP.tolist()):
        assert len(set(context)) == len(context) > 0
        assert set(context) <= set(range(tokens))
        for group in groups:
            assert len(set(group)) == len(group) > 0
            assert set(group) <= set(range(tokens)) - set(context)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_masks(kind: str) -> None:
    first, again, other = drawn(kind)[0], drawn(kind)[0], drawn(kind, seed=1)[0]
    assert torch.equal(first.context_BN, again.context_BN) and torch.equal(first.target_BMP, again.target_BMP)
    assert first.context_BN.shape != other.context_BN.shape or not torch.equal(first.context_BN, other.context_BN)


def squares(index_P: list[int], columns: int = 8) -> tuple[int, int, int]:
    """Height, width and count of a group of tokens."""
    rows, cols = [i // columns for i in index_P], [i % columns for i in index_P]
    return max(rows) - min(rows) + 1, max(cols) - min(cols) + 1, len(index_P)


def test_blocks_of_ijepa_are_rectangles_of_the_published_share_and_aspect() -> None:
    shares, aspects = [], []
    for seed in range(60):
        masks = multi_block((1, 16, 16), BlockConfig(min_context=10), 4, generator(seed))
        sizes = {squares(group, 16) for groups in masks.target_BMP.tolist() for group in groups}
        assert len(sizes) == 1  # one size per batch, so that every sample predicts equally much
        height, width, count = sizes.pop()
        assert height * width == count  # nothing missing: a full rectangle
        shares.append(count / 256)
        aspects.append(height / width)
    # Sides are rounded to whole patches, which moves share and aspect by about a patch in seven.
    assert 0.12 < min(shares) < 0.16 and 0.18 < max(shares) < 0.23
    assert 0.6 < min(aspects) < 0.95 and 1.2 < max(aspects) < 1.8
    assert 0.15 < sum(shares) / len(shares) < 0.19


def test_contexts_of_ijepa_are_as_large_as_measured_on_the_published_code() -> None:
    """Shares of visible tokens before the batch is cut to its poorest sample: 0.43 on 16 x 16, 0.34 on 8 x 8."""
    for side, published in ((16, 0.43), (8, 0.34)):
        config = BlockConfig(min_context=4)
        seen = [multi_block((1, side, side), config, 1, generator(seed)).context_BN.shape[1] for seed in range(200)]
        assert sum(seen) / len(seen) / side**2 == pytest.approx(published, abs=0.04)


def test_too_few_visible_tokens_are_drawn_again() -> None:
    config = BlockConfig(min_context=12)
    for seed in range(30):
        assert multi_block(GRID, config, 1, generator(seed)).context_BN.shape[1] >= 12


@pytest.mark.parametrize("kind", ["short", "long"])
def test_tubes_are_constant_in_time(kind: str) -> None:
    masks, _ = drawn(kind)
    for index_BN in (masks.context_BN, masks.target_BMP[:, 0]):
        cells_BTN = index_BN.unflatten(1, (4, -1))
        for t in range(4):
            assert torch.equal(cells_BTN[:, t] - 64 * t, cells_BTN[:, 0])
            assert ((cells_BTN[:, t] >= 64 * t) & (cells_BTN[:, t] < 64 * (t + 1))).all()


@pytest.mark.parametrize("tube, published", [(TUBES[0], 0.63), (TUBES[1], 0.815)])
def test_share_hidden_by_tubes_is_as_measured_on_the_published_code(tube: TubeConfig, published: float) -> None:
    hidden = [tubes((1, 16, 16), tube, 1, generator(seed)).target_BMP.shape[2] for seed in range(200)]
    assert sum(hidden) / len(hidden) / 256 == pytest.approx(published, abs=0.03)


def test_one_sample_alone_hides_or_sees_every_token() -> None:
    masks = tubes(CLIP, TUBES[0], 1, generator(3))
    both = torch.cat([masks.context_BN[0], masks.target_BMP[0, 0]])
    assert sorted(both.tolist()) == list(range(256))


def test_block_size_by_hand() -> None:
    assert block_size(8, 8, (0.25, 0.25), (1.0, 1.0), generator()) == (4, 4)
    assert block_size(10, 10, (0.32, 0.32), (2.0, 2.0), generator()) == (8, 4)
    assert block_size(2, 2, (0.01, 0.01), (1.0, 1.0), generator()) == (1, 1)
    assert block_size(4, 4, (1.0, 1.0), (4.0, 4.0), generator()) == (4, 2)


def test_blocks_reach_every_place_equally_often() -> None:
    covered = place_blocks(4, 5, (2, 2), 4000, 1, generator()).float().mean((0, 1))
    corners = torch.stack([covered[0, 0], covered[0, -1], covered[-1, 0], covered[-1, -1]])
    torch.testing.assert_close(corners, torch.full((4,), 1 / 12), rtol=0, atol=0.02)  # 3 x 4 places, a corner in one
    assert covered[1, 1].item() == pytest.approx(4 / 12, abs=0.03)


def test_surplus_is_dropped_anywhere() -> None:
    """The published code drops what lies last, which would hide the lower right less often."""
    allowed = torch.ones(3000, 6, dtype=torch.bool)
    allowed[0, 2:] = False
    index = choose_equally(allowed, generator())
    assert index.shape == (3000, 2) and index[0].tolist() == [0, 1]
    assert (index[:, 1:] > index[:, :-1]).all()
    share = torch.bincount(index[1:].flatten(), minlength=6) / 2999
    torch.testing.assert_close(share, torch.full((6,), 1 / 3), rtol=0, atol=0.04)


def test_random_patches_hide_what_they_say() -> None:
    masks = random_patches(GRID, 0.75, 8, generator())
    assert masks.context_BN.shape == (8, 16) and masks.target_BMP.shape == (8, 1, 48)
    both = torch.cat([masks.context_BN, masks.target_BMP[:, 0]], 1)
    assert torch.equal(both.sort(1).values, torch.arange(64).expand(8, -1))


@pytest.mark.parametrize("seed", range(3))
def test_block_mask_hides_exactly_its_share_in_every_picture(seed: int) -> None:
    hidden = block_mask(GRID, 0.6, 4, 3.0, 16, generator(seed))
    assert (hidden.sum(1) == round(0.6 * 64)).all()
    assert len({tuple(row) for row in hidden.tolist()}) >= 12  # each picture has its own


def test_block_mask_hides_blocks_and_not_single_patches() -> None:
    def neighbours(mask_BS: Tensor) -> float:
        square = mask_BS.view(-1, 8, 8)
        return (square[:, :, 1:] == square[:, :, :-1]).float().mean().item()

    blocks = block_mask(GRID, 0.5, 8, 3.0, 64, generator())
    scattered = torch.zeros(64, 64, dtype=torch.bool)
    scattered.scatter_(1, random_patches(GRID, 0.5, 64, generator()).target_BMP[:, 0], True)
    assert neighbours(blocks) > 0.65 and neighbours(scattered) < 0.55


def test_nearness_by_hand() -> None:
    """On a row of four patches the third is hidden; with two frames, one sits a frame away as well."""
    masks = Masks(torch.tensor([[0, 1, 3]]), torch.tensor([[[2]]]))
    expected = torch.tensor([[1 / math.sqrt(2), 1, 1]])
    torch.testing.assert_close(nearness(masks, (1, 1, 4)), expected)
    masks = Masks(torch.tensor([[0, 4]]), torch.tensor([[[3]]]))  # two frames of 2 x 2: (0,1,1) hidden
    expected = torch.tensor([[2**-0.25, 3**-0.25]])  # distances sqrt 2 and sqrt 3
    torch.testing.assert_close(nearness(masks, (2, 2, 2)), expected)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: BlockConfig(targets=0), "targets is 0; it must be at least 1"),
        (lambda: BlockConfig(target_scale=(0.3, 0.2)), r"target_scale is \(0.3, 0.2\); it must be two rising shares"),
        (lambda: BlockConfig(target_aspect=(0.0, 1.0)), "target_aspect is"),
        (lambda: TubeConfig(scale=1.0), "blocks is 8 and scale 1.0"),
        (lambda: TubeConfig(aspect=(2.0, 1.0)), "aspect is"),
        (lambda: multi_block((1, 1, 2), BlockConfig(), 4, generator()), "hide all of a 1 x 2 picture in each of 20"),
        (lambda: tubes((1, 2, 2), TubeConfig(50, 0.5), 8, generator()), "hide all of a 2 x 2 frame in each of 20"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
