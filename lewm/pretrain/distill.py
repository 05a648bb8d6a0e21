"""Distillation: a small student predicts the tokens of a frozen encoder, as V-JEPA 2.1's small models were made.

V-JEPA 2.1's objective with a frozen teacher in place of the EMA one, on the teacher's last level alone (section 2.3.6).
An average of the student is kept; it teaches nobody.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from lewm.nets.pretrained import load_pretrained_encoder
from lewm.nets.token_vit import TokenViT, TokenViTFacts
from lewm.objectives.losses import Losses
from lewm.objectives.teacher import TeacherConfig, normalised
from lewm.pretrain.base import ClipShape, Pretraining, Setup
from lewm.pretrain.masks import TubeConfig
from lewm.pretrain.predictor import MaskPredictor, MaskPredictorConfig
from lewm.pretrain.teacher import TokenTeacher, spreads
from lewm.pretrain.tubes import TUBES, check_tubes, one_frame, score_tubes


@dataclass(frozen=True)
class DistillConfig:
    """Which teacher, and what the student is asked."""

    path: str
    """Encoder folder of the teacher, written by `lewm pretrain`. The student needs its patch and picture size."""
    name: Literal["distill"] = "distill"
    """Selects this method."""
    frames: int | None = None
    """Frames per clip; as many as the teacher was trained on if left out."""
    masks: tuple[TubeConfig, ...] = TUBES
    """Kinds of masks; each is tried on every clip and the losses are averaged."""
    context: float = 0.5
    """Weight of the error on visible tokens, each divided by the root of its distance to what is hidden."""
    predictor: MaskPredictorConfig = field(default_factory=MaskPredictorConfig)
    """The narrow predictor, which ends in the teacher's width."""
    average: float = 0.99
    """Share of the kept average of the student that stays at every step (published: 0.99925, for 100,000 steps)."""

    def __post_init__(self) -> None:
        check_tubes(self.masks)
        if not self.context >= 0:
            raise ValueError(f"context is {self.context}; it must be 0 or more")
        if not 0 <= self.average < 1:
            raise ValueError(f"average is {self.average}; it must lie in [0, 1)")


class FrozenTeacher(nn.Module):
    """An encoder folder as a teacher: clips normalised for the student in, layer-normed tokens out. Never moves."""

    scale_C11: Tensor
    shift_C11: Tensor

    def __init__(self, config: DistillConfig, setup: Setup) -> None:
        super().__init__()
        self.frozen = load_pretrained_encoder(config.path)
        about = self.frozen.about
        theirs = (about.facts.channels, about.size, about.encoder.patch)
        if theirs != (setup.channels, setup.size, setup.encoder.patch):
            raise ValueError(
                f"teacher {config.path} has {theirs[0]} channels, pictures of {theirs[1]} and patches of {theirs[2]} "
                f"pixels; the student has {setup.channels}, {setup.size} and {setup.encoder.patch}: they must agree"
            )
        # Both normalise by the statistics of their own recordings; from ours to theirs is an affine map.
        ours = [torch.tensor(x)[:, None, None] for x in (setup.pixel_mean, setup.pixel_std)]
        mean, std = (torch.tensor(x)[:, None, None] for x in (about.pixel_mean, about.pixel_std))
        std = std.clamp(min=1e-3)
        self.register_buffer("scale_C11", ours[1].clamp(min=1e-3) / std, persistent=False)
        self.register_buffer("shift_C11", (ours[0] - mean) / std, persistent=False)

    @torch.no_grad()
    def targets(self, clip_BTCYX: Tensor) -> Tensor:
        """target_BSD of all tokens."""
        return normalised(self.frozen.clips(clip_BTCYX * self.scale_C11 + self.shift_C11))


class Distill(Pretraining):
    """Student and predictor learn, the teacher stands still. What is kept is an average of the student."""

    def __init__(self, config: DistillConfig, setup: Setup) -> None:
        super().__init__()
        self.config = config
        self.teacher = FrozenTeacher(config, setup)
        about = self.teacher.frozen.about
        self.frames = about.frames if config.frames is None else config.frames
        if self.frames < 1 or (self.frames > 1 and (not about.facts.video or self.frames % about.facts.tubelet)):
            raise ValueError(
                f"frames is {self.frames}; teacher {config.path} takes "
                + (f"multiples of {about.facts.tubelet}" if about.facts.video else "single pictures: leave it out")
            )
        facts = TokenViTFacts(setup.channels, about.facts.video, about.facts.tubelet, about.facts.image_path)
        self.encoder = TokenViT(setup.encoder, facts)
        self.predictor = MaskPredictor(
            config.predictor, self.encoder, self.teacher.frozen.width, len(config.masks), visible=config.context > 0
        )
        self.average = TokenTeacher(self.encoder, TeacherConfig("constant", config.average))

    def forward(self, clip_BTCYX: Tensor, progress: float, generator: torch.Generator) -> Losses:
        """Mean absolute error to the teacher's tokens, hidden and visible.

        Of a teacher with an image path half the loss is that of one frame of every clip: the student has one as well.
        """
        clips = [("", clip_BTCYX)]
        if self.encoder.facts.image_path and self.frames > 1:
            clips.append(("image_", one_frame(clip_BTCYX, generator)))
        terms, weights = {}, {}
        for name, clip in clips:
            found = score_tubes(self.encoder, self.predictor, self.teacher, self.config.masks, clip, generator)
            terms[f"{name}prediction"], weights[f"{name}prediction"] = found.hidden, 1 / len(clips)
            if found.visible is not None:
                terms[f"{name}context"], weights[f"{name}context"] = found.visible, self.config.context / len(clips)
        return Losses(terms, weights, spreads(found.target, found.predicted))

    def clip_shape(self, progress: float) -> ClipShape:
        """The same clips throughout."""
        return ClipShape(self.frames)

    def after_step(self, progress: float) -> None:
        """Move the average."""
        self.average.follow(self.encoder, progress)

    def kept(self) -> TokenViT:
        """The average."""
        return self.average.encoder
