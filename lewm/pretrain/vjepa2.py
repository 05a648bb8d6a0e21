"""V-JEPA 2: V-JEPA with a teacher of constant momentum, begun on short clips of small pictures (Assran et al. 2025)."""

from dataclasses import dataclass, field
from typing import Literal

from lewm.objectives.teacher import TeacherConfig
from lewm.pretrain.base import ClipShape, Pretraining, Setup
from lewm.pretrain.masks import TubeConfig
from lewm.pretrain.predictor import MaskPredictorConfig
from lewm.pretrain.tubes import STAGES, TUBES, ClipStage, check_stages, check_tubes, stage_shape
from lewm.pretrain.vjepa import VJepa


@dataclass(frozen=True)
class VJepa2Config:
    """Stages, masks, predictor and teacher; masks and momentum as published."""

    name: Literal["vjepa2"] = "vjepa2"
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
    """How the teacher follows; constant as published, over about 1300 steps. Take less for short runs."""

    def __post_init__(self) -> None:
        check_stages(self.stages, self.tubelet)
        check_tubes(self.masks)

    def clip_shape(self, progress: float) -> ClipShape:
        """The clips of the stage."""
        return stage_shape(self.stages, progress)


def vjepa2(config: VJepa2Config, setup: Setup) -> Pretraining:
    """V-JEPA under another configuration: there is nothing else to it."""
    return VJepa(config, setup)
