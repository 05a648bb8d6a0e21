"""What an encoder's tokens hold, measured on held-out frames: linear probes of the state, spread, rank, and a picture.

A loss between a student and its own teacher says nothing about collapse, nor about what is left out: this does.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lewm.nets.pretrained import pool_tokens
from lewm.objectives.health import effective_rank
from lewm.probes import ProbeSample, state_targets

CHUNK = 256
"""Frames encoded at a time."""
RANK_SAMPLES = 2048
"""Most tokens that an effective rank is taken of."""


@dataclass(frozen=True)
class Frames:
    """Held-out or training frames with their states."""

    picture_NCYX: Tensor
    """Normalised pictures, as the encoder reads them."""
    state_NS: Tensor
    """Recorded states."""


@dataclass(frozen=True)
class TokenHealth:
    """State of an encoder."""

    scalars: dict[str, float]
    """By name: `probe_r2/pooled/x` and `probe_r2/grid/x` of every state factor x, `tokens/std`, `tokens/effective_rank`
    of patch tokens, `pooled/std`, `pooled/effective_rank` of their mean over a picture."""

    @property
    def mean_r2(self) -> float:
        """Of the grid probe, averaged over factors that vary; NaN for recordings without states."""
        found = [r2 for name, r2 in self.scalars.items() if name.startswith("probe_r2/grid/") and r2 == r2]
        return sum(found) / len(found) if found else float("nan")


@torch.no_grad()
def encode(encoder: torch.nn.Module, picture_NCYX: Tensor, normalise: bool) -> Tensor:
    """token_NSD of single pictures as a world model would get them, on the CPU."""
    parts = [encoder(part[:, None]).float() for part in picture_NCYX.split(CHUNK)]
    token_NSD = torch.cat(parts).cpu()
    return F.layer_norm(token_NSD, token_NSD.shape[-1:]) if normalise else token_NSD


def token_health(
    fit_NSD: Tensor,
    test_NSD: Tensor,
    fit: Frames,
    test: Frames,
    names: tuple[str, ...],
    angles: tuple[str, ...],
    side: int,
    grid: int,
) -> TokenHealth:
    """Measure tokens of frames that were not trained on (`test`); probes are fitted on those of `fit`.

    side: rows and columns of patches. grid: rows and columns of the grid probe, which must divide side.
    """
    fit_states, labels = state_targets(fit.state_NS, names, angles)
    test_states, _ = state_targets(test.state_NS, names, angles)
    scalars: dict[str, float] = {}
    for name, cells in (("pooled", 1), ("grid", grid)):
        features = [pool_tokens(token_NSD, side, cells).flatten(1) for token_NSD in (fit_NSD, test_NSD)]
        sample = ProbeSample(features[0], fit_states, features[1], test_states, tuple(labels))
        scalars |= {f"probe_r2/{name}/{label}": r2 for label, r2 in sample.linear_r2().items()}
    # Around each patch's own mean: tokens that only say where they are hold nothing about the picture.
    moving_ND = (test_NSD - test_NSD.mean(0)).transpose(0, 1).flatten(0, 1)
    for name, sample_ND in (("tokens", moving_ND), ("pooled", test_NSD.mean(1))):
        scalars[f"{name}/std"] = sample_ND.std(0).mean().item()
        step = -(-len(sample_ND) // RANK_SAMPLES)
        scalars[f"{name}/effective_rank"] = effective_rank(sample_ND[::step].double()).item()
    return TokenHealth(scalars)


def principal_colours(token_NSD: Tensor) -> Tensor:
    """The first three principal components of all tokens as colours in [0, 1]: colour_NSC.

    Each runs from its 1st to its 99th percentile; its sign is such that the largest loading is positive, so that two
    pictures of one encoder agree. Components that do not vary are grey.
    """
    flat_ND = token_NSD.flatten(0, 1).double()
    centred_ND = flat_ND - flat_ND.mean(0)
    values_D, vectors_DD = torch.linalg.eigh(centred_ND.T @ centred_ND / len(flat_ND))
    axes_DC = vectors_DD[:, -3:].flip(-1)
    largest_C = axes_DC.gather(0, axes_DC.abs().argmax(0, keepdim=True)).sign()
    score_NC = centred_ND @ (axes_DC * largest_C)
    low, high = torch.quantile(score_NC, torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
    varies_C = values_D[-3:].flip(-1) > 1e-12
    colour_NC = torch.where(varies_C, (score_NC - low) / (high - low).clamp(min=1e-12), 0.5)
    return colour_NC.clamp(0, 1).float().unflatten(0, token_NSD.shape[:2])


def feature_picture(pixels_NCYX: Tensor, token_NSD: Tensor, side: int) -> Tensor:
    """uint8 sheet_CYX: frames (uint8, first camera) in the upper row, their tokens' `principal_colours` below."""
    size = pixels_NCYX.shape[-1]
    colour_NCYX = principal_colours(token_NSD).mT.unflatten(-1, (side, side))
    shown = F.interpolate(colour_NCYX, size=(size, size), mode="nearest")
    upper = torch.cat(list(pixels_NCYX[:, :3].cpu()), -1)
    return torch.cat([upper, torch.cat(list((255 * shown).round().to(torch.uint8)), -1)], -2)


def write_png(sheet_CYX: Tensor, path: Path) -> None:
    """Write a uint8 RGB picture. Raises RuntimeError where OpenCV cannot encode it."""
    import cv2

    done, encoded = cv2.imencode(".png", cv2.cvtColor(sheet_CYX.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2BGR))
    if not done:
        raise RuntimeError(f"OpenCV could not encode a picture of shape {tuple(sheet_CYX.shape)}")
    path.write_bytes(encoded.tobytes())
