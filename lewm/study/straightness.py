"""How straight episodes run through latent space: the mean cosine between successive displacements.

1 is a straight line, 0 a right-angled turn at every block, -0.5 what independent noise around one point gives. LeWM
(arXiv 2603.19312, appendix H) reports that it rises during training without a term for it. It means little alone: the
true state and the picture run through their own spaces beside it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm.objectives.addons import STANDSTILL
from lewm.probes import state_targets
from lewm.study.bootstrap import Estimate, means, written
from lewm.study.figures import aligned, canvas, dots, named_rows, save
from lewm.study.probes import FRESH, LATENT, PICTURE, fresh_model
from lewm.study.subject import Feature, Subject, encode, read_frames

STATE = "true state"
COLOURS = {LATENT: "C0", FRESH: "C1", PICTURE: "0.45", STATE: "C2"}


@dataclass(frozen=True)
class StraightnessConfig:
    """Which episodes count."""

    episodes: int = 200
    """Most held-out episodes; where there are more, the first of a random order."""
    seed: int = 0
    """Of the episodes, the fresh weights and the resamples."""

    def __post_init__(self) -> None:
        if self.episodes < 2:
            raise ValueError(f"straightness: episodes is {self.episodes}; an interval needs at least 2")


@dataclass(frozen=True)
class StraightnessRow:
    """One space."""

    task: str
    space: str
    """latent, random encoder (the same network, never trained), pixels (whole pictures), or true state (entries in
    units of their standard deviation, angles as cosine and sine)."""
    cosine: Estimate | None
    """Mean over all pairs of successive displacements, a block apart; None where nothing ever moves."""
    pairs: int
    """Pairs that count: a displacement of 1e-6 or less has no direction."""
    by_episode: tuple[float | None, ...]
    """Mean of each held-out episode; None for one that stands still."""


@dataclass(frozen=True)
class Straightness:
    """The study's result."""

    rows: tuple[StraightnessRow, ...]
    notes: tuple[str, ...]


def turn_cosines(path_FD: Tensor) -> NDArray[np.float64]:
    """cosine_N between successive displacements of the frames of one episode, in the order of time.

    NaN stands where a displacement is 1e-6 or less.
    """
    step_FD = path_FD.double().diff(dim=0)
    length_F = step_FD.norm(dim=1)
    length_N = length_F[:-1] * length_F[1:]
    moving_N = torch.minimum(length_F[:-1], length_F[1:]) > STANDSTILL
    cosine_N: NDArray[np.float64] = torch.where(
        moving_N, (step_FD[:-1] * step_FD[1:]).sum(1) / length_N, torch.nan
    ).numpy()
    return cosine_N


def measure(subject: Subject, config: StraightnessConfig, quiet: bool = False) -> Straightness:
    """Held-out episodes at the model's pace, one frame per block. Raises ValueError for episodes of two blocks."""
    store, skip = subject.store, subject.model.config.frame_skip
    rng = np.random.default_rng(config.seed)
    episodes = np.sort(rng.permutation(subject.held_ids)[: config.episodes])
    fresh = fresh_model(subject.model, config.seed)
    features: dict[str, Feature] = {
        LATENT: lambda batch: encode(subject.model, batch)[:, 0],
        FRESH: lambda batch: encode(fresh, batch)[:, 0],
    }
    frames = read_frames(subject, episodes, features, None, rng, "read episodes", quiet)
    # Frames come in the order of the episodes, and the frames of an episode in the order of time.
    sizes = np.unique(frames.episode_N, return_counts=True)[1].tolist()
    paths: dict[str, Iterable[Tensor]] = {name: x.split(sizes) for name, x in frames.features.items()}
    # Whole pictures are read one episode at a time: all of them may not fit in memory.
    paths[PICTURE] = (torch.from_numpy(store.pixels(int(e), slice(0, None, skip))).flatten(1) for e in episodes)
    if store.meta.state_names:
        state_FS, _ = state_targets(
            frames.state_NS.double(), tuple(store.meta.state_names), tuple(store.meta.angle_names)
        )
        paths[STATE] = (state_FS / state_FS.std(0).clamp(min=1e-6)).split(sizes)
    rows = tuple(straightness_row(subject.task, name, path, config.seed) for name, path in paths.items())
    return Straightness(rows, subject.notes)


def straightness_row(task: str, space: str, paths: Iterable[Tensor], seed: int) -> StraightnessRow:
    """The mean cosine of one space over episodes, each (F, D). Raises ValueError when none is three frames long."""
    parts = [turn_cosines(path_FD) for path_FD in paths]
    cosine_N = np.concatenate(parts)
    episode_N = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    if not len(cosine_N):
        raise ValueError("straightness: no held-out episode has three frames a block apart; record longer episodes")
    (cosine,) = means(cosine_N[:, None], episode_N, seed)
    known = [part[np.isfinite(part)] for part in parts]
    by_episode = tuple(float(part.mean()) if len(part) else None for part in known)
    return StraightnessRow(task, space, cosine, sum(len(part) for part in known), by_episode)


def plot(found: Straightness, path: Path) -> None:
    """A line per space: the mean with its interval, and the mean of every episode as a small dot."""
    figure = canvas(7.0, 1.3 + 0.6 * len(found.rows))
    axes = figure.add_subplot()
    for height, each in enumerate(found.rows):
        known = [value for value in each.by_episode if value is not None]
        axes.plot(known, [height + 0.22] * len(known), "|", color=COLOURS[each.space], alpha=0.5, markersize=7)
        dots(axes, [each.cosine], [height - 0.08], COLOURS[each.space])
    axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set(xlim=(-1.03, 1.03), xlabel="mean cosine of successive displacements (1 straight, 0 right angles)")
    named_rows(axes, [each.space for each in found.rows])
    axes.set_title(f"{found.rows[0].task}: straightness (ticks: single episodes)")
    save(figure, path)


def table(rows: Sequence[StraightnessRow]) -> str:
    """Aligned text."""
    lines = [("space", "mean cosine", "pairs", "episodes")]
    lines += [(r.space, written(r.cosine), str(r.pairs), str(len(r.by_episode))) for r in rows]
    return aligned(lines)
