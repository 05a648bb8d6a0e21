"""What a world model is trained for: predict the next latent and do not collapse. One method per file, one row each."""

from collections.abc import Callable

from lewm.objectives import sigreg
from lewm.objectives.losses import Losses
from lewm.objectives.prediction import PredictionConfig, prediction_loss
from lewm.objectives.sigreg import SigRegConfig

ObjectiveConfig = SigRegConfig
"""What a configuration file may say, told apart by `name`."""

OBJECTIVES: dict[str, Callable[..., Losses]] = {"sigreg": sigreg.objective}
"""Name to `objective(latent_BTKD, predicted, batch, generator, config) -> Losses`. A new one is a file, a row here
and a member of `ObjectiveConfig`; the contract tests cover it from here."""

__all__ = ["OBJECTIVES", "Losses", "ObjectiveConfig", "PredictionConfig", "SigRegConfig", "prediction_loss"]
