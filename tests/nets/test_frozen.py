"""Frozen encoders give the tokens of their library's own forward, stay as they are, and say what they cannot do."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_encoders import FAMILIES, PATCH, SIZE, WIDTH, frames, model_of, refuses, save_encoder
from torch import Tensor
from toy_models import FACTS, toy_model, toy_origin

from lewm.checkpoint import load, save_checkpoint
from lewm.nets.encoders import build_encoder
from lewm.nets.frozen import FROZEN_FAMILIES, FrozenConfig, frozen_in
from lewm.nets.predictors import MLPConfig
from lewm.train import TrainConfig, make_optimizer
from lewm.world_model import ModelConfig, WorldModel

SIDE = SIZE // PATCH
IMAGENET = (torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))
HALF = (torch.full((3,), 0.5), torch.full((3,), 0.5))
SCALING = {"vit": HALF, "siglip": HALF, "siglip_vision_model": HALF}


def scaled(pixels: Tensor, family: str) -> Tensor:
    mean, std = SCALING.get(family, IMAGENET)
    return (pixels.float() / 255 - mean[:, None, None]) / std[:, None, None]


@torch.no_grad()
def theirs(family: str, folder: Path, pixels: Tensor) -> Tensor:
    """Patch tokens as a user of the library would get them, from the class the checkpoint was made with."""
    import transformers

    library = getattr(transformers, FAMILIES[family][0]).from_pretrained(folder).eval()
    if family == "vjepa2":
        video = torch.stack([pixels, pixels], 1)
        hidden = library.get_vision_features(video)
        centred = hidden - hidden.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    if family == "vit_mae":  # the library shuffles the patches; with none masked, its own indices put them back
        library.vit.embeddings.config.mask_ratio = 0.0
        found = library.vit(pixels)
        index = found.ids_restore[..., None].expand(-1, -1, WIDTH)
        return found.last_hidden_state[:, 1:].gather(1, index)
    if family == "siglip":
        library = library.vision_model
    special = {"dinov2": 1, "vit": 1, "dinov2_with_registers": 4, "dinov3_vit": 4}.get(family, 0)
    hidden: Tensor = library(pixels).last_hidden_state[:, special:]
    return hidden


def test_every_family_is_tested() -> None:
    ours = {"lewm-checkpoint", "lewm-encoder"}  # the second in tests/pretrain/test_pretrain_loop.py
    assert set(FROZEN_FAMILIES) == {*FAMILIES, *ours}


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_library(family: str, saved: Callable[[str], Path]) -> None:
    folder, pixels = saved(family), frames()
    wanted = theirs(family, folder, scaled(pixels, family))
    assert wanted.shape == (3, SIDE**2, WIDTH)
    whole = model_of(folder, grid=SIDE)
    torch.testing.assert_close(whole.encode(pixels[:, None])[:, 0], wanted, rtol=1e-4, atol=1e-5)
    by_hand = wanted.view(3, 2, 2, 2, 2, WIDTH).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(model_of(folder).encode(pixels[:, None])[:, 0], by_hand, rtol=1e-4, atol=1e-5)
    one = model_of(folder, grid=1)
    torch.testing.assert_close(one.encode(pixels[:, None])[:, 0, 0], wanted.mean(1), rtol=1e-4, atol=1e-5)
    assert (one.tokens, one.latent_dim) == (1, WIDTH)


def test_a_token_stands_for_its_place(saved: Callable[[str], Path]) -> None:
    """Row by row from the top left: what changes in a corner changes that corner's token most."""
    model, pixels = model_of(saved("dinov2")), frames(1)
    for token, (y, x) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        moved = pixels.clone()
        moved[..., y : y + 16, x : x + 16] = 255 - moved[..., y : y + 16, x : x + 16]
        change_K = (model.encode(moved[:, None]) - model.encode(pixels[:, None])).square().mean(-1)[0, 0]
        assert change_K.argmax() == token


