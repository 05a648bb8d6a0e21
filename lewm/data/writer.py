"""Writing a store: whole shards into a temporary folder, renamed in place, then one atomic switch of `meta.json`."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lewm.data.codec import encode_frame
from lewm.data.meta import EPISODE, UNKNOWN_SUCCESS, ShardMeta, StoreMeta, read_meta
from lewm.data.statistics import Part, merge_statistics, pixel_part, shard_statistics


@dataclass(frozen=True)
class Episode:
    """One recorded episode of T actions."""

    pixels: NDArray[np.uint8]
    """(T + 1, Y, X, C), RGB; C = 3 for every camera, one camera after the other."""
    actions: NDArray[np.float32]
    """(T, a); action t leaves frame t."""
    states: NDArray[np.float32]
    """(T + 1, S); S = 0 when there are none."""
    seed: int = 0
    """Seed that the episode's task was reset with."""
    policy: int = 0
    """Index into the provenance's policies."""
    success: bool | None = None
    """Whether it reached its goal; None when there was none."""
    extra: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Extra columns by name, as declared in the store's meta."""


class StoreWriter:
    """Adds shards to the store at `path`, which is made, or continued when its meta agrees with `meta` (a StoreMeta
    without shards). Use it as a context manager; it locks the store against a second writer.

    Raises ValueError naming the first difference when the store there was recorded with other settings,
    FileExistsError when the folder holds something else, RuntimeError when somebody else is writing there.
    """

    def __init__(self, path: str | Path, meta: StoreMeta) -> None:
        self.path = Path(path)
        self._lock = lock_folder(self.path)
        try:
            self.meta = self._begin(meta)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the lock; everything committed is on disk already."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def done(self) -> frozenset[str]:
        """Names of the shards that are complete."""
        return frozenset(shard.name for shard in self.meta.shards)

    def temporary(self, name: str) -> Path:
        """Folder that shard `name` is written into before `commit`."""
        return self.path / "shards" / f"{name}.tmp"

    def commit(self, shard: ShardMeta) -> None:
        """Make the shard in its temporary folder a part of the store: rename, then switch `meta.json`."""
        self.temporary(shard.name).rename(self.path / "shards" / shard.name)
        _sync_folder(self.path / "shards")
        shards = tuple(sorted((*self.meta.shards, shard), key=lambda s: s.name))
        self.meta = replace(self.meta, shards=shards, statistics=merge_statistics(self.meta, shards))
        write_meta(self.path, self.meta)

    def write(self, episodes: Iterable[Episode], shard_episodes: int = 50) -> None:
        """Write episodes, one after the other, as new shards of `shard_episodes` (what importers use)."""
        remaining = iter(episodes)
        number = len(self.meta.shards)
        while (first := next(remaining, None)) is not None:
            name = shard_name(number)
            group = chain([first], islice(remaining, shard_episodes - 1))
            self.commit(write_shard(self.temporary(name), self.meta, group, name))
            number += 1

    def _begin(self, meta: StoreMeta) -> StoreMeta:
        if (self.path / "meta.json").exists():
            found = read_meta(self.path)
            meta = _continue(found, meta, self.path)
            if meta != found:
                write_meta(self.path, meta)
        else:
            content = sorted(item.name for item in self.path.iterdir() if item.name != "meta.json.tmp")
            if content:
                raise FileExistsError(f"{self.path} is no store but holds {content[:3]}: choose an empty or new folder")
            write_meta(self.path, meta)
        (self.path / "shards").mkdir(exist_ok=True)
        names = {shard.name for shard in meta.shards}
        for item in (self.path / "shards").iterdir():
            if re.fullmatch(r"\d{5,}(\.tmp)?", item.name) and item.name not in names:
                shutil.rmtree(item)  # left by a killed writer: never named in meta.json
        return meta


def shard_name(number: int) -> str:
    """Folder name of shard `number`; names sort like numbers."""
    if not 0 <= number < 100_000:
        raise ValueError(f"shard number {number} is outside 0..99999: use more episodes per shard")
    return f"{number:05d}"


