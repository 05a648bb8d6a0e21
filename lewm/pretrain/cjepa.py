"""C-JEPA: I-JEPA, and VICReg on the pooled context so that it cannot collapse (Mo and Tong 2024).

There is no official code. The paper averages over pairs of masked views of a picture, of which I-JEPA has one; here the
views are independent maskings of the same picture (`masks.maskings`, two by default, which doubles the student's work).
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from lewm.nets.heads import Projector
from lewm.nets.token_vit import TokenViT
from lewm.objectives.cjepa import view_similarity
from lewm.objectives.losses import Losses, full_precision
from lewm.objectives.statistics import centre, covariance
from lewm.objectives.teacher import TeacherConfig
from lewm.objectives.vicreg import covariance_energy, variance_hinge
from lewm.pretrain.base import Pretraining, Setup
from lewm.pretrain.ijepa import Distance, IJepa, IJepaConfig
from lewm.pretrain.masks import BlockConfig
from lewm.pretrain.predictor import MaskPredictorConfig


@dataclass(frozen=True)
class CJepaConfig:
    """I-JEPA's settings, and weight x (similarity, variance, covariance) with the paper's coefficients."""

    name: Literal["cjepa"] = "cjepa"
    """Selects this method."""
    masks: BlockConfig = field(default_factory=lambda: BlockConfig(maskings=2))
    """What is hidden; two or more maskings, whose contexts are the views."""
    distance: Distance = "smooth_l1"
    """Between prediction and target, see `ijepa`."""
    predictor: MaskPredictorConfig = field(default_factory=MaskPredictorConfig)
    """The narrow predictor."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """How the teacher follows, see `ijepa`."""
    weight: float = 0.001
    """Weight of the three terms below together; 0 leaves `ijepa`. Small beside a smooth L1 of 0.1 to 0.5: for small
    models 0.001 to 0.1 is worth a sweep."""
    similarity: float = 25.0
    """Weight of the squared difference between the views of a picture."""
    variance: float = 25.0
    """Weight of the hinge that asks every dimension for a standard deviation of 1; it counts whole."""
    covariance: float = 1.0
    """Weight of the squared covariances between dimensions."""
    projector_hidden: int = 512
    """Hidden width of the projector from pooled contexts to what the three terms see."""
    projector_dim: int = 192
    """Width of what they see."""

    def __post_init__(self) -> None:
        for name in ("weight", "similarity", "variance", "covariance"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("projector_hidden", "projector_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.masks.maskings < 2:
            raise ValueError(f"masks.maskings is {self.masks.maskings}; the similarity of views needs 2 or more")


class CJepa(Pretraining):
    """I-JEPA plus VICReg on the projected mean of the visible tokens."""

    def __init__(self, config: CJepaConfig, setup: Setup) -> None:
        super().__init__()
        self.config = config
        taught = IJepaConfig("ijepa", config.masks, config.distance, config.predictor, config.teacher)
        self.ijepa = IJepa(taught, setup)
        self.projector: nn.Module = Projector(setup.encoder.width, config.projector_hidden, config.projector_dim)

    def forward(self, clip_BTCYX: Tensor, progress: float, generator: torch.Generator) -> Losses:
        """The term of `ijepa` and three on the contexts of every masking, each over the pictures of all ranks.

        A collapsed context costs weight x variance x 0.99. Raises ValueError for a single picture.
        """
        taught, contexts = self.ijepa.score(clip_BTCYX, generator)
        view_VBD = torch.stack([self.projector(full_precision(context_BND).mean(1)) for context_BND in contexts])
        view_VBD = full_precision(view_VBD)
        centred_VBD, _, n = centre(view_VBD, "C-JEPA")
        covariance_VDD = covariance(centred_VBD, n)
        terms = {
            "similarity": view_similarity(tuple(view_VBD)),
            "variance": variance_hinge(covariance_VDD.diagonal(dim1=-2, dim2=-1)).mean(),
            "covariance": covariance_energy(covariance_VDD).mean(),
        }
        weights = {name: self.config.weight * getattr(self.config, name) for name in terms}
        return Losses(taught.terms | terms, taught.weights | weights, taught.metrics)

    def after_step(self, progress: float) -> None:
        """Move the teacher."""
        self.ijepa.after_step(progress)

    def kept(self) -> TokenViT:
        """The teacher's encoder."""
        return self.ijepa.kept()
