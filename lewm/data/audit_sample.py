"""What an audit reads of a store: every number, and clips of pictures, reduced at once to what the checks need."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lewm.data.store import Store

Progress = Callable[[int, int], None]
Verdict = Literal["good", "look", "bad"]

CHUNK = 128
"""Steps of one episode whose pictures are in memory at once."""
MOTION_SIZE = 32
"""Height and width of the pictures that motion is measured in, in pixels."""
MOTION_GRIDS = (1, 2, 4)
"""Motion is summed over the whole picture, over its quarters and over its sixteenths."""


@dataclass(frozen=True)
class AuditConfig:
    """How much of a store is looked at."""

    episodes: int | None = 60
    """Episodes whose pictures are read, spread evenly over the store; None: all, in whole. Numbers are always all read.
    """
    steps: int = 100
    """Most consecutive steps of a chosen episode whose pictures are read."""

    def __post_init__(self) -> None:
        if self.episodes is not None and self.episodes < 1:
            raise ValueError(f"episodes is {self.episodes}, it must be at least 1")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, it must be at least 1")


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    name: str
    """The check's name in `AUDITS`."""
    verdict: Verdict
    """good: nothing to do. look: may be meant so. bad: do not train on this as it is."""
    numbers: dict[str, float]
    """What was measured."""
    found: str
    """One sentence."""
    do: str = ""
    """What to do about it; empty when there is nothing to do."""


@dataclass(frozen=True)
class Clip:
    """Pictures of n consecutive steps of an episode, reduced; V cameras."""

    episode: int
    start: int
    """First of the n + 1 frames."""
    actions_nA: NDArray[np.float32]
    """Actions of these steps."""
    states_nS: NDArray[np.float32]
    """States at the frames, n + 1 of them."""
    same_nV: NDArray[np.bool_]
    """Whether a picture is byte for byte the one before."""
    brightness_nV: NDArray[np.float32]
    """Mean of every picture, n + 1 of them, 0 to 255."""
    contrast_nV: NDArray[np.float32]
    """Standard deviation within every picture, n + 1 of them."""
    motion_nF: NDArray[np.float32]
    """See `motion_features`."""


@dataclass(frozen=True)
class Sample:
    """All numbers of the episodes that hold finite ones, and some of their pictures."""

    store: Store
    episodes: tuple[int, ...]
    """Ids of the episodes whose numbers are all finite; the checks look at these."""
    actions: tuple[NDArray[np.float32], ...]
    """(T, a) of each of them."""
    states: tuple[NDArray[np.float32], ...]
    """(T + 1, S) of each of them."""
    broken: dict[str, int]
    """Column entry -> how many of its numbers are NaN or infinite, over all episodes."""
    first_broken: str
    """Where the first of these is; empty when there is none."""
    clips: tuple[Clip, ...]

    @property
    def steps(self) -> int:
        """Steps whose pictures were read."""
        return sum(len(clip.same_nV) for clip in self.clips)

    @property
    def angles_S(self) -> NDArray[np.bool_]:
        """Which state entries are angles."""
        meta = self.store.meta
        return np.array([name in meta.angle_names for name in meta.state_names], bool)

    def changes(self, states_TS: NDArray[np.float32]) -> NDArray[np.float64]:
        """Change of every state entry in every step (T - 1, S); angles the short way round."""
        change_TS = np.diff(states_TS.astype(np.float64), axis=0)
        return np.where(self.angles_S, (change_TS + np.pi) % (2 * np.pi) - np.pi, change_TS)


def read_sample(store: Store, config: AuditConfig, progress: Progress | None = None) -> Sample:
    """Read what the checks need. `progress` is called with (clips read, clips in all)."""
    broken: dict[str, int] = {}
    first, good, actions, states = "", [], [], []
    for episode in range(store.num_episodes):
        columns = {"action": store.actions(episode), "state": store.states(episode)}
        extra = {column.name: store.column(column.name, episode) for column in store.meta.columns}
        where = _not_finite(store, columns | extra, broken)
        if where:
            first = first or f"episode {episode}: {where}"
            continue
        good.append(episode)
        actions.append(columns["action"])
        states.append(columns["state"])
    clips = []
    wanted = list(_clips(store, good, config))
    for done, (episode, start, steps) in enumerate(wanted):
        clips.append(read_clip(store, episode, start, steps))
        if progress:
            progress(done + 1, len(wanted))
    return Sample(store, tuple(good), tuple(actions), tuple(states), broken, first, tuple(clips))


