"""What a world model is trained for: predict the next latent and do not collapse. One method per file, one row each."""

from lewm.objectives import sigreg
from lewm.objectives.base import Builder, ModelView, Objective, pure
from lewm.objectives.losses import Losses
from lewm.objectives.prediction import PredictionConfig, prediction_loss
from lewm.objectives.sigreg import SigRegConfig

ObjectiveConfig = SigRegConfig
"""What a configuration file may say, told apart by `name`."""

OBJECTIVES: dict[str, Builder] = {"sigreg": pure(sigreg.objective)}
"""Name to builder. A new method is a file, a row here and a member of `ObjectiveConfig`; the contract tests cover it
from here."""


def build_objective(config: ObjectiveConfig, model: ModelView) -> Objective:
    """The objective a configuration describes, for one model. Weights come from torch's generator: seed it first."""
    return OBJECTIVES[config.name](config, model)


__all__ = [
    "OBJECTIVES",
    "Losses",
    "ModelView",
    "Objective",
    "ObjectiveConfig",
    "PredictionConfig",
    "SigRegConfig",
    "build_objective",
    "prediction_loss",
]