def write_shard(folder: Path, meta: StoreMeta, episodes: Iterable[Episode], name: str) -> ShardMeta:
    """Write episodes as one shard into `folder` (made anew), frame by frame and synced to disk.

    Raises ValueError naming episode and position for an array of the wrong shape or dtype or one that is not finite.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    rows: list[tuple[int, int, int, int, int, int]] = []
    values: dict[str, list[NDArray[Any]]] = {"action": [], "state": [], **{c.name: [] for c in meta.columns}}
    pixel_parts: list[Part] = []
    frame_offset = action_offset = 0
    with _FrameFile(folder, meta) as frames:
        for number, episode in enumerate(episodes):
            _check_episode(episode, meta, f"shard {name}, episode {number}")
            length, seed, policy = len(episode.actions), episode.seed, episode.policy
            success = UNKNOWN_SUCCESS if episode.success is None else int(episode.success)
            rows.append((frame_offset, action_offset, length, seed, policy, success))
            frame_offset, action_offset = frame_offset + length + 1, action_offset + length
            frames.add(episode.pixels)
            pixel_parts.append(pixel_part(episode.pixels))
            for key, array in _columns(episode).items():
                values[key].append(np.asarray(array))
    if not rows:
        shutil.rmtree(folder)
        raise ValueError(f"shard {name} got no episodes: nothing to write")
    dtypes = {"action": "<f4", "state": "<f4", **{c.name: c.dtype for c in meta.columns}}
    columns = {key: np.concatenate(parts).astype(dtypes[key]) for key, parts in values.items()}
    for key, array in {"episodes": np.array(rows, EPISODE), **columns}.items():
        _save(folder / f"{key}.npy", array)
    _sync_folder(folder)
    statistics = shard_statistics(columns, pixel_parts)
    sizes = {item.name: item.stat().st_size for item in sorted(folder.iterdir())}
    return ShardMeta(name, len(rows), frame_offset, sizes, statistics)


class _FrameFile:
    """The frames of a shard, written as they come so that a shard of large frames never has to fit in memory."""

    def __init__(self, folder: Path, meta: StoreMeta) -> None:
        self.folder, self.meta = folder, meta
        self.ends, self.count = [0], 0
        self.file = (folder / ("frames.npy" if meta.codec == "raw" else "frames.bin")).open("wb")
        if meta.codec == "raw":
            self._header()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.meta.codec == "raw":
            end = self.file.tell()
            self._header()
            if self.file.tell() != end - self.count * int(np.prod(self.meta.frame)):
                raise RuntimeError(
                    f"{self.file.name}: the .npy header grew with {self.count} frames: use smaller shards"
                )
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        if kind is None and self.meta.codec != "raw":
            _save(self.folder / "frames_index.npy", np.array(self.ends, "<i8"))

    def add(self, pixels: NDArray[np.uint8]) -> None:
        self.count += len(pixels)
        if self.meta.codec == "raw":
            self.file.write(np.ascontiguousarray(pixels).data)
            return
        for frame in pixels:
            self.ends.append(self.ends[-1] + self.file.write(encode_frame(frame, self.meta.codec).data))

    def _header(self) -> None:
        """NumPy pads the header for a growing first axis, so it can be written again over the first one."""
        self.file.seek(0)
        shape = (self.count, *self.meta.frame)
        npy.write_array_header_1_0(self.file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def write_meta(path: Path, meta: StoreMeta) -> None:
    """Replace `meta.json` at once: a reader sees the old one or the new one, whole."""
    temporary = path / "meta.json.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(asdict(meta), file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path / "meta.json")
    _sync_folder(path)


def _continue(found: StoreMeta, wanted: StoreMeta, path: Path) -> StoreMeta:
    """The store's own meta when `wanted` describes the same recording; when more episodes are asked for, that many."""
    for name, old, new in _differences(found, wanted):
        raise ValueError(
            f"{path} was recorded with {name} = {old!r}, now it is {new!r}: "
            "use the same settings, or another --out folder"
        )
    count, per_shard = wanted.provenance.episodes, wanted.provenance.shard_episodes
    for shard in found.shards:
        planned = min(per_shard, count - int(shard.name) * per_shard)
        if per_shard and shard.episodes != planned:
            raise ValueError(
                f"{path} has {shard.episodes} episodes in shard {shard.name}, "
                f"a store of {count} has {max(planned, 0)} there: "
                f"ask for {found.provenance.episodes} episodes as before, or use another --out folder"
            )
    return replace(found, provenance=replace(found.provenance, episodes=count))


def _differences(found: StoreMeta, wanted: StoreMeta) -> Iterator[tuple[str, Any, Any]]:
    ignored = {"versions", "git_revision", "created", "episodes"}
    old, new = (json.loads(json.dumps(asdict(meta))) for meta in (found, wanted))
    for key in new:
        if key in ("shards", "statistics"):
            continue
        if key not in ("provenance", "settings"):
            if old[key] != new[key]:
                yield key, old[key], new[key]
            continue
        for inner in sorted({*old[key], *new[key]} - (ignored if key == "provenance" else set())):
            if old[key].get(inner) != new[key].get(inner):
                yield f"{key}.{inner}", old[key].get(inner), new[key].get(inner)


def lock_folder(path: Path, mend: str = "wait for it, or use another --out folder") -> int:
    """Lock a folder, made if need be, against a second process that would write into it; closing the handle unlocks.

    Raises RuntimeError where another process holds it; mend: what to do then.
    """
    path.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise RuntimeError(f"{path} is being written by another process: {mend}") from error
    return handle


def _columns(episode: Episode) -> dict[str, NDArray[Any]]:
    return {"action": episode.actions, "state": episode.states, **episode.extra}


def _check_episode(episode: Episode, meta: StoreMeta, where: str) -> None:
    length = len(episode.actions)
    if length < 1:
        raise ValueError(f"{where}: it has no actions; an episode needs at least one")
    if episode.pixels.dtype != np.uint8 or episode.pixels.shape != (length + 1, *meta.frame):
        raise ValueError(
            f"{where}: pixels are {episode.pixels.dtype} {episode.pixels.shape}, "
            f"for {length} actions they must be uint8 {(length + 1, *meta.frame)}"
        )
    shapes: dict[str, tuple[int, ...]] = {"action": (length, meta.action_dim), "state": (length + 1, meta.state_dim)}
    shapes |= {c.name: (length + (c.per == "frame"), *c.shape) for c in meta.columns}
    columns = _columns(episode)
    if set(columns) != set(shapes):
        raise ValueError(f"{where}: it has columns {sorted(columns)}, the store has {sorted(shapes)}")
    for key, shape in shapes.items():
        array = np.asarray(columns[key])
        if array.shape != shape:
            raise ValueError(f"{where}: {key} has shape {array.shape}, it must be {shape}")
        bad = ~np.isfinite(array)
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(f"{where}: {key} holds {array[at]} at {at}; leave such an episode out or cut it before")
    known = len(meta.provenance.policies)
    if not 0 <= episode.policy < max(known, 1):
        raise ValueError(f"{where}: policy {episode.policy} is not one of the {known} policies of the provenance")


def _save(file: Path, array: NDArray[Any]) -> None:
    with file.open("wb") as handle:
        np.save(handle, array, allow_pickle=False)
        handle.flush()
        os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
