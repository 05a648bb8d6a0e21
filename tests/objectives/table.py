"""Every row of the table of objectives as cases for contract tests: on which model, with which add-ons."""

import typing
from dataclasses import dataclass, replace
from functools import lru_cache

import pytest
import torch
from taught import clips, imagine, learner
from torch import Tensor, nn

from lewm.data.windows import Batch
from lewm.nets.blocks import BatchNorm
from lewm.nets.predictors import RotaryConfig, build_predictor
from lewm.objectives import AddOnsConfig, Losses, Objective, ObjectiveConfig, PredictionConfig, build_objective
from lewm.objectives.reconstruction import DecoderConfig
from lewm.objectives.sigreg import SigRegConfig
from lewm.objectives.simsiam import SimSiamConfig
from lewm.world_model import WorldModel

CONFIGS = {config.name: config() for config in typing.get_args(ObjectiveConfig)}
ADD_ONS = AddOnsConfig(
    straightening=0.1,
    inverse_dynamics=1.0,
    hidden=8,
    time_similarity=0.3,
    decoder=0.5,
    decoder_detached=False,
    decoder_shape=DecoderConfig((4, 4)),
)
"""All of them."""
TERMS = ("straightening", "inverse_dynamics", "time_similarity", "decoder")


class Patches(nn.Module):
    """A frame as four tokens, one per quarter: what the shipped encoders, with one token per frame, do not try."""

    tokens, latent_dim, level_dims = 4, 4, (4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.out = nn.Conv2d(3, 4, 16, stride=16, bias=False), BatchNorm(4), nn.Linear(4, 4)

    def levels(self, pixels_BCYX: Tensor) -> list[Tensor]:
        low_BKD = self.norm(self.embed(pixels_BCYX).flatten(2).mT)
        return [low_BKD, self.out(nn.functional.silu(low_BKD))]

    def forward(self, pixels_BCYX: Tensor) -> Tensor:
        return self.levels(pixels_BCYX)[-1]


def model_of(tokens: int = 1, dtype: torch.dtype = torch.float32, seed: int = 0) -> WorldModel:
    """A small model in training: conv and MLP, or four tokens per frame and a rotary transformer."""
    model = learner()
    torch.manual_seed(seed)
    if tokens > 1:
        model.encoder, model.tokens = Patches(), Patches.tokens
        config = RotaryConfig(width=8, layers=1, heads=1, mlp_ratio=1)
        model.predictor = build_predictor(config, model.latent_dim, model.action_dim, model.tokens)
        model.context = model.predictor.context
    with torch.no_grad():
        for parameter in model.parameters():  # also what starts at zero
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.to(dtype)


@dataclass(frozen=True)
class Case:
    """One objective as training would build it."""

    config: ObjectiveConfig
    tokens: int = 1
    extras: bool = False

    def __str__(self) -> str:
        shape = f"{self.tokens}-tokens" if self.tokens > 1 else ""
        return "-".join(part for part in (self.config.name, shape, "add-ons" if self.extras else "") if part)

    @property
    def add_ons(self) -> AddOnsConfig:
        """All add-ons, but for terms that the method has itself."""
        return extras_beside(self.config) if self.extras else AddOnsConfig()

    def build(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[WorldModel, Objective]:
        model, add_ons = model_of(self.tokens, dtype, seed), self.add_ons
        torch.manual_seed(seed)
        objective = build_objective(self.config, model, add_ons)
        return model, objective.double() if dtype == torch.float64 else objective


@lru_cache
def extras_beside(config: ObjectiveConfig) -> AddOnsConfig:
    own = score(*Case(config).build(), clips()).terms
    return replace(ADD_ONS, **{name: 0.0 for name in TERMS if name in own})


def score(model: WorldModel, objective: Objective, batch: Batch, seed: int = 0) -> Losses:
    """The forward pass of a training step."""
    return objective(*imagine(model, batch), batch, torch.Generator().manual_seed(seed))


def train(model: WorldModel, objective: Objective, batch: Batch, steps: int = 2, average=None) -> list[Losses]:
    """Steps of plain gradient descent; a parameter without gradient stays where it is."""
    both, scored = nn.ModuleList([model, objective]), []
    for step in range(steps):
        both.zero_grad()
        losses = score(model, objective, batch, step)
        losses.total.backward()
        if average is not None:
            average(both)
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        with torch.no_grad():
            for parameter in both.parameters():
                if parameter.requires_grad:
                    parameter -= 0.02 * parameter.grad
        objective.after_step(model, (step + 1) / (2 * steps))
        scored.append(losses)
    return scored


ROWS = [Case(config) for config in CONFIGS.values()]
CASES = [
    *ROWS,
    *(Case(config, extras=True) for config in CONFIGS.values()),
    *(Case(config, tokens=4) for config in CONFIGS.values()),
]
VARIANTS = [
    Case(SigRegConfig(preset="lewm_paper", slices=32, prediction=PredictionConfig("l1", stop_gradient=True))),
    Case(SigRegConfig(pool_time=True, reference_batch=64, prediction=PredictionConfig("cosine", weight=2.0)), 4),
    Case(SigRegConfig(unbiased=True)),
    Case(SimSiamConfig(projector=8, predictor=4), extras=True),
]
"""Settings beside the defaults whose arithmetic over processes is another; most rows test theirs in their own file."""
every_row = pytest.mark.parametrize("case", ROWS, ids=str)
every_case = pytest.mark.parametrize("case", CASES, ids=str)
