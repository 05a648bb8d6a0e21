"""What is measured of an encoder, on tokens whose contents are known."""

from pathlib import Path

import cv2
import pytest
import torch
from pretrain_toys import generator

from lewm.nets.pretrained import pool_tokens
from lewm.pretrain.probe import Frames, feature_picture, principal_colours, token_health, write_png

NAMES, ANGLES = ("x", "heading"), ("heading",)


def frames(count: int, seed: int) -> Frames:
    state = torch.rand(count, 2, generator=generator(seed))
    return Frames(torch.zeros(count, 3, 8, 8), state)


def health(token_of, count: int = 400, grid: int = 2):
    fit, test = frames(count, 1), frames(count, 2)
    return token_health(token_of(fit.state_NS), token_of(test.state_NS), fit, test, NAMES, ANGLES, 4, grid).scalars


def test_a_state_that_one_patch_holds_is_found_in_the_grid_and_less_in_the_mean() -> None:
    """Noise in the other fifteen patches drowns it in the mean over all of them."""

    def tokens(state_NS):
        token_NSD = torch.randn(len(state_NS), 16, 4, generator=generator(3))
        token_NSD[:, 5, 0] = 20 * state_NS[:, 0]
        return token_NSD

    found = health(tokens)
    assert found["probe_r2/grid/x"] > 0.85 and found["probe_r2/pooled/x"] < 0.75
    assert abs(found["probe_r2/grid/cos heading"]) < 0.1
    assert set(found) == {
        *(f"probe_r2/{kind}/{name}" for kind in ("pooled", "grid") for name in ("x", "cos heading", "sin heading")),
        *(f"{kind}/{name}" for kind in ("tokens", "pooled") for name in ("std", "effective_rank")),
    }


def test_tokens_that_only_say_where_they_are_count_as_collapsed() -> None:
    place = torch.randn(16, 4, generator=generator(3))
    found = health(lambda state_NS: place.expand(len(state_NS), -1, -1))
    assert found["tokens/std"] == pytest.approx(0, abs=1e-6)
    assert found["tokens/effective_rank"] == pytest.approx(1, abs=1e-3) or found["tokens/std"] < 1e-6
    assert found["pooled/std"] == pytest.approx(0, abs=1e-6)


def test_spread_and_rank_of_gaussian_tokens() -> None:
    found = health(lambda state_NS: 2 * torch.randn(len(state_NS), 16, 4, generator=generator(3)))
    assert found["tokens/std"] == pytest.approx(2, rel=0.02) and found["pooled/std"] == pytest.approx(0.5, rel=0.1)
    assert found["tokens/effective_rank"] > 3.9


def test_pooling_averages_neighbouring_patches() -> None:
    token = torch.arange(16.0).view(1, 16, 1)
    assert pool_tokens(token, 4, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pool_tokens(token, 4, 1).item() == 7.5
    assert torch.equal(pool_tokens(token, 4, 4), token)


def test_colours_are_the_principal_components_in_order() -> None:
    source = torch.randn(50, 16, 3, generator=generator(3)) * torch.tensor([9.0, 3.0, 1.0])
    mix = torch.linalg.qr(torch.randn(6, 6, generator=generator(4)))[0][:3]
    colour = principal_colours(source @ mix + 5).flatten(0, 1)
    assert colour.min() == 0 and colour.max() == 1
    for c in range(3):
        correlation = torch.corrcoef(torch.stack([colour[:, c], source.flatten(0, 1)[:, c]]))[0, 1]
        assert abs(correlation) > 0.97
    turned = principal_colours((source @ mix + 5) @ torch.eye(6)).flatten(0, 1)
    torch.testing.assert_close(turned, colour, rtol=0, atol=1e-4)


def test_tokens_without_contents_are_grey() -> None:
    assert (principal_colours(torch.ones(2, 4, 3)) == 0.5).all()


def test_the_picture_shows_frames_above_their_colours(tmp_path: Path) -> None:
    pixels = torch.randint(0, 255, (3, 3, 8, 8), dtype=torch.uint8, generator=generator())
    token = torch.randn(3, 4, 5, generator=generator())
    sheet = feature_picture(pixels, token, 2)
    assert sheet.shape == (3, 16, 24)
    assert torch.equal(sheet[:, :8, 8:16], pixels[1])
    cell = sheet[:, 8:12, 8:12]
    assert (cell == cell[:, :1, :1]).all()
    expected = (255 * principal_colours(token)[1, 0]).round().to(torch.uint8)
    assert torch.equal(cell[:, 0, 0], expected)
    write_png(sheet, tmp_path / "sheet.png")
    read = cv2.cvtColor(cv2.imread(str(tmp_path / "sheet.png")), cv2.COLOR_BGR2RGB)
    assert torch.equal(torch.from_numpy(read), sheet.permute(1, 2, 0))
