"""Predictors: latent tokens and an action block to the next latent tokens, one row each in `PREDICTORS`."""

from torch import nn

from lewm.nets.predictors.adaln import AdaLNConfig, AdaLNPredictor
from lewm.nets.predictors.mlp import MLPConfig, MLPPredictor
from lewm.nets.predictors.rotary import RotaryConfig, RotaryPredictor

PredictorConfig = MLPConfig | AdaLNConfig | RotaryConfig
Predictor = MLPPredictor | AdaLNPredictor | RotaryPredictor

PREDICTORS: dict[str, tuple[type, type[nn.Module]]] = {
    "mlp": (MLPConfig, MLPPredictor),
    "adaln": (AdaLNConfig, AdaLNPredictor),
    "rotary": (RotaryConfig, RotaryPredictor),
}


def build_predictor(config: PredictorConfig, latent_dim: int, action_dim: int, tokens: int) -> Predictor:
    """A fresh predictor for K = `tokens` latents of width D = latent_dim and action blocks of width A = action_dim.

    It maps latent_BTKD and scaled action_BTA to predicted_BTKD: entry t predicts frame t + 1 from frames and actions up
    to t. Its attribute `context` is the most frames it may see. Weights come from torch's generator: seed it first.
    """
    predictor: Predictor = PREDICTORS[config.name][1](config, latent_dim, action_dim, tokens)  # type: ignore[assignment]
    return predictor
