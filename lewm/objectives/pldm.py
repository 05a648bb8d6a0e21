"""PLDM: prediction, spread and decorrelation over the batch, over time too, slow change, and inverse dynamics.

The seven terms of PLDM (Sobal et al. 2025, "Learning from Reward-Free Offline Data"), as in its published code.
"""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lewm.objectives.addons import InverseDynamics, time_similarity
from lewm.objectives.base import ModelView, Objective
from lewm.objectives.losses import Losses, full_precision
from lewm.objectives.prediction import PredictionConfig, prediction_loss
from lewm.objectives.statistics import centre, covariance, samples
from lewm.objectives.vicreg import covariance_energy, variance_hinge

if TYPE_CHECKING:
    from lewm.data.windows import Batch


@dataclass(frozen=True)
class Coefficients:
    """Weights of the six terms beside the prediction (whose published weight is 1); 0 leaves a term out."""

    variance: float
    """Hinge on the standard deviation over the batch (alpha)."""
    covariance: float
    """Squared covariances over the batch (beta)."""
    time_similarity: float
    """Squared distance of consecutive frames (gamma)."""
    time_variance: float
    """Hinge on the standard deviation over a clip (zeta)."""
    time_covariance: float
    """Squared covariances over a clip (nu)."""
    inverse_dynamics: float
    """Error in reading the action off two frames (mu)."""


PRESETS: dict[str, Coefficients] = {
    "wall": Coefficients(3.9843, 6.9238, 0.74242, 0.24535, 0.0, 1.072),
    "diverse_maze": Coefficients(35.026, 11.925, 0.10193, 2.9199, 0.0, 5.3964),
    "swm": Coefficients(18.0, 12.0, 0.2, 0.7, 0.0, 0.0),
}
"""Published sets: PLDM's own for its two tasks, and those of the baseline in stable-worldmodel and LeWM. The prediction
of the body's own state that PLDM adds for `diverse_maze` is not part of them."""


