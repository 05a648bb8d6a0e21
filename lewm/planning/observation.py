"""What an agent is shown: pictures and measurements, checked, and what a plan looks at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lewm.world_model import WorldModel


@dataclass(frozen=True)
class Seen:
    """What a plan looks at, as arrays nobody else writes to: planning may go on in another thread."""

    stacks: list[list[np.ndarray]]
    """Per frame, oldest first: its stack, oldest first, each (B, Y, X, C)."""
    past: list[np.ndarray]
    """The raw action blocks between the frames, each (B, A)."""
    proprio: list[np.ndarray]
    """What was measured at each frame, each (B, P); empty for a model that measures nothing."""


def as_frames(pixels: np.ndarray, shape: tuple[int, int, int], what: str) -> np.ndarray:
    """Check one frame (Y, X, C) or a batch of them (B, Y, X, C); always returns the batch."""
    frames = np.asarray(pixels)
    frames = (frames[None] if frames.ndim == 3 else frames).copy()  # a caller may reuse its buffer
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != shape:
        raise ValueError(
            f"{what} is {np.asarray(pixels).dtype} of shape {np.asarray(pixels).shape}; this model sees uint8 colour "
            f"pictures of shape {shape}, or a batch of them"
        )
    return frames


def as_proprio(proprio: np.ndarray | None, model: WorldModel, count: int, what: str) -> np.ndarray:
    """Check measurements (P,) or (B, P) of `count` problems; always returns the batch, float32."""
    names = ", ".join(model.config.proprio)
    if proprio is None:
        raise ValueError(f"{what} is missing: this model measures {names}, raw as recorded; pass proprio")
    rows = np.array(proprio, np.float32)
    rows = rows[None] if rows.ndim == 1 else rows
    width = len(model.facts.proprio)
    if rows.shape != (count, width) or not np.isfinite(rows).all():
        raise ValueError(
            f"{what} has shape {np.asarray(proprio).shape}; it must be {width} finite numbers ({names}) for each of "
            f"{count} problem(s)"
        )
    return rows


def measured_in(model: WorldModel, states: Sequence[np.ndarray]) -> np.ndarray | None:
    """What a model would measure in states of its task, (B, P); None for one that measures nothing.

    Raises ValueError when it measures an extra column of its recordings, which no task tells.
    """
    entries = model.facts.proprio
    if elsewhere := sorted({entry.source for entry in entries} - {"state"}):
        raise ValueError(
            f"the model measures {elsewhere[0]!r}, which is no entry of the task's state: drive it with "
            "Agent.act(pixels, proprio=...); it cannot be evaluated in the task"
        )
    return np.stack(states)[:, [entry.index for entry in entries]].astype(np.float32) if entries else None
