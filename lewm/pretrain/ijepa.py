"""I-JEPA: from one large block of a picture, predict what an EMA teacher says of four others (Assran et al. 2023)."""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lewm.nets.token_vit import TokenViT, TokenViTFacts
from lewm.objectives.losses import Losses, full_precision
from lewm.objectives.teacher import TeacherConfig
from lewm.pretrain.base import Pretraining, Setup
from lewm.pretrain.masks import BlockConfig, Masks, draw_for_rank, multi_block
from lewm.pretrain.predictor import MaskPredictor, MaskPredictorConfig
from lewm.pretrain.teacher import TokenTeacher, take_groups

Distance = Literal["smooth_l1", "l1", "l2"]


@dataclass(frozen=True)
class IJepaConfig:
    """Block masks, distance, predictor and teacher; the defaults are the published ones but for sizes."""

    name: Literal["ijepa"] = "ijepa"
    """Selects this method."""
    masks: BlockConfig = field(default_factory=BlockConfig)
    """What is hidden."""
    distance: Distance = "smooth_l1"
    """Between prediction and target: smooth_l1 with beta 1 (the published code), l2 (the paper), or l1."""
    predictor: MaskPredictorConfig = field(default_factory=MaskPredictorConfig)
    """The narrow predictor."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """How the teacher follows; its momentum rises from 0.996 to 1 as published. Take less for runs below some 10,000
    steps: 1 / (1 - momentum) of 0.5 to 2 % of the steps."""


class IJepa(Pretraining):
    """Student and predictor learn, the teacher follows. What is kept is the teacher's encoder."""

    def __init__(self, config: IJepaConfig, setup: Setup) -> None:
        super().__init__()
        self.config = config
        self.encoder = TokenViT(setup.encoder, TokenViTFacts(setup.channels))
        self.predictor = MaskPredictor(config.predictor, self.encoder, setup.encoder.width)
        self.teacher = TokenTeacher(self.encoder, config.teacher)

    def forward(self, clip_BTCYX: Tensor, progress: float, generator: torch.Generator) -> Losses:
        """Distance between predictions and the teacher's layer-normed tokens in the target blocks."""
        return self.score(clip_BTCYX, generator)[0]

    def score(self, clip_BTCYX: Tensor, generator: torch.Generator) -> tuple[Losses, list[Tensor]]:
        """The losses, and for every masking the student's context_BND."""
        grid = self.encoder.grid(clip_BTCYX)
        target_BSD = self.teacher.targets(clip_BTCYX)
        losses, contexts = [], []
        for _ in range(self.config.masks.maskings):
            draw = partial(multi_block, grid, self.config.masks, generator=generator)
            masks: Masks = draw_for_rank(draw, clip_BTCYX)
            contexts.append(self.encoder(clip_BTCYX, masks.context_BN))
            predicted_BMPD, _ = self.predictor(contexts[-1], masks, grid)
            wanted_BMPD = take_groups(target_BSD, masks.target_BMP)
            losses.append(distance(predicted_BMPD, wanted_BMPD, self.config.distance))
        metrics = self.teacher.watch(wanted_BMPD, predicted_BMPD)
        return Losses({"prediction": torch.stack(losses).mean()}, {"prediction": 1.0}, metrics), contexts

    def after_step(self, progress: float) -> None:
        """Move the teacher."""
        self.teacher.follow(self.encoder, progress)

    def kept(self) -> TokenViT:
        """The teacher's encoder, as published."""
        return self.teacher.encoder


def distance(predicted: Tensor, target: Tensor, kind: Distance, beta: float = 1.0) -> Tensor:
    """Mean over all entries of the error: squared (l2), absolute (l1), or squared / (2 beta) below beta and absolute
    - beta / 2 above it (smooth_l1)."""
    error = full_precision(predicted) - full_precision(target)
    if kind == "l2":
        return error.square().mean()
    return error.abs().mean() if kind == "l1" else F.smooth_l1_loss(error, torch.zeros_like(error), beta=beta)
