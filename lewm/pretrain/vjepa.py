"""V-JEPA: predict what an EMA teacher says of tubes hidden in a clip, from the rest of it (Bardes et al. 2024).

The published code minimises the absolute error; that is done here.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lewm.nets.token_vit import TokenViT, TokenViTFacts
from lewm.objectives.losses import Losses
from lewm.objectives.teacher import TeacherConfig
from lewm.pretrain.base import ClipShape, Pretraining, Setup
from lewm.pretrain.masks import TubeConfig
from lewm.pretrain.predictor import MaskPredictor, MaskPredictorConfig
from lewm.pretrain.teacher import TokenTeacher
from lewm.pretrain.tubes import TUBES, check_clip, check_tubes, score_tubes

if TYPE_CHECKING:
    from lewm.pretrain.vjepa2 import VJepa2Config


@dataclass(frozen=True)
class VJepaConfig:
    """Clips, masks, predictor and teacher; masks and momenta as published."""

    name: Literal["vjepa"] = "vjepa"
    """Selects this method."""
    frames: int = 8
    """Frames per clip (published: 16)."""
    tubelet: int = 2
    """Frames that become one token; it must divide the frames."""
    masks: tuple[TubeConfig, ...] = TUBES
    """Kinds of masks; each is tried on every clip and the losses are averaged."""
    predictor: MaskPredictorConfig = field(default_factory=MaskPredictorConfig)
    """The narrow predictor."""
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig("linear", 0.998))
    """How the teacher follows; its momentum rises from 0.998 to 1 as published. Take less for short runs."""

    def __post_init__(self) -> None:
        check_clip(self.frames, self.tubelet)
        check_tubes(self.masks)

    def clip_shape(self, progress: float) -> ClipShape:
        """The same clips throughout."""
        return ClipShape(self.frames)


class VJepa(Pretraining):
    """Student and predictor learn, the teacher follows. What is kept is the teacher's encoder."""

    def __init__(self, config: "VJepaConfig | VJepa2Config", setup: Setup) -> None:
        super().__init__()
        self.config = config
        facts = TokenViTFacts(setup.channels, video=True, tubelet=config.tubelet)
        self.encoder = TokenViT(setup.encoder, facts)
        self.predictor = MaskPredictor(config.predictor, self.encoder, setup.encoder.width, len(config.masks))
        self.teacher = TokenTeacher(self.encoder, config.teacher)

    def forward(self, clip_BTCYX: Tensor, progress: float, generator: torch.Generator) -> Losses:
        """Mean absolute error on hidden tokens, averaged over the kinds of masks."""
        found = score_tubes(self.encoder, self.predictor, self.teacher, self.config.masks, clip_BTCYX, generator)
        metrics = self.teacher.watch(found.target, found.predicted)
        return Losses({"prediction": found.hidden}, {"prediction": 1.0}, metrics)

    def clip_shape(self, progress: float) -> ClipShape:
        """As configured."""
        return self.config.clip_shape(progress)

    def after_step(self, progress: float) -> None:
        """Move the teacher."""
        self.teacher.follow(self.encoder, progress)

    def kept(self) -> TokenViT:
        """The teacher's encoder, as published."""
        return self.teacher.encoder
