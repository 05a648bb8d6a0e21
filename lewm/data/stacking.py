"""Stacking of history frames into channels, shared by training windows and by the agent; needs no store."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def history_index(
    frame: NDArray[np.int64], first: NDArray[np.int64] | int, frame_stack: int, stack_stride: int
) -> NDArray[np.int64]:
    """Indices (..., k) of the frames shown together with each `frame` (...): oldest first, newest last.

    They are `stack_stride` raw frames apart and never earlier than `first`, the episode's first frame.
    """
    back = np.arange(frame_stack - 1, -1, -1, dtype=np.int64) * stack_stride
    return np.maximum(np.asarray(frame)[..., None] - back, np.asarray(first)[..., None])


def channels_first(frames: Sequence[Tensor]) -> Tensor:
    """Join pictures (oldest..newest, each (..., Y, X, 3)) into one (..., 3 * len(frames), Y, X), oldest channels first.

    The result is a view in channels-last memory: a single picture is not even copied, and the forward pass of a small
    conv encoder on the CPU takes half the time (a whole training step the same).
    Reshape it with `flatten(0, 1)` or `reshape`, not with `view`.
    """
    joined = frames[0] if len(frames) == 1 else torch.cat(list(frames), dim=-1)
    return joined.movedim(-1, -3)


def stack_frames(
    frames: Sequence[NDArray[np.uint8]] | Sequence[Tensor], frame_stack: int = 1, stack_stride: int = 1
) -> Tensor:
    """Stack the newest of `frames` (oldest..newest, each uint8 (..., Y, X, 3)) with its history.

    Returns uint8 (..., 3 * frame_stack, Y, X), in the channel order and memory layout of `channels_first`.
    `frames` are consecutive raw frames; only the last `1 + (frame_stack - 1) * stack_stride` of them matter, and when
    there are fewer the oldest one stands in, as at the start of an episode. Raises ValueError for an empty list.
    """
    if not len(frames):
        raise ValueError("frames is empty: give at least the newest frame")
    chosen = history_index(np.asarray(len(frames) - 1), 0, frame_stack, stack_stride)
    return channels_first([torch.as_tensor(frames[i]) for i in chosen])
