"""`lewm import`: a foreign recording becomes a native store, whole or not at all."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lewm.data.building import built_beside
from lewm.data.codec import Codec
from lewm.data.collect import git_revision, package_versions
from lewm.data.importers import IMPORTERS
from lewm.data.importers.recording import Choice, Recording
from lewm.data.meta import PolicyMeta, Provenance, StoreMeta
from lewm.data.store import Store
from lewm.data.writer import Episode, StoreWriter

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ImportConfig:
    """What to import, and how it is stored."""

    format: str = ""
    """Name of the format; empty: recognised."""
    choice: Choice = field(default_factory=Choice)
    """Which of the source's entries to take."""
    task: str = ""
    """Task of the store; one that `envs.make` knows allows evaluation. Empty: the source's own name, or `imported`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of that task."""
    size: int | None = None
    """Resize every frame to this many pixels a side; None: as recorded."""
    state_names: tuple[str, ...] = ()
    """Names for the entries of a state, instead of those made from the source's names."""
    angle_names: tuple[str, ...] = ()
    """State entries that are angles in radians."""
    action_low: tuple[float, ...] | None = None
    """Smallest action; None: what the source declares, else what occurs."""
    action_high: tuple[float, ...] | None = None
    """Largest action."""
    control_dt: float | None = None
    """Seconds per action; None: what the source says."""
    episodes: int | None = None
    """Only the first so many; None: all."""
    broken: Literal["refuse", "skip"] = "refuse"
    """What to do with an episode that cannot be read: stop and leave nothing, or leave it out and say so."""
    codec: Codec = "raw"
    """How frames are stored."""
    shard_episodes: int = 50
    """Episodes per shard."""

    def __post_init__(self) -> None:
        if self.format and self.format not in IMPORTERS:
            raise ValueError(f"format is {self.format!r}; there are {', '.join(IMPORTERS)}")
        if self.size is not None and self.size < 8:
            raise ValueError(f"size is {self.size}, it must be at least 8 pixels")
        if self.episodes is not None and self.episodes < 1:
            raise ValueError(f"episodes is {self.episodes}, it must be at least 1")
        if self.shard_episodes < 1:
            raise ValueError(f"shard_episodes is {self.shard_episodes}, it must be at least 1")
        if self.control_dt is not None and not 0.0 < self.control_dt < math.inf:
            raise ValueError(f"control_dt is {self.control_dt}, it must be a positive number of seconds")


@dataclass(frozen=True)
class Imported:
    """What an import made."""

    store: Store
    skipped: tuple[str, ...]
    """One sentence for each episode that was left out."""
    notes: tuple[str, ...] = ()
    """One sentence for everything else that the source holds and the store does not."""


def recognise(source: Path) -> str:
    """Name of the format of a file or folder. Raises FileNotFoundError or ValueError naming the formats there are."""
    if not source.exists():
        raise FileNotFoundError(f"{source} is not there: give the file or folder to import")
    for name, importer in IMPORTERS.items():
        if importer.recognises(source):
            return name
    raise ValueError(f"{source} is in no format that is recognised; name it with --format: {', '.join(IMPORTERS)}")


def open_recording(source: Path, config: ImportConfig) -> Recording:
    """Open a foreign recording without reading its pictures."""
    recording = IMPORTERS[config.format or recognise(source)].open(source, config.choice)
    if recording.episodes < 1:
        raise ValueError(f"{source} holds no episode")
    return recording


