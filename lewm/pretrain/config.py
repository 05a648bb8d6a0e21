"""A pretraining run: which method, which encoder, how it is trained.

Its YAML files are not runs of `lewm train`. The shipped ones live in a folder of their own, `configs/pretrain/`, where
`lewm.config.shipped` does not look: this module is the only one that reads them.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lewm import config
from lewm.nets.token_vit import TokenViTConfig
from lewm.pretrain import PRETRAIN, MethodConfig
from lewm.schema import describe


@dataclass(frozen=True)
class PretrainConfig:
    """How an encoder is trained."""

    steps: int = 2000
    """Optimiser steps."""
    batch: int = 64
    """Clips (or pictures) per step, over all processes."""
    frame_skip: int = 5
    """Environment steps between two frames of a clip."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After a linear warm-up: a cosine to zero (I-JEPA, MAE), or constant and then linear to zero over the share
    `cooldown` of the steps (V-JEPA 2)."""
    warmup: float = 0.1
    """Share of the steps spent warming up."""
    cooldown: float = 0.2
    """Share of the steps spent cooling down (schedule constant)."""
    weight_decay: float = 0.04
    """Decoupled weight decay at the start, on matrices only."""
    final_weight_decay: float = 0.04
    """The same at the end, reached along a cosine (I-JEPA, V-JEPA: 0.4)."""
    clip: float = 10.0
    """Largest gradient norm."""
    seed: int = 0
    """Decides the initial weights, the data order, the masks and the split."""
    held_out: float = 0.1
    """Share of the episodes kept away from training, for probes."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast on CUDA, float32 elsewhere."""
    resident: Literal["auto", "disk", "ram", "gpu"] = "auto"
    """Where the recordings live while training."""
    log_every: int = 50
    """Steps between TensorBoard scalars."""
    probe_every: int = 500
    """Steps between probes on held-out episodes (0: only before the first step and at the end)."""
    probe_frames: int = 512
    """Frames that a probe is fitted on, and as many held-out ones it is scored on."""
    probe_grid: int = 4
    """Rows and columns to which patch tokens are averaged for the grid probe, as a world model would see them."""
    checkpoint_every: int = 250
    """Steps between trainer checkpoints; a killed run loses at most this many."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "frame_skip", "log_every", "checkpoint_every", "probe_grid"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be at least 1")
        if self.probe_frames < 2 or self.probe_every < 0:
            raise ValueError(
                f"train.probe_frames is {self.probe_frames} and probe_every {self.probe_every}; they must be at least "
                "2 and 0"
            )
        if not 0 < self.held_out < 1:
            raise ValueError(f"train.held_out is {self.held_out}; it must lie between 0 and 1")
        for name in ("warmup", "cooldown"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must lie in [0, 1]")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be positive")


@dataclass(frozen=True)
class PretrainRun:
    """A complete pretraining, but for the recordings."""

    method: MethodConfig
    """What the encoder is trained for."""
    encoder: TokenViTConfig = field(default_factory=TokenViTConfig)
    """Its size."""
    train: PretrainConfig = field(default_factory=PretrainConfig)
    """Training."""


def shipped() -> dict[str, Path]:
    """The pretraining runs that come with lewm, by name."""
    return config.shipped("pretrain")


def load(name: str | Path, overrides: Sequence[str] = ()) -> PretrainRun:
    """The run of a YAML file, of a shipped name, or of a method's name (all defaults), with dotted overrides.

    Raises FileNotFoundError for what is none of these, and SchemaError as `lewm.config.load`.
    """
    runs = shipped()
    if Path(name).is_file() or str(name) in runs:
        return config.read(PretrainRun, runs.get(str(name), Path(name)), overrides)
    if str(name) in PRETRAIN:
        return config.read(PretrainRun, {"method": {"name": str(name)}}, overrides)
    raise FileNotFoundError(
        f"no method or pretraining run {name}: give one of {', '.join(PRETRAIN)}, a shipped run "
        f"({', '.join(sorted(runs))}), or a YAML file"
    )


@functools.cache
def help_text() -> str:
    """Every key of a pretraining run with its meaning."""
    return "\n".join(f"  --{key:<36} {text}" for key, text in describe(PretrainRun))
