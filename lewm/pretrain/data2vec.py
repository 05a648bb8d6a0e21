"""data2vec: predict, at hidden patches, the average of an EMA teacher's upper layers (Baevski et al. 2022, vision)."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from lewm import distributed
from lewm.nets.blocks import init_linear
from lewm.nets.token_vit import TokenViT, TokenViTFacts
from lewm.objectives.losses import Losses
from lewm.objectives.teacher import TeacherConfig, normalised
from lewm.pretrain.base import Pretraining, Setup
from lewm.pretrain.ijepa import distance
from lewm.pretrain.masks import block_mask, own_share
from lewm.pretrain.teacher import TokenTeacher


@dataclass(frozen=True)
class Data2VecConfig:
    """Masks, target and teacher; the defaults are the published ones for vision but for the smallest block."""

    name: Literal["data2vec"] = "data2vec"
    """Selects this method."""
    masked: float = 0.6
    """Share of the patches that is hidden (published: 120 of 196)."""
    min_block: int = 4
    """Fewest patches of a hidden block (published: 16, on a grid of 14 x 14)."""
    aspect: float = 3.0
    """Largest height over width of a block, and width over height; published 1 / 0.3."""
    top: int | None = None
    """Uppermost blocks that make the target; the upper half if left out (published: 6 of 12)."""
    normalise_mean: bool = True
    """Whether the average of the normalised blocks is layer-normalised again."""
    beta: float = 2.0
    """Errors below beta are squared (smooth L1); it must be positive."""
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig("constant", 0.9998))
    """How the teacher follows; constant as published, over about 5000 steps. Take less for short runs."""

    def __post_init__(self) -> None:
        if not 0 < self.masked < 1:
            raise ValueError(f"masked is {self.masked}; it must lie between 0 and 1")
        if self.min_block < 1 or not self.aspect >= 1:
            raise ValueError(f"min_block is {self.min_block} and aspect {self.aspect}; both must be at least 1")
        if self.top is not None and self.top < 1:
            raise ValueError(f"top is {self.top}; it must be 1 or more, or left out for the upper half")
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; it must be positive")


class Data2Vec(Pretraining):
    """The student sees all patches, the hidden ones as one learned token; a linear head reads the target off it."""

    def __init__(self, config: Data2VecConfig, setup: Setup) -> None:
        super().__init__()
        self.config = config
        depth, width = setup.encoder.depth, setup.encoder.width
        self.top = max(1, depth // 2) if config.top is None else config.top
        if self.top > depth:
            raise ValueError(f"top is {self.top}, but the encoder has {depth} blocks; lower method.top")
        self.encoder = TokenViT(setup.encoder, TokenViTFacts(setup.channels))
        self.head = nn.Linear(width, width)
        init_linear(self.head)
        self.hidden_D = nn.Parameter(torch.zeros(width))
        self.teacher = TokenTeacher(self.encoder, config.teacher)

    def forward(self, clip_BTCYX: Tensor, progress: float, generator: torch.Generator) -> Losses:
        """Smooth L1 at the hidden patches."""
        config, grid = self.config, self.encoder.grid(clip_BTCYX)
        count = len(clip_BTCYX) * distributed.world_size()
        drawn_BS = block_mask(grid, config.masked, config.min_block, config.aspect, count, generator)
        mask_BS = own_share(drawn_BS, clip_BTCYX)
        last_BSD = self.encoder.outputs(clip_BTCYX, hidden=(mask_BS, self.hidden_D))[-1]
        predicted_ND = self.head(self.encoder.norms[-1](last_BSD))[mask_BS]
        with torch.no_grad():
            levels = self.teacher.encoder.outputs(clip_BTCYX)[-self.top :]
            target_ND = top_average(levels, config.normalise_mean)[mask_BS]
        loss = distance(predicted_ND, target_ND, "smooth_l1", config.beta)
        metrics = self.teacher.watch(target_ND[None], predicted_ND[None])
        return Losses({"prediction": loss}, {"prediction": 1.0}, metrics)

    def after_step(self, progress: float) -> None:
        """Move the teacher."""
        self.teacher.follow(self.encoder, progress)

    def kept(self) -> TokenViT:
        """The student: its last layer norm is what the head reads; the target is taken before the teacher's."""
        return self.encoder


def top_average(levels: list[Tensor], normalise_mean: bool) -> Tensor:
    """Mean of the levels, each layer-normed without parameters, and normalised again if so asked (section 3.3)."""
    mean_BSD = torch.stack([normalised(level_BSD) for level_BSD in levels]).mean(0)
    return normalised(mean_BSD) if normalise_mean else mean_BSD
