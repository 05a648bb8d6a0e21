"""Add-ons: terms that shape a latent space without keeping it from collapsing, usable with any objective.

Straight paths, an action that can be read off two frames, slow change, a close look at what stands out, and a pixel
decoder that only watches.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewm.distributed import sum_over_ranks
from lewm.objectives.base import ModelView, Objective
from lewm.objectives.fovea import Fovea, FoveaConfig
from lewm.objectives.losses import Losses, full_precision
from lewm.objectives.reconstruction import Decoder, DecoderConfig, pixel_loss

if TYPE_CHECKING:
    from lewm.data.windows import Batch

STANDSTILL = 1e-6
"""Velocities no longer than this have no direction."""
TERMS = ("straightening", "inverse_dynamics", "time_similarity", "fovea", "decoder")
"""What can be added; each is a weight of `AddOnsConfig` and a term of the losses."""


@dataclass(frozen=True)
class AddOnsConfig:
    """What is added to the terms of an objective; a weight of 0 leaves a term, and what it would learn, out."""

    straightening: float = 0.0
    """Weight of temporal straightening (published: 0.1); needs clips of three or more frames."""
    pool_tokens: bool = False
    """Whether straightening looks at the mean token of a frame instead of every token on its own."""
    inverse_dynamics: float = 0.0
    """Weight of the error in reading the action off the frames before and after it (PLDM: 1 to 5)."""
    hidden: int = 512
    """Hidden width of the network that reads actions."""
    time_similarity: float = 0.0
    """Weight of the squared distance between consecutive frames (PLDM: 0.1 to 0.7)."""
    fovea: float = 0.0
    """Weight of a close look at the thing that stands out (0.3 to 3): how it lies, which positions crowd out."""
    fovea_shape: FoveaConfig = field(default_factory=FoveaConfig)
    """What is looked at, and what draws it."""
    decoder: float = 0.0
    """Weight of a pixel decoder's error on the encoded frames."""
    decoder_detached: bool = True
    """Whether the decoder only shows what a latent holds. Its gradient still counts in the norm that is clipped."""
    decoder_shape: DecoderConfig = field(default_factory=DecoderConfig)
    """Architecture of the decoder."""

    def __post_init__(self) -> None:
        for name in TERMS:
            if not getattr(self, name) >= 0:
                raise ValueError(f"add-on {name} has weight {getattr(self, name)}; it must be 0 (off) or more")
        if self.hidden < 1:
            raise ValueError(f"hidden is {self.hidden}; it must be 1 or more")

    @property
    def on(self) -> bool:
        """Whether anything is added."""
        return any(getattr(self, name) for name in TERMS)


def time_similarity(latent_BTKD: Tensor) -> Tensor:
    """Mean squared difference of consecutive frames, a scalar in at least float32 (PLDM, temporal similarity).

    Raises ValueError for clips of one frame.
    """
    _check_frames("time similarity", latent_BTKD, 2)
    latent = full_precision(latent_BTKD)
    return F.mse_loss(latent[:, 1:], latent[:, :-1])


def straightening(latent_BTKD: Tensor, pool_tokens: bool = False) -> Tensor:
    """Mean of 1 - cosine between consecutive velocities of a token, in [0, 2] (Temporal Straightening, 2603.12231).

    0 for a straight path, 1 for a right-angled turn, 2 for a reversal. Pairs in which a velocity is 1e-6 or less do not
    count; without any other pair the value is 0. Exact over ranks. A scalar in at least float32.
    pool_tokens: the path of each frame's mean token. Raises ValueError for clips of fewer than three frames.
    """
    _check_frames("straightening", latent_BTKD, 3)
    latent = full_precision(latent_BTKD)
    velocity = (latent.mean(2, keepdim=True) if pool_tokens else latent).diff(dim=1)
    moving = velocity.detach().norm(dim=-1) > STANDSTILL
    counted = moving[:, :-1] & moving[:, 1:]
    cosine = F.cosine_similarity(velocity[:, :-1], velocity[:, 1:], dim=-1, eps=STANDSTILL)
    turn = torch.where(counted, 1 - cosine, 0).sum()
    total, count = sum_over_ranks(torch.stack([turn, counted.sum().to(turn)])).unbind()
    return total / count.detach().clamp(min=1)