def read_clip(store: Store, episode: int, start: int, steps: int) -> Clip:
    """Pictures `start` to `start + steps` of an episode, reduced."""
    import cv2

    pixels = store.pixels(episode, slice(start, start + steps + 1))
    cameras = [np.ascontiguousarray(part) for part in np.split(pixels, pixels.shape[-1] // 3, axis=-1)]
    same, brightness, contrast, motion = [], [], [], []
    for camera in cameras:
        same.append((camera[1:] == camera[:-1]).all(axis=(1, 2, 3)))
        moments = [cv2.meanStdDev(picture.reshape(-1, 1)) for picture in camera]
        brightness.append([mean.item() for mean, _ in moments])
        contrast.append([std.item() for _, std in moments])
        small = [cv2.resize(p, (MOTION_SIZE, MOTION_SIZE), interpolation=cv2.INTER_AREA) for p in camera]
        motion.append(motion_features((np.stack(small) / 255).astype(np.float32)))
    return Clip(
        episode,
        start,
        store.actions(episode)[start : start + steps],
        store.states(episode)[start : start + steps + 1],
        np.stack(same, 1),
        np.array(brightness, np.float32).T,
        np.array(contrast, np.float32).T,
        np.concatenate(motion, 1),
    )


def motion_features(pictures_TYXC: NDArray[np.float32]) -> NDArray[np.float32]:
    """What moved which way between neighbours: (T - 1, F) sums of picture gradient times picture change.

    For a small move (u, v) the change is about -(I_x u + I_y v), so these sums are linear in (u, v) wherever the moving
    thing is: the right-hand side of Lucas and Kanade's equations (1981), over the cells of `MOTION_GRIDS`.
    """
    middle, change = (pictures_TYXC[1:] + pictures_TYXC[:-1]) / 2, np.diff(pictures_TYXC, axis=0)
    sums = []
    for gradient in np.gradient(middle, axis=(1, 2)):
        product_TYX = (gradient * change).sum(-1)
        t, y, x = product_TYX.shape
        for cells in MOTION_GRIDS:
            blocks = product_TYX.reshape(t, cells, y // cells, cells, x // cells)
            sums.append(blocks.sum((2, 4)).reshape(t, -1))
    return np.concatenate(sums, 1)


def _clips(store: Store, episodes: list[int], config: AuditConfig) -> Iterator[tuple[int, int, int]]:
    """(episode, first frame, steps): chosen stretches early, midway and late in their episodes, or everything."""
    if not episodes:
        return
    if config.episodes is None:
        for episode in episodes:
            length = int(store.episodes["length"][episode])
            yield from ((episode, start, min(CHUNK, length - start)) for start in range(0, length, CHUNK))
        return
    count = min(config.episodes, len(episodes))
    for place in np.linspace(0, 1, count):
        episode = episodes[round(place * (len(episodes) - 1))]
        length = int(store.episodes["length"][episode])
        begin = round(place * max(length - config.steps, 0))
        end = min(begin + config.steps, length)
        yield from ((episode, start, min(CHUNK, end - start)) for start in range(begin, end, CHUNK))


def _not_finite(store: Store, columns: dict[str, NDArray[np.float32]], broken: dict[str, int]) -> str:
    """Count numbers that are not finite into `broken`; says where the first is, or nothing."""
    first = ""
    for key, values in columns.items():
        bad = ~np.isfinite(values.reshape(len(values), -1))
        if not bad.any():
            continue
        for entry in np.flatnonzero(bad.any(axis=0)):
            name = entry_name(store, key, int(entry))
            broken[name] = broken.get(name, 0) + int(bad[:, entry].sum())
        row, column = map(int, np.argwhere(bad)[0])
        first = first or f"{entry_name(store, key, column)}, row {row}"
    return first


def entry_name(store: Store, key: str, entry: int) -> str:
    """One entry of a column as people say it: action[1], state.x, reward."""
    if key == "state":
        return f"state.{store.meta.state_names[entry]}"
    widths = {column.name: int(np.prod(column.shape)) for column in store.meta.columns}
    return key if widths.get(key) == 1 else f"{key}[{entry}]"
