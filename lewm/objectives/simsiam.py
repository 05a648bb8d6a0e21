"""SimSiam: the prediction points where the encoded frame points, and only the prediction is moved (SimSiam, section 3).

The action-conditioned predictor of the world model plays the part of the method's prediction head. Nothing in the loss
forbids collapse: the stopped gradient only makes it unlikely, so watch the metric `unit_std`.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewm.distributed import sum_over_ranks, world_size
from lewm.nets.blocks import BatchNorm
from lewm.objectives.base import ModelView, Objective
from lewm.objectives.losses import Losses, full_precision
from lewm.objectives.prediction import PredictionConfig, prediction_loss

if TYPE_CHECKING:
    from lewm.data.windows import Batch

EPS = 1e-8
"""Least length a vector is divided by."""


@dataclass(frozen=True)
class SimSiamConfig:
    """Cosine to a constant target, with optional heads.

    The easiest method to collapse: it lives on a BatchNorm at the end of the encoder (`encoder.batch_norm`) or in the
    projector, and on a predictor that learns faster than the encoder.
    """

    name: Literal["simsiam"] = "simsiam"
    """Selects this objective."""
    prediction: PredictionConfig = field(default_factory=lambda: PredictionConfig(stop_gradient=True))
    """The prediction term. The cosine leaves the length of predictions open, and planning compares lengths: this term,
    with the target held constant, settles it. It rewards small latents if the encoder's end does not fix their scale.
    Weight 0 is the published loss."""
    weight: float = 1.0
    """Weight of the negative cosine."""
    projector: int | None = None
    """Width of the three-layer head through which prediction and target pass before they are compared (2048 in the
    paper); none if left out, and the latents themselves are compared."""
    predictor: int | None = None
    """Hidden width of a two-layer head on the prediction only (512 in the paper, a quarter of the projector); none if
    left out: the world model's predictor is one already."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight is {self.weight}; it must be 0 or more")
        for name in ("projector", "predictor"):
            width = getattr(self, name)
            if width is not None and width < 1:
                raise ValueError(f"{name} is {width}; it must be 1 or more, or left out")


class SimSiam(Objective):
    """The heads of SimSiam, if there are any, and its loss."""

    def __init__(self, config: SimSiamConfig, model: ModelView) -> None:
        super().__init__()
        self.config = config
        width = model.latent_dim if config.projector is None else config.projector
        self.projector = nn.Identity() if config.projector is None else projector(model.latent_dim, width)
        self.predictor = nn.Identity() if config.predictor is None else predictor(width, config.predictor)

    def forward(
        self,
        latent_BTKD: Tensor,
        predicted: tuple[Tensor, ...],
        batch: "Batch | None",
        generator: torch.Generator,
    ) -> Losses:
        """Prediction term and negative cosine, averaged over ways of predicting, batch, time and tokens.

        `batch` and `generator` are not read. The heads' BatchNorm takes all frames and tokens of all ranks as samples.
        Metrics: `unit_std` of the latents, beside its value on isotropic ones.
        """
        # First, because it checks the shapes.
        prediction = prediction_loss(latent_BTKD, predicted, self.config.prediction)
        with torch.no_grad():
            target = self.projector(full_precision(latent_BTKD[:, 1:]))
        guesses = [self.predictor(self.projector(full_precision(guess))) for guess in predicted]
        similarity = torch.stack([negative_cosine(guess, target) for guess in guesses]).mean()
        terms = {"prediction": prediction, "simsiam": similarity}
        spread = unit_std(latent_BTKD.detach())
        metrics = {"unit_std": spread, "unit_std_isotropic": spread.new_tensor(latent_BTKD.shape[-1] ** -0.5)}
        return Losses(terms, {"prediction": self.config.prediction.weight, "simsiam": self.config.weight}, metrics)


def negative_cosine(guess: Tensor, target: Tensor) -> Tensor:
    """Mean of -cos(guess, target) over all but the last axis, in [-1, 1]; the target is a constant (SimSiam, eq. 1).

    Collapsed latents score -1, the best value there is. BYOL's squared distance of unit vectors is 2 + 2 times this.
    """
    similarity = F.cosine_similarity(full_precision(guess), full_precision(target).detach(), dim=-1, eps=EPS)
    return -similarity.mean()


def unit_std(latent_BTKD: Tensor) -> Tensor:
    """Standard deviation of z / |z| per time step over the clips and tokens of all ranks, averaged over time and width.

    0 if all latents point the same way; about 1 / sqrt(D) if they point everywhere (SimSiam, section 4.1).
    """
    unit_BTKD = F.normalize(full_precision(latent_BTKD), dim=-1, eps=EPS)
    n = unit_BTKD.shape[0] * unit_BTKD.shape[2] * world_size()
    mean_TD = sum_over_ranks(unit_BTKD.sum((0, 2))) / n
    variance_TD = sum_over_ranks((unit_BTKD - mean_TD[:, None]).square().sum((0, 2))) / n
    return variance_TD.sqrt().mean()


def projector(width: int, out: int) -> nn.Sequential:
    """Three linear layers with BatchNorm after each, the last one without affine parameters; (..., width) to out."""
    last = BatchNorm(out).requires_grad_(False)
    return nn.Sequential(*_layer(width, out), *_layer(out, out), nn.Linear(out, out, bias=False), last)


def predictor(width: int, hidden: int) -> nn.Sequential:
    """Two linear layers, the first with BatchNorm; (..., width) to the same shape."""
    return nn.Sequential(*_layer(width, hidden), nn.Linear(hidden, width))


def _layer(width: int, out: int) -> list[nn.Module]:
    return [nn.Linear(width, out, bias=False), BatchNorm(out), nn.ReLU()]
