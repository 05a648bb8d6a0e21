"""Predictors: latent tokens and an action block to the next latent tokens, one row each in `PREDICTORS`."""

from torch import nn

from lewm.nets.predictors.ac import ACConfig, ACPredictor
from lewm.nets.predictors.adaln import AdaLNConfig, AdaLNPredictor
from lewm.nets.predictors.dino_wm import DinoWMConfig, DinoWMPredictor
from lewm.nets.predictors.mlp import MLPConfig, MLPPredictor
from lewm.nets.predictors.rotary import RotaryConfig, RotaryPredictor

PredictorConfig = MLPConfig | AdaLNConfig | RotaryConfig | ACConfig | DinoWMConfig
Predictor = MLPPredictor | AdaLNPredictor | RotaryPredictor | ACPredictor | DinoWMPredictor

PREDICTORS: dict[str, tuple[type, type[nn.Module]]] = {
    "mlp": (MLPConfig, MLPPredictor),
    "adaln": (AdaLNConfig, AdaLNPredictor),
    "rotary": (RotaryConfig, RotaryPredictor),
    "ac": (ACConfig, ACPredictor),
    "dino_wm": (DinoWMConfig, DinoWMPredictor),
}


def build_predictor(
    config: PredictorConfig, latent_dim: int, action_dim: int, tokens: int, measured: int = 0
) -> Predictor:
    """A fresh predictor for K = `tokens` latents of width D = latent_dim and action blocks of width A = action_dim.

    It maps latent_BTKD and scaled action_BTA to predicted_BTKD: entry t predicts frame t + 1 from frames and actions up
    to t. Its attribute `context` is the most frames it may see. Weights come from torch's generator: seed it first.
    measured: how many of the last latent entries are measurements; only `ac` treats them apart.
    """
    if isinstance(config, ACConfig):
        return ACPredictor(config, latent_dim, action_dim, tokens, measured)
    predictor: Predictor = PREDICTORS[config.name][1](config, latent_dim, action_dim, tokens)  # type: ignore[assignment]
    return predictor
