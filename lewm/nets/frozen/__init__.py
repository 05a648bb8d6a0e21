"""Frozen encoders: somebody else's pretrained network, or one of ours, as the encoder of a world model."""

from lewm.nets.frozen.encoder import FrozenConfig, FrozenEncoder, frozen_in, open_backbone
from lewm.nets.frozen.families import FROZEN_FAMILIES

__all__ = ["FROZEN_FAMILIES", "FrozenConfig", "FrozenEncoder", "frozen_in", "open_backbone"]