def import_recording(source: Path, out: Path, config: ImportConfig, progress: Progress | None = None) -> Imported:
    """Turn `source` into a store at `out`, which must not exist or be empty; a failed import leaves nothing there.

    Raises ValueError naming file and episode when frames, actions and states do not add up.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty: choose another --out")
    recording = open_recording(source, config)
    ids = range(min(recording.episodes, config.episodes or recording.episodes))
    skipped: list[str] = []
    first, number = _first(recording, ids, config, skipped)
    meta = _meta(recording, config, ids, first.pixels.shape[1:])
    with built_beside(out, "importing") as building, StoreWriter(building, meta) as writer:
        episodes = _episodes(recording, first, ids[number:], config, skipped, progress)
        writer.write(episodes, config.shard_episodes)
    return Imported(Store.open(out), tuple(skipped), recording.notes)


def _first(recording: Recording, ids: Sequence[int], config: ImportConfig, skipped: list[str]) -> tuple[Episode, int]:
    """The first episode that can be read, whose frames say what size they have, and its number."""
    for number in ids:
        episode = _read(recording, number, config, skipped)
        if episode is not None:
            return episode, number
    raise ValueError(f"no episode of {recording.source} can be read; the first: {skipped[0]}")


def _episodes(
    recording: Recording,
    first: Episode,
    ids: Sequence[int],
    config: ImportConfig,
    skipped: list[str],
    progress: Progress | None,
) -> Iterator[Episode]:
    shape = first.pixels.shape[1:]
    for done, number in enumerate(ids):
        episode = first if done == 0 else _read(recording, number, config, skipped)
        if episode is not None and episode.pixels.shape[1:] != shape:
            raise ValueError(
                f"{recording.source}, episode {number}: frames are {episode.pixels.shape[1:]}, those before {shape}; "
                "give --size to make them equal"
            )
        if episode is not None:
            yield episode
        if progress:
            progress(done + 1, len(ids))


def _read(recording: Recording, number: int, config: ImportConfig, skipped: list[str]) -> Episode | None:
    try:
        episode = recording.read(number)
        if not len(episode.actions):
            raise ValueError(
                f"{recording.source}, episode {number}: no action leads from one of its {len(episode.pixels)} frames "
                "to the next"
            )
        for name, array in {"actions": episode.actions, "states": episode.states, **episode.extra}.items():
            if not np.isfinite(array).all():
                raise ValueError(f"{recording.source}, episode {number}: {name} hold NaN or infinite numbers")
    except ValueError as error:
        if config.broken == "refuse":
            raise ValueError(f"{error}; mend it, or leave such episodes out with --broken skip") from error
        skipped.append(str(error))
        return None
    return episode if config.size is None else replace(episode, pixels=resize(episode.pixels, config.size))


def resize(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Frames (T, Y, X, C) at `size` x `size`: averaged when they shrink, interpolated when they grow."""
    import cv2

    if pixels.shape[1:3] == (size, size):
        return pixels
    how = cv2.INTER_AREA if size < min(pixels.shape[1:3]) else cv2.INTER_LINEAR
    out = np.empty((len(pixels), size, size, pixels.shape[3]), np.uint8)
    for camera in range(0, pixels.shape[3], 3):
        for t, frame in enumerate(pixels):
            picture = np.ascontiguousarray(frame[..., camera : camera + 3])
            out[t, ..., camera : camera + 3] = cv2.resize(picture, (size, size), interpolation=how)
    return out


def _meta(recording: Recording, config: ImportConfig, ids: Sequence[int], shape: Sequence[int]) -> StoreMeta:
    low, high = _bounds(recording, config, ids)
    names = config.state_names or recording.state_names
    if len(names) != len(recording.state_names):
        raise ValueError(f"{len(names)} state names for the {len(recording.state_names)} entries of a state: {names}")
    control_dt = config.control_dt or recording.control_dt
    if control_dt is None:
        raise ValueError(f"{recording.source} does not say how long an action lasts: give --control-dt SECONDS")
    y, x, c = shape
    provenance = Provenance(
        policies=(PolicyMeta(recording.source, 1.0, 0.0),),
        episodes=0,
        source=recording.source,
        versions=package_versions(),
        git_revision=git_revision(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return StoreMeta(
        task=config.task or recording.task or "imported",
        settings=config.settings,
        frame=(y, x, c),
        codec=config.codec,
        action_dim=recording.action_dim,
        action_low=low,
        action_high=high,
        state_names=names,
        angle_names=config.angle_names or recording.angle_names,
        control_dt=control_dt,
        provenance=provenance,
        columns=recording.columns,
        cameras=recording.cameras,
    )


def _bounds(
    recording: Recording, config: ImportConfig, ids: Sequence[int]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low, high = config.action_low or recording.action_low, config.action_high or recording.action_high
    if low is None or high is None:
        least, most = _seen(recording, config, ids)
        low, high = low or least, high or most
    if len(low) == len(high) and any(bottom > top for bottom, top in zip(low, high)):
        raise ValueError(f"action_low is {low} and action_high {high}: no lower bound may be above its upper one")
    return low, high


def _seen(recording: Recording, config: ImportConfig, ids: Sequence[int]) -> tuple[tuple[float, ...], ...]:
    """Smallest and largest action of the episodes that will be stored."""
    least = np.full(recording.action_dim, np.inf)
    most = -least
    for number in ids:
        try:
            actions = recording.actions(number)
        except ValueError as error:
            if config.broken == "refuse":
                raise ValueError(f"{error}; mend it, or leave such episodes out with --broken skip") from error
            continue
        if len(actions) and np.isfinite(actions).all():
            least, most = np.minimum(least, actions.min(axis=0)), np.maximum(most, actions.max(axis=0))
    return tuple(map(float, least)), tuple(map(float, most))
