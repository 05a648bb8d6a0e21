"""The latent variable of a predictor for stochastic worlds: what the next frame holds beyond latent and action.

Discrete (one of C codes, the best one counts) or Gaussian (inferred, at a price on information), after LeCun, "A Path
Towards Autonomous Machine Intelligence" (2022), sections 4.2 and 4.5. The predictor reads it as further entries of the
action block, so any predictor takes one. Suffixes: V entries of a variable, C codes, M samples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Predict = Callable[[Tensor], Tensor]
"""value_MBV -> predicted_MBKD: the next frame under M values of the variable."""


@dataclass(frozen=True)
class DiscreteConfig:
    """One of a few codes per block. Training takes the code that predicts best; a prior learns when which one wins."""

    kind: Literal["discrete"] = "discrete"
    codes: int = 2
    """Codes (C): the most futures of one block that can be told apart."""
    information: float = 0.01
    """Mean squared prediction error that a nat is worth: a code may win against one that the prior expects more only
    if it predicts better by this much per nat. Where the world is deterministic one code then stays in use. 0: the
    plain minimum."""
    explore: float = 0.05
    """Share of the transitions that train a code drawn at random, so that one which never wins can still learn."""
    width: int = 64
    """Hidden units of the prior."""

    def __post_init__(self) -> None:
        if self.codes < 2:
            raise ValueError(f"variable.codes is {self.codes}; it must be at least 2, or leave the variable out")
        if not 0 <= self.explore < 1:
            raise ValueError(f"variable.explore is {self.explore}; it must lie in [0, 1)")
        _check(self.information, self.width)


@dataclass(frozen=True)
class GaussianConfig:
    """A few numbers per block with a standard normal prior, inferred from the frame that came, at a price per nat."""

    kind: Literal["gaussian"] = "gaussian"
    dims: int = 2
    """Numbers per block."""
    information: float = 0.01
    """Weight of the divergence between what is inferred and the prior, in mean squared prediction error per nat."""
    width: int = 64
    """Hidden units of the inference net."""

    def __post_init__(self) -> None:
        if self.dims < 1:
            raise ValueError(f"variable.dims is {self.dims}; it must be at least 1, or leave the variable out")
        _check(self.information, self.width)


def _check(information: float, width: int) -> None:
    if not (math.isfinite(information) and information >= 0):
        raise ValueError(f"variable.information is {information}; it must be 0 or more, and finite")
    if width < 1:
        raise ValueError(f"variable.width is {width}; it must be at least 1")


VariableConfig = DiscreteConfig | GaussianConfig


@dataclass(frozen=True)
class Inferred:
    """What the frame that came says about the variable of one block."""

    value_BV: Tensor
    """The variable that explains it."""
    predicted_BKD: Tensor
    """The prediction under it; a rollout goes on from here."""
    scored_BKD: Tensor
    """The prediction to train on; another one only where a discrete variable explores."""
    nats_B: Tensor
    """Information of the variable beyond latent and action. Discrete: surprise of the prior about the code, on average
    an upper bound of the code's entropy given both. Gaussian: divergence from the prior."""
    loss_B: Tensor
    """What training adds to the prediction error. Discrete: the same surprise; it trains the prior and nothing else.
    Gaussian: `information` x the divergence."""


@dataclass(frozen=True)
class Followed:
    """A recorded clip predicted with the variables that explain it; entry t predicts frame t + 1."""

    predicted_BTKD: Tensor
    """Predictions under the inferred variables."""
    scored_BTKD: Tensor
    """Predictions to train on, see `Inferred`."""
    value_BTV: Tensor
    """The variables."""
    nats_BT: Tensor
    """Their information."""
    loss_BT: Tensor
    """Their part of the loss."""

    def parts(self) -> tuple[Tensor, ...]:
        """All of them, in order; each has one entry per block in its second axis."""
        return self.predicted_BTKD, self.scored_BTKD, self.value_BTV, self.nats_BT, self.loss_BT


