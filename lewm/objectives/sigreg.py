"""SIGReg: latents must look like a standard Gaussian in every direction, so they cannot collapse.

Random unit directions slice the latent space, and on each slice the Epps-Pulley statistic measures the distance to the
Gaussian (LeJEPA, section 4; LeWM applies it to every time step of a clip).
"""

import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lewm.distributed import rank, world_size
from lewm.objectives.base import ModelView, Objective
from lewm.objectives.epps_pulley import Quadrature, aliased_share, aliasing_period, epps_pulley
from lewm.objectives.losses import Losses
from lewm.objectives.prediction import PredictionConfig, prediction_loss
from lewm.objectives.statistics import samples

if TYPE_CHECKING:
    from lewm.data.windows import Batch


PRESETS: dict[str, Quadrature] = {
    "lejepa": Quadrature(0.0, 3.0, 17, doubled=True),
    "lejepa_paper": Quadrature(-5.0, 5.0, 17),
    "lewm_paper": Quadrature(0.2, 4.0, 17, scale_by_n=False),
    "bcs": Quadrature(-3.0, 3.0, 10, scale_by_n=False),
    "survey": Quadrature(0.0, 3.0, 17, rule="sum", window=math.inf, scale_by_n=False),
}
"""Published variants: the code of LeJEPA and LeWM; LeJEPA, algorithm 1; LeWM, appendix A; EB-JEPA; and the formula of
surveys, which leaves the frequencies open (here those of `lejepa`). They are not interchangeable: their values on
Gaussian samples are 1.052, 1.059, 0.525 / n, 1.050 / n and 11.77 / n, and the weight has to follow."""
LOOK_EVERY = 50
"""Steps between two looks at the share of aliased projections: reading it off a GPU makes the host wait."""


