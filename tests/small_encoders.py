"""Small randomly initialised pretrained encoders of every family, written to disk as their library writes them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_models import FACTS

from lewm.nets.encoders import build_encoder
from lewm.nets.frozen import FrozenConfig
from lewm.nets.predictors import MLPConfig, RotaryConfig
from lewm.world_model import ModelConfig, WorldModel

SIZE, PATCH, WIDTH = 32, 8, 24
"""Pixels per side, pixels per patch (4 x 4 patches), width of a token."""
SHAPE: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURE: dict[str, Any] = {"image_size": SIZE, "patch_size": PATCH}
VIT = SHAPE | PICTURE | {"intermediate_size": 32}
VJEPA2 = SHAPE | {"crop_size": SIZE, "patch_size": PATCH, "frames_per_clip": 4, "mlp_ratio": 2.0}
PREDICTOR = {"pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
TEXT = SHAPE | {"num_hidden_layers": 1, "intermediate_size": 32, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vjepa2": ("VJEPA2Model", "VJEPA2Config", VJEPA2 | PREDICTOR),
    "dinov2": ("Dinov2Model", "Dinov2Config", SHAPE | PICTURE | {"mlp_ratio": 2}),
    "dinov2_with_registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        SHAPE | PICTURE | {"mlp_ratio": 2, "num_register_tokens": 3},
    ),
    "dinov3_vit": ("DINOv3ViTModel", "DINOv3ViTConfig", VIT | {"num_register_tokens": 3}),
    "ijepa": ("IJepaModel", "IJepaConfig", VIT),
    "vit_mae": ("ViTMAEForPreTraining", "ViTMAEConfig", VIT | DECODER | {"decoder_intermediate_size": 16}),
    "vit": ("ViTModel", "ViTConfig", VIT),
    "siglip": ("SiglipModel", "SiglipConfig", {"text_config": TEXT, "vision_config": VIT}),
    "siglip_vision_model": ("SiglipVisionModel", "SiglipVisionConfig", VIT),
}
"""Family -> class that a checkpoint is made with, its configuration, its settings."""


def save_encoder(family: str, folder: Path, seed: int = 0, processor: dict[str, Any] | None = None) -> Path:
    """A random encoder in `folder`, every weight of which matters; with a preprocessing file, if one is given."""
    import transformers

    model_class, config_class, settings = FAMILIES[family]
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():  # some start at zero, where forgetting them would not be seen
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def frames(count: int = 3, size: int = SIZE, channels: int = 3) -> Tensor:
    """Pictures (count, channels, size, size) of noise, uint8."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def model_of(
    path: Path, grid: int = 2, stack: int = 1, size: int = SIZE, encoder_size: int | None = None, **settings: Any
) -> WorldModel:
    """A fresh world model on the frozen encoder in `path`."""
    torch.manual_seed(0)
    predictor = MLPConfig(width=16) if grid == 1 else RotaryConfig(width=8, layers=1, heads=2)
    encoder = FrozenConfig(path=str(path), grid=grid, size=encoder_size, **settings)
    config = ModelConfig(encoder, predictor, frame_stack=stack)
    return WorldModel(config, replace(FACTS, size=size))


def refuses(error: type[Exception], message: str, path: Path | str, **settings: Any) -> None:
    """Opening that encoder raises this, in one sentence."""
    with pytest.raises(error, match=message) as caught:
        build_encoder(FrozenConfig(path=str(path), **settings), 3, SIZE)
    assert "\n" not in str(caught.value)
