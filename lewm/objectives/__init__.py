"""What a world model is trained for: predict the next latent and do not collapse. One method per file, one row each."""

from lewm.nets.frozen import frozen_in
from lewm.objectives import barlow, prediction_only, rdmreg, sigreg, vicreg
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
from lewm.objectives.prediction_only import PredictionOnlyConfig
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
"""The objectives of a trained encoder, told apart by `name`."""
RunObjective = ObjectiveConfig | PredictionOnlyConfig
"""What a configuration file may say."""

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

FROZEN_OBJECTIVES: dict[str, Builder] = {"prediction": pure(prediction_only.objective)}
"""Those that prevent no collapse: for a frozen encoder, which no other objective has anything to say about."""


def build_objective(config: RunObjective, model: ModelView, extras: AddOnsConfig | None = None) -> Objective:
    """The objective a configuration describes, with its add-ons, for one model.

    Weights come from torch's generator: seed it first. Raises ValueError for a frozen encoder with an objective that
    trains one, and for a trained encoder that nothing would keep from collapsing.
    """
    frozen = frozen_in(model.encoder) is not None
    if frozen and config.name not in FROZEN_OBJECTIVES:
        raise ValueError(
            f"objective is {config.name}, which shapes an encoder, and the encoder is frozen: use objective "
            f"{' or '.join(FROZEN_OBJECTIVES)}"
        )
    if not frozen and config.name in FROZEN_OBJECTIVES:
        raise ValueError(
            f"objective is {config.name}, under which a trained encoder collapses: use encoder frozen, or one of "
            f"{', '.join(OBJECTIVES)}"
        )
    objective = (OBJECTIVES | FROZEN_OBJECTIVES)[config.name](config, model)
    return objective if extras is None else add_ons(objective, extras, model)


__all__ = [
    "FROZEN_OBJECTIVES",
    "OBJECTIVES",
    "AddOnsConfig",
    "Losses",
    "ModelView",
    "Objective",
    "ObjectiveConfig",
    "PredictionConfig",
    "PredictionOnlyConfig",
    "RunObjective",
    "SigRegConfig",
    "build_objective",
    "prediction_loss",
]