@pytest.mark.parametrize("grid", [2, 3])
def test_a_grid_that_divides_nothing_averages_overlapping_windows(grid: int, saved: Callable[[str], Path]) -> None:
    pixels, folder = frames(), saved("dinov2")
    all_BYXD = theirs("dinov2", folder, scaled(pixels, "dinov2")).view(3, SIDE, SIDE, WIDTH)
    edges = [(i * SIDE // grid, -(-(i + 1) * SIDE // grid)) for i in range(grid)]
    by_hand = torch.stack([all_BYXD[:, a:b, c:d].mean((1, 2)) for a, b in edges for c, d in edges], 1)
    found = model_of(folder, grid=grid).encode(pixels[:, None])[:, 0]
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-5)


# Preprocessing.

PROCESSOR = {
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "crop_size": {"height": 24, "width": 24},
    "size": {"shortest_edge": 28},
    "do_center_crop": True,
    "resample": 2,
    "rescale_factor": 1 / 255,
}


@pytest.mark.parametrize(("resample", "pillow"), [(2, Image.Resampling.BILINEAR), (3, Image.Resampling.BICUBIC)])
@pytest.mark.parametrize("size", [64, 16])
def test_pixels_are_resized_as_the_librarys_processor_does(
    resample: int, pillow: Any, size: int, tmp_path: Path
) -> None:
    """Antialiased, whole, with the file's own mean and std; Pillow rounds to 8 bits."""
    folder = save_encoder("dinov2", tmp_path / "e", processor=PROCESSOR | {"resample": resample})
    pixels = 96 + frames(1, size) // 4  # no contrast that bicubic would overshoot, since Pillow clips on its way
    seen_CYX = seen_by(model_of(folder, size=size), pixels)
    image = Image.fromarray(pixels[0].movedim(0, -1).numpy()).resize((24, 24), pillow)
    mean_C11, std_C11 = (torch.tensor(PROCESSOR[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    wanted_CYX = (torch.from_numpy(np.array(image)).movedim(-1, 0) / 255 - mean_C11) / std_C11
    torch.testing.assert_close(seen_CYX, wanted_CYX, rtol=0, atol=1.1 / 255 / 0.4)


def seen_by(model: WorldModel, pixels: Tensor) -> Tensor:
    """What reaches the network itself for the first picture."""
    seen: list[dict[str, Tensor]] = []
    frozen = frozen_in(model.encoder)
    assert frozen is not None
    frozen.backbone.net.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True)
    model.encode(pixels[:, None])
    return seen[0]["pixel_values"][0]


def test_nothing_is_brighter_than_white_or_darker_than_black(tmp_path: Path) -> None:
    folder = save_encoder("dinov2", tmp_path / "e", processor=PROCESSOR | {"resample": 3})
    seen_CYX = seen_by(model_of(folder, size=16), frames(1, 16) // 128 * 255)
    mean_C11, std_C11 = (torch.tensor(PROCESSOR[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    back_CYX = seen_CYX * std_C11 + mean_C11
    assert -1e-6 < back_CYX.min() < 0.01 and 0.99 < back_CYX.max() < 1 + 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rescale_factor": 1 / 127.5}, "not divided by 255"),
        ({"resample": 0}, "resample is 0; only 2"),
        ({"crop_size": {"height": 24, "width": 32}}, r"the picture size is \[24, 32\]: only square"),
        ({"image_mean": [0.5]}, "must have 3 numbers, not 1"),
    ],
)
def test_preprocessing_that_is_not_known_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = save_encoder("dinov2", tmp_path / "e", processor=PROCESSOR | change)
    with pytest.raises(ValueError, match=message):
        model_of(folder)


def test_a_processor_without_a_crop_or_a_normalisation(tmp_path: Path) -> None:
    processor = {"size": 24, "do_center_crop": False, "crop_size": 16, "do_normalize": False}
    folder = save_encoder("vit", tmp_path / "e", processor=processor)
    frozen = frozen_in(model_of(folder).encoder)
    assert frozen is not None
    assert frozen.key["size"] == 24 and (frozen.key["mean"], frozen.key["std"]) == ([0.0] * 3, [1.0] * 3)


@pytest.mark.parametrize("family", ["dinov2", "dinov3_vit", "ijepa", "vit_mae", "siglip_vision_model"])
def test_the_size_may_be_chosen_where_positions_can_be_interpolated(family: str, saved: Callable[[str], Path]) -> None:
    """What the library gives for the larger picture, its positions interpolated."""
    import transformers

    model, pixels = model_of(saved(family), grid=6, size=48, encoder_size=48), frames(2, 48)
    frozen = frozen_in(model.encoder)
    assert frozen is not None and frozen.backbone.side == 6
    name = "ViTMAEModel" if family == "vit_mae" else FAMILIES[family][0]
    library = getattr(transformers, name).from_pretrained(saved(family)).eval()
    more = {} if family.startswith("dino") else {"interpolate_pos_encoding": True}
    if family == "vit_mae":
        library.embeddings.config.mask_ratio = 0.0
    with torch.no_grad():
        found = library(scaled(pixels, family), **more)
    wanted = found.last_hidden_state[:, -36:]
    if family == "vit_mae":
        wanted = wanted.gather(1, found.ids_restore[..., None].expand(-1, -1, WIDTH))
    torch.testing.assert_close(model.encode(pixels[:, None])[:, 0], wanted, rtol=1e-4, atol=1e-5)


# Frozen.


def test_it_stays_as_it_is_whatever_is_done_to_the_model_around_it(saved: Callable[[str], Path]) -> None:
    model, pixels = model_of(saved("dinov2")), frames()[:, None]
    frozen = frozen_in(model.encoder)
    assert frozen is not None
    weights = {name: value.clone() for name, value in frozen.backbone.net.state_dict().items()}
    model.train().requires_grad_(True)
    assert not frozen.training and not frozen.backbone.net.training
    assert not [name for name, _ in model.named_parameters() if "encoder" in name]
    optimizer = make_optimizer(model, TrainConfig())
    latent = model.encode(pixels)
    assert not latent.requires_grad and torch.equal(latent, model.eval().encode(pixels))
    model.train().predict(latent[:, :1], torch.zeros(3, 1, 10)).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(value, weights[name]) for name, value in frozen.backbone.net.state_dict().items())


def test_it_follows_the_models_precision_and_ignores_the_callers_autocast(saved: Callable[[str], Path]) -> None:
    model, pixels = model_of(saved("dinov2")), frames()[:, None]
    exact = model.encode(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.encode(pixels), exact)
    rounded = model_of(saved("dinov2"), compute="bfloat16").encode(pixels)
    assert rounded.dtype == torch.float32
    assert 1e-4 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()
    double = model.double().encode(pixels)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), exact, rtol=1e-4, atol=1e-5)


def test_pictures_of_a_frame_are_encoded_alone_and_joined_along_the_width(saved: Callable[[str], Path]) -> None:
    stacked, single = model_of(saved("ijepa"), stack=2), model_of(saved("ijepa"))
    old, new = frames(), frames().flip(0)
    assert (stacked.tokens, stacked.latent_dim) == (4, 2 * WIDTH)
    latent = stacked.encode(torch.cat([old, new], 1)[:, None])
    apart = torch.cat([single.encode(part[:, None]) for part in (old, new)], -1)
    torch.testing.assert_close(latent, apart, rtol=1e-5, atol=1e-6)


def test_one_frame_is_encoded_alike_alone_and_in_a_batch(saved: Callable[[str], Path]) -> None:
    for family in ("vit_mae", "vjepa2"):  # which shuffle and double
        model, pixels = model_of(saved(family)), frames(4)[:, None]
        alone = torch.cat([model.encode(frame[None]) for frame in pixels])
        torch.testing.assert_close(model.encode(pixels), alone, rtol=1e-5, atol=1e-6)


# Ours.


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours") / "checkpoint"
    save_checkpoint(folder, toy_model(), None, toy_origin(), {})
    return folder


def test_the_encoder_of_a_checkpoint_of_ours_is_taken_with_its_own_statistics(ours: Path) -> None:
    trained, pixels = toy_model(), frames()[:, None]
    other = replace(FACTS, pixel_mean=(0.1, 0.1, 0.1), pixel_std=(1.0, 1.0, 1.0))
    model = WorldModel(ModelConfig(FrozenConfig(path=str(ours), grid=1), MLPConfig(width=8)), other)
    torch.testing.assert_close(model.encode(pixels), trained.encode(pixels))
    assert (model.tokens, model.latent_dim) == (trained.tokens, trained.latent_dim)


def test_what_a_checkpoint_of_ours_cannot_give_is_refused(ours: Path, tmp_path: Path) -> None:
    def refused(folder: Path, message: str, **settings: Any) -> None:
        with pytest.raises(ValueError, match=message):
            build_encoder(FrozenConfig(path=str(folder), **settings), 3, SIZE)

    refused(ours, r"grid is 4; .* gives 1 x 1 tokens per picture of 32 pixels: choose 1\.\.1")
    refused(ours, r"only sees 32 pixels", grid=1, size=64)
    save_checkpoint(tmp_path / "stacked", toy_model(frame_stack=2), None, toy_origin(), {})
    refused(tmp_path / "stacked", "encodes 2 stacked frames at once", grid=1)
    model = WorldModel(ModelConfig(FrozenConfig(path=str(ours), grid=1), MLPConfig(width=8)), FACTS)
    save_checkpoint(tmp_path / "frozen", model, None, toy_origin(), {})
    refused(tmp_path / "frozen", "has a frozen encoder itself: give that one", grid=1)
    raw = json.loads((ours / "config.json").read_text())
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text(json.dumps({"format": raw["format"]}))
    refused(tmp_path / "bare", "has no 'model': copy the checkpoint again", grid=1)


def test_the_picture_itself_is_an_encoder_without_weights(tmp_path: Path) -> None:
    pixels = frames(2, size=16)
    model = model_of(Path("pixels"), grid=2, size=16, encoder_size=8)
    token_BKD = model.encode(pixels[:, None])[:, 0]
    assert (model.tokens, model.latent_dim) == (4, 3 * 4 * 4)
    # Token 2 is the lower left quarter: its channels one after the other, each row by row.
    whole = model_of(Path("pixels"), grid=2, size=16, encoder_size=16).encode(pixels[:, None])[:, 0]
    torch.testing.assert_close(whole[:, 2], (pixels.float() / 127.5 - 1)[:, :, 8:, :8].flatten(1))
    save_checkpoint(tmp_path / "pixels", model, None, toy_origin(), {})
    again = load(tmp_path / "pixels").model
    assert torch.equal(again.encode(pixels[:, None])[:, 0], token_BKD)
    refuses(
        ValueError, "encoder.size is 32 and encoder.grid 3; the patches of pixels need a multiple", "pixels", grid=3
    )


# Faults.