class Variable(Protocol):
    """What every kind of variable can do. Actions are scaled; leading axes are free where none are named."""

    entries: int
    """V, by which the predictor's action block grows."""
    noise_dim: int
    """Noise numbers per block."""

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Noise (..., noise_dim) for `draw` and `infer`, drawn on the generator's device."""

    def from_uniform(self, uniform: Tensor) -> Tensor:
        """The noise at these quantiles, in [0, 1)."""

    def draw(self, latent_KD: Tensor, action_A: Tensor, noise: Tensor | None = None, likely: float = 0.0) -> Tensor:
        """A variable (..., V) from the prior of a block; its likeliest value without noise.

        likely: codes of this probability or less are left out, unless all are; a Gaussian ignores it.
        """

    def infer(
        self, predict: Predict, latent_BKD: Tensor, action_BA: Tensor, next_BKD: Tensor, noise_BV: Tensor | None
    ) -> Inferred:
        """The variable of one block from the frame after it: a sample with noise (training), without the best guess."""

    def metrics(self, followed: Followed) -> dict[str, Tensor]:
        """Scalars for the log."""


class DiscreteVariable(nn.Module):
    """One-hot codes and their prior p(code | latent, action)."""

    noise_dim = 1

    def __init__(self, config: DiscreteConfig, latent_dim: int, action_dim: int, tokens: int) -> None:
        super().__init__()
        self.config, self.entries = config, config.codes
        self.prior = _net(latent_dim * tokens + action_dim, config.width, config.codes)

    def log_prior(self, latent_KD: Tensor, action_A: Tensor) -> Tensor:
        """log p(code | latent, action), (..., C). The latent gets no gradient: the prior only reads it."""
        logits_C: Tensor = self.prior(torch.cat([latent_KD.detach().flatten(-2), action_A], -1))
        return F.log_softmax(logits_C.to(latent_KD.dtype), -1)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Uniform in [0, 1)."""
        return torch.rand((*shape, 1), generator=generator, device=generator.device)

    def from_uniform(self, uniform: Tensor) -> Tensor:
        """The same numbers."""
        return uniform

    def draw(self, latent_KD: Tensor, action_A: Tensor, noise: Tensor | None = None, likely: float = 0.0) -> Tensor:
        """A one-hot code, see `Variable.draw`."""
        prior_C = self.log_prior(latent_KD, action_A).exp()
        if noise is None:
            return self._one_hot(prior_C.argmax(-1), prior_C)
        kept_C = (prior_C > likely) | (prior_C == prior_C.amax(-1, keepdim=True))
        mass_C = (prior_C * kept_C).cumsum(-1)
        # Below the whole mass, not at it: the last code would otherwise be drawn although it is left out.
        below = noise * mass_C[..., -1:]
        return self._one_hot((below >= mass_C).sum(-1).clamp(max=self.entries - 1), prior_C)

    def infer(
        self, predict: Predict, latent_BKD: Tensor, action_BA: Tensor, next_BKD: Tensor, noise_BV: Tensor | None
    ) -> Inferred:
        """The code of least prediction error + `information` x surprise; all codes predict, the winner alone learns."""
        codes = torch.eye(self.entries, device=latent_BKD.device, dtype=latent_BKD.dtype)
        predicted_CBKD = predict(codes[:, None].expand(-1, len(latent_BKD), -1))
        log_prior_BC = self.log_prior(latent_BKD, action_BA)
        with torch.no_grad():
            error_BC = (predicted_CBKD - next_BKD).square().mean((-2, -1)).T
            winner_B = (error_BC - self.config.information * log_prior_BC).argmin(-1)
        row_B = torch.arange(len(winner_B), device=winner_B.device)
        predicted_BKD = scored_BKD = predicted_CBKD[winner_B, row_B]
        if noise_BV is not None and self.config.explore > 0:
            share_B = noise_BV[:, 0] / self.config.explore
            tried_B = (share_B * self.entries).long().clamp(max=self.entries - 1)
            scored_BKD = predicted_CBKD[torch.where(share_B < 1, tried_B, winner_B), row_B]
        nats_B = -log_prior_BC[row_B, winner_B]
        return Inferred(self._one_hot(winner_B, codes), predicted_BKD, scored_BKD, nats_B, nats_B)

    def metrics(self, followed: Followed) -> dict[str, Tensor]:
        """`codes_in_use`: exp(entropy) of the winners, in [1, C]."""
        share_C = followed.value_BTV.flatten(0, 1).mean(0)
        return {"codes_in_use": torch.special.entr(share_C).sum().exp()}

    def _one_hot(self, code: Tensor, like: Tensor) -> Tensor:
        return F.one_hot(code, self.entries).to(like.dtype)


class GaussianVariable(nn.Module):
    """Numbers with the prior N(0, 1), inferred by q(z | latent, action, next latent) (Kingma and Welling 2014)."""

    def __init__(self, config: GaussianConfig, latent_dim: int, action_dim: int, tokens: int) -> None:
        super().__init__()
        self.config = config
        self.entries = self.noise_dim = config.dims
        self.posterior = _net(2 * latent_dim * tokens + action_dim, config.width, 2 * config.dims)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard normal."""
        return torch.randn((*shape, self.noise_dim), generator=generator, device=generator.device)

    def from_uniform(self, uniform: Tensor) -> Tensor:
        """Quantiles of the standard normal."""
        return torch.special.ndtri(uniform.clamp(min=1e-6, max=1 - 1e-6))

    def draw(self, latent_KD: Tensor, action_A: Tensor, noise: Tensor | None = None, likely: float = 0.0) -> Tensor:
        """The noise itself; zeros, the prior's mean, without. See `Variable.draw`."""
        return action_A.new_zeros(*action_A.shape[:-1], self.entries) if noise is None else noise.to(action_A.dtype)

    def infer(
        self, predict: Predict, latent_BKD: Tensor, action_BA: Tensor, next_BKD: Tensor, noise_BV: Tensor | None
    ) -> Inferred:
        """mean + std x noise of the inference net; the frame that came gets no gradient through it."""
        seen = torch.cat([latent_BKD.flatten(1), action_BA, next_BKD.detach().flatten(1)], -1)
        mean_BV, raw_BV = self.posterior(seen).to(latent_BKD.dtype).chunk(2, -1)
        # Starts near the prior's std of 1, and cannot reach 0, where the divergence is infinite.
        std_BV = F.softplus(raw_BV + math.log(math.e - 1)) + 1e-4
        value_BV = mean_BV if noise_BV is None else mean_BV + std_BV * noise_BV
        predicted_BKD = predict(value_BV[None])[0]
        nats_B = (0.5 * (mean_BV.square() + std_BV.square() - 1) - std_BV.log()).sum(-1)
        return Inferred(value_BV, predicted_BKD, predicted_BKD, nats_B, self.config.information * nats_B)

    def metrics(self, followed: Followed) -> dict[str, Tensor]:
        """`spread`: standard deviation of the inferred numbers over the clips, about 1 where they follow the prior."""
        return {"spread": followed.value_BTV.flatten(0, 1).std(0, correction=0).mean()}


def _net(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, outputs))


VARIABLES: dict[str, tuple[type, Callable[..., "DiscreteVariable | GaussianVariable"]]] = {
    "discrete": (DiscreteConfig, DiscreteVariable),
    "gaussian": (GaussianConfig, GaussianVariable),
}
"""Kind to configuration and variable."""


def build_variable(
    config: VariableConfig, latent_dim: int, action_dim: int, tokens: int
) -> "DiscreteVariable | GaussianVariable":
    """A fresh variable for K = `tokens` latents of width D = latent_dim and blocks of width A = action_dim.

    Weights come from torch's generator: seed it first.
    """
    return VARIABLES[config.kind][1](config, latent_dim, action_dim, tokens)
