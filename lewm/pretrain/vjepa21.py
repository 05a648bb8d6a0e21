"""V-JEPA 2.1: V-JEPA 2 that predicts several levels of the teacher, answers for visible tokens too, and reads pictures
beside clips (arXiv 2603.14482)."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lewm.nets.token_vit import TokenViT, TokenViTFacts
from lewm.objectives.losses import Losses
from lewm.objectives.teacher import TeacherConfig
from lewm.pretrain.base import ClipShape, Pretraining, Setup
from lewm.pretrain.masks import TubeConfig
from lewm.pretrain.predictor import MaskPredictor, MaskPredictorConfig
from lewm.pretrain.teacher import TokenTeacher
from lewm.pretrain.tubes import (
    STAGES,
    TUBES,
    ClipStage,
    check_stages,
    check_tubes,
    one_frame,
    score_tubes,
    stage_shape,
)


@dataclass(frozen=True)
class VJepa21Config:
    """V-JEPA 2's settings, levels, context loss and pictures."""

    name: Literal["vjepa21"] = "vjepa21"
    """Selects this method."""
    stages: tuple[ClipStage, ...] = STAGES
    """Clip length and picture size in the course of the training."""
    tubelet: int = 2
    """Frames that become one token; it must divide the frames of every stage."""
    masks: tuple[TubeConfig, ...] = TUBES
    """Kinds of masks; each is tried on every clip and the losses are averaged."""
    predictor: MaskPredictorConfig = field(default_factory=MaskPredictorConfig)
    """The narrow predictor."""
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig("constant", 0.99925))
    """How the teacher follows, see `vjepa2`."""
    levels: int = 4
    """Encoder levels that are predicted, evenly spaced and ending with the last; 1 leaves the last alone."""
    context: float = 0.5
    """Weight of the error on visible tokens of clips, each divided by the root of its distance to what is hidden."""
    context_image: float = 0.7
    """The same for pictures."""
    context_start: float = 0.11
    """Share of the training until which these weights are 0 (published: 15,000 of 135,000 steps)."""
    context_full: float = 0.22
    """Share of the training from which they are whole; they rise linearly in between."""
    images: float = 0.5
    """Weight of pictures, of which every clip gives one frame, against that of clips; 0 trains on clips alone, without
    an image path."""

    def __post_init__(self) -> None:
        check_stages(self.stages, self.tubelet)
        check_tubes(self.masks)
        if self.levels < 1:
            raise ValueError(f"levels is {self.levels}; it must be at least 1")
        for name in ("context", "context_image"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0 <= self.context_start <= self.context_full <= 1:
            raise ValueError(
                f"context_start is {self.context_start} and context_full {self.context_full}; they must rise in [0, 1]"
            )
        if not 0 <= self.images < 1:
            raise ValueError(f"images is {self.images}; it must lie in [0, 1)")


class VJepa21(Pretraining):
    """Student and predictor learn, the teacher follows. What is kept is the teacher's encoder."""

    def __init__(self, config: VJepa21Config, setup: Setup) -> None:
        super().__init__()
        self.config = config
        levels = spaced_levels(setup.encoder.depth, config.levels)
        facts = TokenViTFacts(setup.channels, True, config.tubelet, config.images > 0, levels)
        self.encoder = TokenViT(setup.encoder, facts)
        self.predictor = MaskPredictor(
            config.predictor,
            self.encoder,
            len(levels) * setup.encoder.width,
            len(config.masks),
            len(levels),
            visible=config.context > 0 or (config.images > 0 and config.context_image > 0),
        )
        self.teacher = TokenTeacher(self.encoder, config.teacher)

    def forward(self, clip_BTCYX: Tensor, progress: float, generator: torch.Generator) -> Losses:
        """Mean absolute error over all levels, on hidden and visible tokens, of clips and of one frame of each."""
        config = self.config
        found = score_tubes(self.encoder, self.predictor, self.teacher, config.masks, clip_BTCYX, generator)
        terms, weights = {"prediction": found.hidden}, {"prediction": 1 - config.images}
        rise = ramp(progress, config.context_start, config.context_full)
        if found.visible is not None:
            terms["context"], weights["context"] = found.visible, (1 - config.images) * config.context * rise
        if config.images:
            picture_B1CYX = one_frame(clip_BTCYX, generator)
            still = score_tubes(self.encoder, self.predictor, self.teacher, config.masks, picture_B1CYX, generator)
            terms["image_prediction"], weights["image_prediction"] = still.hidden, config.images
            if still.visible is not None:
                terms["image_context"] = still.visible
                weights["image_context"] = config.images * config.context_image * rise
        return Losses(terms, weights, self.teacher.watch(found.target, found.predicted))

    def clip_shape(self, progress: float) -> ClipShape:
        """The clips of the stage."""
        return stage_shape(self.config.stages, progress)

    def after_step(self, progress: float) -> None:
        """Move the teacher."""
        self.teacher.follow(self.encoder, progress)

    def kept(self) -> TokenViT:
        """The teacher's encoder."""
        return self.teacher.encoder


def spaced_levels(depth: int, count: int) -> tuple[int, ...]:
    """Block numbers of `count` evenly spaced levels, from 0 and ending with the last: 2, 5, 8, 11 of 12.

    Halves are rounded up. Raises ValueError for more levels than blocks.
    """
    if count > depth:
        raise ValueError(f"levels is {count}, but the encoder has {depth} blocks; lower method.levels")
    return tuple(math.floor(depth * (i + 1) / count + 0.5) - 1 for i in range(count))


def ramp(progress: float, start: float, full: float) -> float:
    """0 up to `start`, 1 from `full` on, linear in between."""
    if progress >= full:
        return 1.0
    return 0.0 if progress <= start else (progress - start) / (full - start)
