"""Small pictures whose patches tell of each other: plane waves of random orientation, phase and drift, under noise."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lewm.nets.token_vit import TokenViTConfig
from lewm.objectives.teacher import TeacherConfig
from lewm.pretrain import (
    CJepaConfig,
    Data2VecConfig,
    IJepaConfig,
    MaeConfig,
    Pretraining,
    Setup,
    VJepa2Config,
    VJepa21Config,
    VJepaConfig,
    build_method,
)
from lewm.pretrain.masks import BlockConfig
from lewm.pretrain.predictor import MaskPredictorConfig
from lewm.pretrain.tubes import ClipStage

SIZE = 16
SMALL = TokenViTConfig(patch=4, width=24, depth=2, heads=2, mlp_ratio=2)
PREDICTOR = MaskPredictorConfig(width=16, depth=1, heads=1, mlp_ratio=2)
QUICK = TeacherConfig("constant", 0.9)
BLOCKS = BlockConfig(targets=2, min_context=3)
WHOLE = (ClipStage(1.0, 4),)

CONFIGS: dict[str, Any] = {
    "ijepa": IJepaConfig(masks=BLOCKS, predictor=PREDICTOR, teacher=QUICK),
    "cjepa": CJepaConfig(
        masks=BlockConfig(2, min_context=3, maskings=2),
        predictor=PREDICTOR,
        teacher=QUICK,
        projector_hidden=32,
        projector_dim=16,
    ),
    "data2vec": Data2VecConfig(min_block=2, teacher=QUICK),
    "mae": MaeConfig(decoder=PREDICTOR),
    "vjepa": VJepaConfig(frames=4, predictor=PREDICTOR, teacher=QUICK),
    "vjepa2": VJepa2Config(stages=WHOLE, predictor=PREDICTOR, teacher=QUICK),
    "vjepa21": VJepa21Config(stages=WHOLE, predictor=PREDICTOR, teacher=QUICK, levels=2),
}
"""Every method that needs no teacher folder, small."""


def setup(encoder: TokenViTConfig = SMALL, size: int = SIZE, channels: int = 3) -> Setup:
    return Setup(encoder, channels, size, (0.5,) * channels, (0.25,) * channels)


def method(name: str, seed: int = 0, **changes: Any) -> Pretraining:
    torch.manual_seed(seed)
    return build_method(replace(CONFIGS[name], **changes), setup())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def waves(count: int, frames: int = 1, seed: int = 0, noise: float = 0.4) -> tuple[Tensor, Tensor]:
    """Normalised clip_BTCYX and (cos, sin) of twice the orientation, (B, 2)."""
    source = generator(seed)
    draw = torch.rand(count, 3, generator=source)
    angle, phase, drift = math.pi * draw[:, 0], 2 * math.pi * draw[:, 1], draw[:, 2] - 0.5
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    along = angle.cos()[:, None, None] * x + angle.sin()[:, None, None] * y
    when = phase[:, None] + drift[:, None] * torch.arange(frames)
    wave = (0.8 * along[:, None] + when[..., None, None]).sin()
    clip = wave[:, :, None] + noise * torch.randn(count, frames, 3, SIZE, SIZE, generator=source)
    return clip, torch.stack([(2 * angle).cos(), (2 * angle).sin()], 1)


def train(taught: Pretraining, steps: int, batch: int = 32, learning_rate: float = 6e-3) -> None:
    """A plain loop on fresh waves."""
    optimizer = torch.optim.AdamW([p for p in taught.parameters() if p.requires_grad], learning_rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * min(1, 10 * (step + 1) / steps) * (1 - 0.9 * step / steps)
        clip, _ = waves(batch, taught.clip_shape(step / steps).frames, seed=1000 + step)
        optimizer.zero_grad()
        taught(clip, step / steps, generator(step)).total.backward()
        optimizer.step()
        taught.after_step((step + 1) / steps)
