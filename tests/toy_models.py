"""Small world models whose every weight matters, for tests that need no recordings."""

from pathlib import Path

import torch

from lewm.checkpoint import Checkpoint, Origin
from lewm.cost_to_go import CostToGo, CostToGoConfig
from lewm.nets.encoders import ConvConfig
from lewm.nets.predictors import MLPConfig, PredictorConfig
from lewm.readout import Readout, ReadoutConfig
from lewm.world_model import ModelConfig, ModelFacts, WorldModel

SIZE = 32
FACTS = ModelFacts(SIZE, (-1.0, -1.0), (1.0, 1.0), (0.1, -0.1), (0.5, 0.4), (0.8, 0.7, 0.6), (0.2, 0.25, 0.3))


def stir(module: torch.nn.Module, seed: int = 0) -> None:
    """Move every parameter: a freshly made AdaLN-zero block would ignore its action."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def toy_model(
    predictor: PredictorConfig | None = None, frame_skip: int = 2, frame_stack: int = 1, stack_stride: int = 1
) -> WorldModel:
    torch.manual_seed(0)
    encoder = ConvConfig(latent_dim=4, channels=(4, 4, 4))
    config = ModelConfig(encoder, predictor or MLPConfig(width=16), frame_skip, frame_stack, stack_stride)
    model = WorldModel(config, FACTS).eval().requires_grad_(False)
    stir(model)
    return model


def toy_head(model: WorldModel) -> CostToGo:
    torch.manual_seed(1)
    head = CostToGo(CostToGoConfig(width=8), model.latent_dim, model.tokens).eval().requires_grad_(False)
    stir(head, 1)
    return head


def toy_readout(model: WorldModel) -> Readout:
    readout = Readout(ReadoutConfig(("x", "y")), model.latent_dim * model.tokens, angles=0)
    readout.weight_DP.copy_(torch.randn(readout.weight_DP.shape, generator=torch.Generator().manual_seed(2)))
    return readout


def toy_origin() -> Origin:
    return Origin("two_room", {"size": SIZE}, "", ("x", "y"), (), 0.1, 0.25, 0)


def toy_checkpoint(model: WorldModel, head: bool = True) -> Checkpoint:
    return Checkpoint(model, toy_head(model) if head else None, toy_origin(), Path("toy"))
