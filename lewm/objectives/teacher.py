"""The teacher: a slowly moving average of the encoder, whose latents `ema`, `data2vec` and `cjepa` learn to predict."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewm.distributed import sum_over_ranks
from lewm.objectives.base import ModelView
from lewm.objectives.losses import full_precision
from lewm.objectives.prediction import PredictionConfig, prediction_loss
from lewm.objectives.statistics import centre, samples

if TYPE_CHECKING:
    from lewm.data.windows import Batch


@dataclass(frozen=True)
class TeacherConfig:
    """How the teacher follows the encoder, and when it counts as collapsed.

    Published: I-JEPA linear 0.996 to 1, V-JEPA linear 0.998 to 1, V-JEPA 2 constant 0.99925, BYOL cosine 0.996 to 1,
    data2vec constant 0.9998. The teacher averages over about 1 / (1 - momentum) steps; for a run of N steps, 0.5 to 2 %
    of N is a good choice, which for short runs is well below the published momenta.
    """

    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the momentum moves from `momentum` to `final_momentum` in the course of the training, if at all."""
    momentum: float = 0.996
    """Share of the teacher that stays at every step, at the start of the training: in [0, 1]."""
    final_momentum: float = 1.0
    """The same at the end of the training (schedules linear and cosine)."""
    on_collapse: Literal["log", "error"] = "log"
    """Whether target_std or prediction_std below its minimum ends the training, or is only there in the logs."""
    min_target_std: float = 0.1
    """Smallest healthy standard deviation of the targets over a batch; data2vec's, for normalised targets."""
    min_prediction_std: float = 0.01
    """Smallest healthy standard deviation of the predictions over a batch; data2vec's."""
    grace: float = 0.05
    """Share of the training before which nothing counts as collapsed: fresh networks may start with little spread."""

    def __post_init__(self) -> None:
        for name in ("momentum", "final_momentum", "grace"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"teacher.{name} is {getattr(self, name)}; it must lie in [0, 1]")
        for name in ("min_target_std", "min_prediction_std"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"teacher.{name} is {getattr(self, name)}; it must be 0 or more")


def momentum_at(config: TeacherConfig, progress: float) -> float:
    """Momentum of the update after which the share `progress` in (0, 1] of the training is done.

    linear: m0 + (m1 - m0) progress (I-JEPA, V-JEPA); cosine: m1 - (m1 - m0) (cos(pi progress) + 1) / 2 (BYOL,
    section 3.3). Their code counts from 0, so it is one step behind: the last update here is the one with m1.
    """
    if config.schedule == "constant":
        return config.momentum
    left = 1 - progress if config.schedule == "linear" else (math.cos(math.pi * progress) + 1) / 2
    return config.final_momentum - (config.final_momentum - config.momentum) * left


class Teacher(nn.Module):
    """A copy of the model's way from pixels to latents that is never trained and follows the model's parameters.

    Only parameters are averaged: buffers, such as the running statistics of a BatchNorm, are the teacher's own and move
    in its own forward passes (as in I-JEPA and V-JEPA). In training mode it normalises by the batch, like the model.
    Its state is saved with the objective's. It is the same on every rank because models, and the batch statistics
    summed over ranks, are.
    """

    def __init__(
        self, model: ModelView, config: TeacherConfig, view: Callable[[nn.Module], nn.Module] | None = None
    ) -> None:
        """view: what stands in for the copied encoder, with the same parameters in the same order."""
        super().__init__()
        self.config = config
        taught: Any = copy.deepcopy(model)
        for name in [name for name, _ in taught.named_children() if name != "encoder"]:
            delattr(taught, name)
        if view is not None:
            taught.encoder = view(taught.encoder)
        self.model: Any = taught.requires_grad_(False)
        self.spread: dict[str, Tensor] = {}

    @torch.no_grad()
    def forward(self, batch: "Batch | None") -> Tensor:
        """Latents of all frames of the clips: latent_BTKD, constants.

        The first frame is never a target, but with it a BatchNorm sees the frames that the model's own sees.
        Raises ValueError without the clips.
        """
        if batch is None:
            raise ValueError("the teacher encodes the clips itself: pass the batch with its pixels to the objective")
        latent_BTKD: Tensor = self.model.encode(batch.pixels_BTCYX, batch.proprio_BTP)
        return latent_BTKD

    @torch.no_grad()
    def watch(self, *scored: tuple[Tensor, tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """Metrics target_std and prediction_std: `spread_over_batch` of targets and predictions, averaged over them.

        scored: target_BTKD of all frames and its predictions, one pair per target.
        """
        targets = [spread_over_batch(target_BTKD[:, 1:]) for target_BTKD, _ in scored]
        guesses = [spread_over_batch(guess) for _, predicted in scored for guess in predicted]
        self.spread = {"target_std": torch.stack(targets).mean(), "prediction_std": torch.stack(guesses).mean()}
        return self.spread

    @torch.no_grad()
    def follow(self, encoder: nn.Module, progress: float) -> None:
        """Move towards the encoder's parameters: theta <- m theta + (1 - m) theta_encoder, m = `momentum_at(progress)`.

        Raises RuntimeError if what `watch` saw last is a collapse and `on_collapse` is error.
        """
        toward = 1 - momentum_at(self.config, progress)
        for mine, theirs in zip(self.model.parameters(), encoder.parameters(), strict=True):
            mine.lerp_(theirs.to(mine.dtype), toward)
        if self.config.on_collapse == "error" and progress > self.config.grace:
            self._check()

    def _check(self) -> None:
        for name, spread in self.spread.items():
            least = getattr(self.config, f"min_{name}")
            if spread.item() < least:  # NaN is the training log's to explain
                raise RuntimeError(
                    f"the latents have collapsed: {name} is {spread.item():.3g}, below {least} (teacher.min_{name}); "
                    "lower the learning rate, add a variance term (objective cjepa), or lower the minimum if the "
                    "latents are meant to be that small"
                )


def spread_over_batch(latent_BTKD: Tensor) -> Tensor:
    """Standard deviation of every entry over clips and tokens of all ranks, averaged over entries and time: a scalar.

    Unbiased variances, in at least float32. Zero means collapse. Raises ValueError for fewer than two samples.
    """
    centred_TND, _, n = centre(samples(latent_BTKD), "the spread of a teacher's targets")
    return (sum_over_ranks(centred_TND.square().sum(1)) / (n - 1)).sqrt().mean()


def normalised(latent: Tensor) -> Tensor:
    """Layer norm over the width without affine parameters, in at least float32: every token has mean 0, variance 1."""
    return F.layer_norm(full_precision(latent), latent.shape[-1:])


def regression_loss(
    target_BTKD: Tensor, predicted: tuple[Tensor, ...], config: PredictionConfig, beta: float
) -> Tensor:
    """`prediction_loss` of the teacher's latents, where distance l1 becomes smooth L1 for beta > 0.

    Smooth L1 of an error x is x^2 / (2 beta) below beta and |x| - beta / 2 above: beta 0 is L1, a large beta the
    squared error / (2 beta).
    """
    target = full_precision(target_BTKD[:, 1:])
    fits = predicted and target.numel() and all(guess.shape == target.shape for guess in predicted)
    if config.distance != "l1" or beta == 0 or not fits:  # prediction_loss names what does not fit
        return prediction_loss(target_BTKD, predicted, config)
    losses = [F.smooth_l1_loss(full_precision(guess), target, beta=beta) for guess in predicted]
    return torch.stack(losses).mean()