@dataclass(frozen=True)
class PLDMConfig:
    """The seven terms of PLDM. A coefficient that is left out is the preset's; 0 leaves its term out."""

    name: Literal["pldm"] = "pldm"
    """Selects this objective."""
    prediction: PredictionConfig = field(default_factory=PredictionConfig)
    """The prediction term."""
    preset: Literal["wall", "diverse_maze", "swm"] = "wall"
    """Published set of coefficients; they belong to their tasks."""
    variance: float | None = None
    """Weight of the hinge on every dimension's standard deviation over the batch."""
    covariance: float | None = None
    """Weight of the squared covariances between dimensions over the batch."""
    time_similarity: float | None = None
    """Weight of the squared distance between consecutive frames."""
    time_variance: float | None = None
    """Weight of the hinge on every dimension's standard deviation over the frames of a clip."""
    time_covariance: float | None = None
    """Weight of the squared covariances between dimensions over the frames of a clip."""
    inverse_dynamics: float | None = None
    """Weight of the error in reading the action off the frames before and after it."""
    hidden: int = 512
    """Hidden width of the network that reads actions."""
    frames: Literal["each", "first"] = "each"
    """each: batch statistics of every time step, averaged, and time statistics of all frames (stable-worldmodel).
    first: batch statistics of the first frame only, time statistics of the frames after it (PLDM's code)."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}; it must be one of {', '.join(PRESETS)}")
        for name, value in asdict(self.coefficients).items():
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it must be 0 or more, or left out for the preset's")
        if self.hidden < 1:
            raise ValueError(f"hidden is {self.hidden}; it must be 1 or more")

    @property
    def coefficients(self) -> Coefficients:
        """The preset with the coefficients that are given in its place."""
        published = asdict(PRESETS[self.preset])
        given = {name: getattr(self, name) for name in published}
        return Coefficients(**{name: published[name] if value is None else value for name, value in given.items()})


class PLDM(Objective):
    """The seven terms; it learns the network that reads actions."""

    def __init__(self, config: PLDMConfig, model: ModelView) -> None:
        super().__init__()
        self.config = config
        self.action_head = InverseDynamics(model, config.hidden) if config.coefficients.inverse_dynamics else None

    def forward(
        self,
        latent_BTKD: Tensor,
        predicted: tuple[Tensor, ...],
        batch: "Batch | None",
        generator: torch.Generator,
    ) -> Losses:
        """Prediction and every term whose coefficient is not 0; predicted latents are not regularised.

        `batch` is read by inverse dynamics only, `generator` not at all. Raises ValueError for too few samples or
        frames for a statistic, and for missing actions.
        """
        wanted = {name: value for name, value in asdict(self.config.coefficients).items() if value}
        first = self.config.frames == "first"
        batch_TDD = _batch_covariance(latent_BTKD[:, :1] if first else latent_BTKD)
        variance_TD = batch_TDD.diagonal(dim1=-2, dim2=-1)
        over_time = latent_BTKD[:, 1:] if first else latent_BTKD
        terms = {"prediction": prediction_loss(latent_BTKD, predicted, self.config.prediction)}
        if "variance" in wanted:
            terms["variance"] = variance_hinge(variance_TD).mean()
        if "covariance" in wanted:
            terms["covariance"] = covariance_energy(batch_TDD, "pairs").mean()
        if "time_similarity" in wanted:
            terms["time_similarity"] = time_similarity(latent_BTKD)
        if "time_variance" in wanted:
            terms["time_variance"] = time_variance(over_time)
        if "time_covariance" in wanted:
            terms["time_covariance"] = time_covariance(over_time)
        if self.action_head is not None:
            terms["inverse_dynamics"] = self.action_head.loss(latent_BTKD, batch)
        std_D = variance_TD.detach().sqrt().mean(0)
        metrics = {"latent_std": std_D.mean(), "latent_std_min": std_D.min()}
        return Losses(terms, {"prediction": self.config.prediction.weight} | wanted, metrics)


def time_variance(latent_BTKD: Tensor) -> Tensor:
    """Hinge on the standard deviation of every latent dimension over the T frames of a clip (PLDM, L_time-var).

    Each token of each clip is a path of its own; the mean over clips, tokens and dimensions, a scalar in at least
    float32. 0.99 for clips that stand still. Raises ValueError for fewer than two frames.
    """
    return variance_hinge(_centre_in_time(latent_BTKD).square().sum(-2) / (latent_BTKD.shape[1] - 1)).mean()


def time_covariance(latent_BTKD: Tensor) -> Tensor:
    """Sum of the squared covariances of different dimensions over the T frames of a clip, divided by D (D - 1).

    The mean over clips and tokens, a scalar in at least float32 (PLDM, L_time-cov). From the T x T products of frames,
    which hold the same sum of squares as the D x D covariance. Raises ValueError for fewer than two frames.
    """
    path_BKTD = _centre_in_time(latent_BTKD)
    T, D = path_BKTD.shape[-2:]
    with torch.autocast(path_BKTD.device.type, enabled=False):
        everything_BK = (path_BKTD @ path_BKTD.mT).square().sum((-2, -1))
    diagonal_BK = path_BKTD.square().sum(-2).square().sum(-1)
    return (everything_BK - diagonal_BK).mean() / ((T - 1) ** 2 * D * max(1, D - 1))


def _batch_covariance(latent_BTKD: Tensor) -> Tensor:
    """covariance_TDD of the clips and tokens of all ranks at every time step."""
    centred_TND, _, n = centre(samples(latent_BTKD), "PLDM")
    return covariance(centred_TND, n)


def _centre_in_time(latent_BTKD: Tensor) -> Tensor:
    """path_BKTD: every token of every clip minus its own mean over time."""
    if latent_BTKD.shape[1] < 2:
        raise ValueError(
            f"PLDM's time statistics need 2 or more frames, not {latent_BTKD.shape[1]} (the first frame does not count "
            "with frames 'first'); raise train.frames or weigh time_variance and time_covariance 0"
        )
    path_BKTD = full_precision(latent_BTKD).transpose(1, 2)
    return path_BKTD - path_BKTD.mean(-2, keepdim=True)