@dataclass(frozen=True)
class SigRegConfig:
    """Prediction plus SIGReg."""

    name: Literal["sigreg"] = "sigreg"
    """Selects this objective."""
    prediction: PredictionConfig = field(default_factory=PredictionConfig)
    """The prediction term."""
    weight: float = 0.1
    """Weight of SIGReg beside the prediction term."""
    preset: Literal["lejepa", "lejepa_paper", "lewm_paper", "bcs", "survey"] = "lejepa"
    """Published variant of the statistic; the weight has to follow, since their scales differ."""
    slices: int = 256
    """Random directions per step."""
    unbiased: bool = False
    """Whether to train on the unbiased statistic: 0 on average on Gaussian samples, negative on samples spread more
    evenly, and least at standard deviation 1, where the other is least near 1 - 1 / n for n samples."""
    pool_time: bool = False
    """Whether all frames of a clip are samples of one statistic, instead of one statistic per time step; for batches
    below about 32."""
    reference_batch: int | None = None
    """Clips per step that `weight` was tuned for. At another batch size the weight is rescaled so that the balance with
    the prediction term stays the same; nothing is rescaled if left out. Only for presets that scale with n."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight is {self.weight}; it must be 0 or more")
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}; it must be one of {', '.join(PRESETS)}")
        if self.slices < 1:
            raise ValueError(f"slices is {self.slices}; it must be 1 or more")
        if self.reference_batch is not None and self.reference_batch < 1:
            raise ValueError(f"reference_batch is {self.reference_batch}; it must be 1 or more, or left out")
        if self.reference_batch is not None and not PRESETS[self.preset].scale_by_n:
            raise ValueError(
                f"reference_batch is {self.reference_batch}, but preset {self.preset} does not grow with the batch; "
                "leave reference_batch out"
            )


class SigReg(Objective):
    """Prediction plus SIGReg, see `objective`; warns once if latents are too large for the knots of its preset."""

    def __init__(self, config: SigRegConfig, model: ModelView) -> None:
        super().__init__()
        self.config = config
        self.period = aliasing_period(PRESETS[config.preset])
        self.steps = 0
        self.aliased: Tensor | float = 0.0
        self.warned = False

    def forward(
        self,
        latent_BTKD: Tensor,
        predicted: tuple[Tensor, ...],
        batch: "Batch | None",
        generator: torch.Generator,
    ) -> Losses:
        """The losses of `objective`."""
        losses = objective(latent_BTKD, predicted, batch, generator, self.config)
        self.steps += 1
        self.aliased = self.aliased + losses.metrics["sigreg_aliased"]
        return losses

    def after_step(self, model: ModelView, progress: float) -> None:
        """Look at the aliased projections of the last `LOOK_EVERY` steps, until there was a reason to warn."""
        if self.warned or (self.steps < LOOK_EVERY and progress < 1):
            return
        share, self.steps, self.aliased = float(self.aliased) / self.steps, 0, 0.0
        # Heavy tails of Gaussian samples are no reason: with the widest knots 5e-7 of them are beyond half a period.
        self.warned = share > 100 * math.erfc(self.period / math.sqrt(8))
        if self.warned and rank() == 0:
            warnings.warn(self._alarm(share), stacklevel=2)

    def _alarm(self, share: float) -> str:
        closer = [name for name, preset in PRESETS.items() if aliasing_period(preset) > 1.01 * self.period]
        return (
            f"a share of {share:.2g} of SIGReg's projections is beyond {self.period / 2:.1f} on either side, where "
            f"preset {self.config.preset} takes them for smaller ones (its knots repeat every {self.period:.1f}): "
            "bring the latents to a standard deviation near 1 with a larger weight or a BatchNorm before the encoder's "
            f"last layer, or choose a preset with closer knots ({', '.join(closer) or 'none has'})"
        )


def objective(
    latent_BTKD: Tensor,
    predicted: tuple[Tensor, ...],
    batch: "Batch | None",
    generator: torch.Generator,
    config: SigRegConfig,
) -> Losses:
    """Prediction plus SIGReg of the encoded frames (LeWM, section 3): predicted latents are not regularised.

    `predicted` is aligned with latent_BTKD[:, 1:] (see `prediction_loss`); `batch` is not read; `generator` draws the
    slices and must be in the same state on every rank. Metrics: `sigreg_unbiased`, the unbiased statistic, beside its
    value on ideal data; `sigreg_aliased`, the share of projections beyond half of the `aliasing_period`, 0 if healthy.
    """
    projected_TNS = _projected(latent_BTKD, generator, config)
    quadrature = PRESETS[config.preset]
    biased, unbiased = (statistic_TS.mean() for statistic_TS in epps_pulley(projected_TNS, quadrature))
    terms = {
        "prediction": prediction_loss(latent_BTKD, predicted, config.prediction),
        "sigreg": unbiased if config.unbiased else biased,
    }
    metrics = {
        "sigreg_unbiased": unbiased.detach(),
        "sigreg_unbiased_ideal": torch.zeros_like(unbiased),
        "sigreg_aliased": aliased_share(projected_TNS, quadrature),
    }
    clips = latent_BTKD.shape[0] * world_size()
    # The prediction is a mean, so its gradient per sample falls as 1 / n; that of n x integral does not.
    rescaled = config.weight if config.reference_batch is None else config.weight * config.reference_batch / clips
    return Losses(terms, {"prediction": config.prediction.weight, "sigreg": rescaled}, metrics)


def sigreg(latent_BTKD: Tensor, generator: torch.Generator, config: SigRegConfig) -> Tensor:
    """Epps-Pulley statistic of the latents on random slices, a scalar in at least float32.

    One statistic per time step over all clips and tokens (over all frames too with `pool_time`), averaged over slices
    and time. Raises ValueError for fewer than two samples.
    """
    biased_TS, unbiased_TS = epps_pulley(_projected(latent_BTKD, generator, config), PRESETS[config.preset])
    return (unbiased_TS if config.unbiased else biased_TS).mean()


def _projected(latent_BTKD: Tensor, generator: torch.Generator, config: SigRegConfig) -> Tensor:
    """Samples of every statistic on freshly drawn slices, projected_TNS in at least float32."""
    latent_TND = samples(latent_BTKD, config.pool_time)
    slices_DS = random_slices(generator, latent_BTKD.shape[3], config.slices).to(latent_TND)
    # Autocast would round the projections to bf16, an error of 0.03 rad in their phases.
    with torch.autocast(latent_TND.device.type, enabled=False):
        return (slices_DS.T @ latent_TND.transpose(1, 2)).transpose(1, 2)


def random_slices(generator: torch.Generator, D: int, S: int) -> Tensor:
    """S random unit columns in D dimensions, float32, on the generator's device.

    Take a CPU generator and move the result: CPU and CUDA generators with the same seed give different directions.
    """
    slices_DS = torch.randn(D, S, generator=generator, device=generator.device)
    return slices_DS / slices_DS.norm(dim=0)
