"""Frozen encoders: somebody else's pretrained network, or one of ours, as the encoder of a world model."""

from lewm.nets.frozen.encoder import FrozenConfig, FrozenEncoder, frozen_in, open_backbone
from lewm.nets.frozen.families import FROZEN_FAMILIES
from lewm.nets.frozen.picture import PIXELS

__all__ = ["FROZEN_FAMILIES", "PIXELS", "FrozenConfig", "FrozenEncoder", "frozen_in", "open_backbone"]
