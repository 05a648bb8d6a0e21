"""Masked prediction of clips, shared by V-JEPA, V-JEPA 2, V-JEPA 2.1 and distillation: tubes hidden, tokens predicted.

What they differ in is who teaches, how many levels are predicted, and whether visible tokens are scored as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from lewm import distributed
from lewm.nets.token_vit import Grid, TokenViT, grid_positions
from lewm.objectives.losses import full_precision
from lewm.pretrain.base import ClipShape
from lewm.pretrain.masks import Masks, TubeConfig, draw_for_rank, own_share, tubes
from lewm.pretrain.predictor import MaskPredictor
from lewm.pretrain.teacher import take_groups

TUBES = (TubeConfig(8, 0.15), TubeConfig(2, 0.7))
"""The two kinds of masks of V-JEPA: many short-range blocks and few long-range ones."""


@dataclass(frozen=True)
class ClipStage:
    """Clips of one part of a training that begins small."""

    until: float
    """Share of the training at which this stage ends; 1 for the last."""
    frames: int
    """Frames per clip."""
    shrink: int = 1
    """How many times smaller than the recordings its pictures are; positions are rotary, so the weights carry over."""

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1 or self.frames < 1 or self.shrink < 1:
            raise ValueError(
                f"stage until {self.until}, frames {self.frames}, shrink {self.shrink}: until must lie in (0, 1], the "
                "others must be at least 1"
            )


STAGES = (ClipStage(0.3, 4, 2), ClipStage(1.0, 8))
"""Short clips of half the size first (published: 16 frames at 256 pixels, then 64 at 256 to 384)."""


def check_stages(stages: Sequence[ClipStage], tubelet: int) -> None:
    """Raise ValueError for stages that do not cover the training or whose clips tubelets do not divide."""
    ends = [stage.until for stage in stages]
    if not ends or ends != sorted(set(ends)) or ends[-1] != 1:
        raise ValueError(f"stages end at {ends}; the ends must rise and the last must be 1")
    for stage in stages:
        check_clip(stage.frames, tubelet)


def check_clip(frames: int, tubelet: int) -> None:
    """Raise ValueError for a clip that tubelets do not divide."""
    if tubelet < 1 or frames < 1 or frames % tubelet:
        raise ValueError(f"frames is {frames} and tubelet {tubelet}; frames must be a positive multiple of tubelet")


def stage_shape(stages: Sequence[ClipStage], progress: float) -> ClipShape:
    """Clips of the stage that `progress` in [0, 1) lies in."""
    stage = next(stage for stage in stages if progress < stage.until)
    return ClipShape(stage.frames, stage.shrink)


class Teaches(Protocol):
    """Who says what is to be predicted."""

    def targets(self, clip_BTCYX: Tensor) -> Tensor:
        """target_BSD of all tokens of a clip, constants."""


@dataclass(frozen=True)
class TubeScores:
    """Mean absolute errors on one batch of clips, averaged over the kinds of masks."""

    hidden: Tensor
    """On the hidden tokens."""
    visible: Tensor | None
    """On the visible ones, weighted by their distance to the nearest hidden one; None unless the predictor has answers
    for them."""
    target: Tensor
    """Targets of the last kind of masks."""
    predicted: Tensor
    """Their predictions."""


def check_tubes(masks: Sequence[TubeConfig]) -> None:
    """Raise ValueError where there is no kind of mask."""
    if not masks:
        raise ValueError("masks is empty; give at least one kind of mask, such as {blocks: 8, scale: 0.15}")


def score_tubes(
    encoder: TokenViT,
    predictor: MaskPredictor,
    teacher: Teaches,
    kinds: Sequence[TubeConfig],
    clip_BTCYX: Tensor,
    generator: torch.Generator,
) -> TubeScores:
    """Hide tubes of every kind in turn, and predict the teacher's tokens from what the student makes of the rest.

    L1, as in the code of V-JEPA and the paper of V-JEPA 2 (section 2.1).
    """
    grid = encoder.grid(clip_BTCYX)
    target_BSD = teacher.targets(clip_BTCYX)
    hidden, visible = [], []
    for kind, tube in enumerate(kinds):
        masks = draw_for_rank(partial(tubes, grid, tube, generator=generator), clip_BTCYX)
        context_BND = torch.cat(encoder.levels(clip_BTCYX, masks.context_BN), -1)
        predicted_BMPD, answers_BND = predictor(context_BND, masks, grid, kind)
        wanted_BMPD = take_groups(target_BSD, masks.target_BMP)
        hidden.append((full_precision(predicted_BMPD) - wanted_BMPD).abs().mean())
        if answers_BND is not None:
            seen_BND = take_groups(target_BSD, masks.context_BN[:, None])[:, 0]
            error_BN = (full_precision(answers_BND) - seen_BND).abs().mean(-1)
            visible.append((error_BN * nearness(masks, grid)).mean())
    seen = torch.stack(visible).mean() if visible else None
    return TubeScores(torch.stack(hidden).mean(), seen, wanted_BMPD, predicted_BMPD)


def nearness(masks: Masks, grid: Grid) -> Tensor:
    """1 / sqrt(distance in cells to the nearest hidden token) of every visible token: weight_BN in (0, 1].

    V-JEPA 2.1, section 2.3.1: visible tokens far from anything hidden need not be understood to be answered for.
    """
    position_SA = grid_positions(grid, 3).to(masks.context_BN.device, torch.float32)
    gap_BNP = torch.cdist(position_SA[masks.context_BN], position_SA[masks.target_BMP.flatten(1)])
    return gap_BNP.amin(-1).rsqrt()


def one_frame(clip_BTCYX: Tensor, generator: torch.Generator) -> Tensor:
    """A frame of every clip at random, as clips of one frame; drawn for the clips of all ranks."""
    batch, frames = clip_BTCYX.shape[:2]
    drawn_B = torch.randint(frames, (batch * distributed.world_size(),), generator=generator)
    index_B = own_share(drawn_B, clip_BTCYX)
    return clip_BTCYX[torch.arange(batch, device=clip_BTCYX.device), index_B][:, None]
