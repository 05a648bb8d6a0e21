"""Encoders trained from recordings alone, to be frozen under a world model: one method per file, one row each."""

from lewm.pretrain.base import Builder, ClipShape, Pretraining, Setup
from lewm.pretrain.cjepa import CJepa, CJepaConfig
from lewm.pretrain.data2vec import Data2Vec, Data2VecConfig
from lewm.pretrain.distill import Distill, DistillConfig
from lewm.pretrain.ijepa import IJepa, IJepaConfig
from lewm.pretrain.mae import Mae, MaeConfig
from lewm.pretrain.vjepa import VJepa, VJepaConfig
from lewm.pretrain.vjepa2 import VJepa2Config, vjepa2
from lewm.pretrain.vjepa21 import VJepa21, VJepa21Config

MethodConfig = (
    IJepaConfig | VJepaConfig | VJepa2Config | VJepa21Config | CJepaConfig | Data2VecConfig | MaeConfig | DistillConfig
)
"""What a configuration may say, told apart by `name`."""

PRETRAIN: dict[str, Builder] = {
    "ijepa": IJepa,
    "vjepa": VJepa,
    "vjepa2": vjepa2,
    "vjepa21": VJepa21,
    "cjepa": CJepa,
    "data2vec": Data2Vec,
    "mae": Mae,
    "distill": Distill,
}
"""Name to builder. A new method is a file, a row here and a member of `MethodConfig`."""


def build_method(config: MethodConfig, setup: Setup) -> Pretraining:
    """The method a configuration describes. Weights come from torch's generator: seed it first."""
    return PRETRAIN[config.name](config, setup)