class InverseDynamics(nn.Module):
    """Two consecutive frames to the (scaled) action block between them: Linear, ReLU, Linear.

    Tokens are read in pairs (the same token before and after) and averaged before the last layer, so its size does not
    depend on their number; with one token per frame it is the MLP on cat(z_t, z_{t+1}) of PLDM.
    """

    def __init__(self, model: ModelView, hidden: int = 512) -> None:
        super().__init__()
        self.up = nn.Linear(2 * model.latent_dim, hidden)
        self.down = nn.Linear(hidden, model.action_dim)
        self.scale_action = model.scale_action

    def forward(self, latent_BTKD: Tensor) -> Tensor:
        """Scaled action_BTA of the T - 1 blocks between T frames."""
        latent = latent_BTKD.to(self.up.weight.dtype)
        pair = torch.cat([latent[:, :-1], latent[:, 1:]], -1)
        action_BTA: Tensor = self.down(F.relu(self.up(pair)).mean(2))
        return action_BTA

    def loss(self, latent_BTKD: Tensor, batch: "Batch | None") -> Tensor:
        """Mean squared error of the scaled actions, in at least float32, with gradients into the latents.

        About 1 for a latent that says nothing about the action. Raises ValueError without actions to read, or if they
        are not one block per pair of frames.
        """
        _check_frames("inverse dynamics", latent_BTKD, 2)
        if batch is None:
            raise ValueError("inverse dynamics reads actions, but no batch was given; pass the clips, or weigh it 0")
        guess = full_precision(self(latent_BTKD))
        action = self.scale_action(batch.action_BTA).to(guess.dtype)
        if action.shape != guess.shape:
            raise ValueError(
                f"inverse dynamics: actions have shape {tuple(action.shape)}, but the clips need {tuple(guess.shape)}; "
                "give one action block per pair of consecutive frames"
            )
        return F.mse_loss(guess, action)


class AddOns(Objective):
    """Another objective with terms added to its own; see `add_ons`."""

    def __init__(self, inner: Objective, config: AddOnsConfig, model: ModelView) -> None:
        super().__init__()
        self.inner, self.config = inner, config
        self.action_head = InverseDynamics(model, config.hidden) if config.inverse_dynamics else None
        self.fovea = Fovea(config.fovea_shape, model) if config.fovea else None
        self.decoder = Decoder(config.decoder_shape, model) if config.decoder else None

    def forward(
        self,
        latent_BTKD: Tensor,
        predicted: tuple[Tensor, ...],
        batch: "Batch | None",
        generator: torch.Generator,
    ) -> Losses:
        """The inner objective's losses and one term per add-on. Raises ValueError if it has a term of that name."""
        losses: Losses = self.inner(latent_BTKD, predicted, batch, generator)
        added = self._terms(latent_BTKD, batch)
        if twice := sorted(added.keys() & losses.terms.keys()):
            raise ValueError(
                f"add-on {twice[0]}: the objective has this term already; weigh it there and set the add-on to 0"
            )
        weights = {name: getattr(self.config, name) for name in added}
        return Losses(losses.terms | added, losses.weights | weights, losses.metrics)

    def after_step(self, model: ModelView, progress: float) -> None:
        """Whatever the inner objective does."""
        self.inner.after_step(model, progress)

    def _terms(self, latent_BTKD: Tensor, batch: "Batch | None") -> dict[str, Tensor]:
        terms = {}
        if self.config.straightening:
            terms["straightening"] = straightening(latent_BTKD, self.config.pool_tokens)
        if self.action_head is not None:
            terms["inverse_dynamics"] = self.action_head.loss(latent_BTKD, batch)
        if self.config.time_similarity:
            terms["time_similarity"] = time_similarity(latent_BTKD)
        if self.fovea is not None:
            terms["fovea"] = self.fovea.loss(latent_BTKD, batch)
        if self.decoder is not None:
            seen = latent_BTKD.detach() if self.config.decoder_detached else latent_BTKD
            terms["decoder"] = pixel_loss(self.decoder(seen), self.decoder.target(batch))
        return terms


def add_ons(inner: Objective, config: AddOnsConfig, model: ModelView) -> Objective:
    """`inner` with the configured terms added; `inner` itself if all of them are off.

    Weights of what they learn come from torch's generator: seed it first.
    """
    return AddOns(inner, config, model) if config.on else inner


def _check_frames(name: str, latent_BTKD: Tensor, least: int) -> None:
    if latent_BTKD.shape[1] < least:
        raise ValueError(
            f"{name} needs clips of {least} or more frames, not {latent_BTKD.shape[1]}; "
            "raise train.frames or weigh it 0"
        )
