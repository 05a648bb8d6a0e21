"""What a world model is trained for: predict the next latent and do not collapse. One method per file, one row each."""

from lewm.objectives import barlow, rdmreg, sigreg, vicreg
from lewm.objectives.addons import AddOnsConfig, add_ons
from lewm.objectives.barlow import BarlowConfig
from lewm.objectives.base import Builder, ModelView, Objective, pure
from lewm.objectives.cjepa import CJepa, CJepaConfig
from lewm.objectives.data2vec import Data2Vec, Data2VecConfig
from lewm.objectives.ema import Ema, EmaConfig
from lewm.objectives.infonce import InfoNCE, InfoNCEConfig
from lewm.objectives.losses import Losses
from lewm.objectives.pldm import PLDM, PLDMConfig
from lewm.objectives.prediction import PredictionConfig, prediction_loss
from lewm.objectives.rdmreg import RdmRegConfig
from lewm.objectives.reconstruction import Reconstruction, ReconstructionConfig
from lewm.objectives.sigreg import SigRegConfig
from lewm.objectives.simsiam import SimSiam, SimSiamConfig
from lewm.objectives.vicreg import VicRegConfig
from lewm.objectives.whitening import Whitening, WhiteningConfig

ObjectiveConfig = (
    SigRegConfig
    | VicRegConfig
    | BarlowConfig
    | WhiteningConfig
    | RdmRegConfig
    | EmaConfig
    | SimSiamConfig
    | InfoNCEConfig
    | Data2VecConfig
    | CJepaConfig
    | PLDMConfig
    | ReconstructionConfig
)
"""What a configuration file may say, told apart by `name`."""

OBJECTIVES: dict[str, Builder] = {
    "sigreg": sigreg.SigReg,
    "vicreg": pure(vicreg.objective),
    "barlow": pure(barlow.objective),
    "whitening": Whitening,
    "rdmreg": pure(rdmreg.objective),
    "ema": Ema,
    "simsiam": SimSiam,
    "infonce": InfoNCE,
    "data2vec": Data2Vec,
    "cjepa": CJepa,
    "pldm": PLDM,
    "reconstruction": Reconstruction,
}
"""Name to builder. A new method is a file, a row here and a member of `ObjectiveConfig`; the contract tests cover it
from here."""


def build_objective(config: ObjectiveConfig, model: ModelView, extras: AddOnsConfig | None = None) -> Objective:
    """The objective a configuration describes, with its add-ons, for one model.

    Weights come from torch's generator: seed it first.
    """
    objective = OBJECTIVES[config.name](config, model)
    return objective if extras is None else add_ons(objective, extras, model)


__all__ = [
    "OBJECTIVES",
    "AddOnsConfig",
    "Losses",
    "ModelView",
    "Objective",
    "ObjectiveConfig",
    "PredictionConfig",
    "SigRegConfig",
    "build_objective",
    "prediction_loss",
]
