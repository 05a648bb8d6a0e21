"""The prediction term, shared by every objective: how far the predicted latents are from the encoded ones."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lewm.objectives.losses import full_precision


@dataclass(frozen=True)
class PredictionConfig:
    """How predicted latents are compared with encoded ones."""

    distance: Literal["l2", "l1", "cosine"] = "l2"
    """l2: squared difference, l1: absolute difference, both averaged over the latent width too; cosine: 1 - cosine."""
    stop_gradient: bool = False
    """Whether the encoded frame that is predicted is a constant; otherwise the encoder learns to be predictable."""
    weight: float = 1.0
    """Weight of the prediction term."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"prediction weight is {self.weight}; it must be 0 or more")


def prediction_loss(latent_BTKD: Tensor, predicted: tuple[Tensor, ...], config: PredictionConfig) -> Tensor:
    """Mean distance between the encoded frames and their predictions, a scalar in at least float32.

    Every entry of `predicted` is one way of predicting (teacher forcing, rollout), of the shape of latent_BTKD[:, 1:]:
    its entry t predicts frame t + 1. The result is the mean over ways, batch, time, tokens and, for l2 and l1, width
    (the code of LeWM; its paper writes the squared norm, which is D times as much).
    Raises ValueError if nothing was predicted or a prediction has another shape.
    """
    target = full_precision(latent_BTKD[:, 1:])
    if config.stop_gradient:
        target = target.detach()
    if not predicted:
        raise ValueError("no prediction to score; give at least one of teacher forcing and rollout")
    for guess in predicted:
        if guess.shape != target.shape or target.shape[1] == 0:
            raise ValueError(
                f"prediction has shape {tuple(guess.shape)}, but the frames it predicts (all but the first of the "
                f"clip) have shape {tuple(target.shape)}; give one prediction per frame from the second on"
            )
    return torch.stack([_distance(full_precision(guess), target, config.distance) for guess in predicted]).mean()


def _distance(guess: Tensor, target: Tensor, distance: Literal["l2", "l1", "cosine"]) -> Tensor:
    if distance == "l2":
        return F.mse_loss(guess, target)
    if distance == "l1":
        return F.l1_loss(guess, target)
    return (1 - F.cosine_similarity(guess, target, dim=-1)).mean()
