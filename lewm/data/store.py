"""The native store: recorded episodes as memory-mapped columns in shards, described by one `meta.json`.

    <store>/meta.json
    <store>/shards/00000/{episodes,action,state,frames}.npy            codec raw
    <store>/shards/00000/{frames.bin, frames_index.npy, ...}           codec png, jpeg, webp

An episode of T actions has T + 1 frames and T + 1 states: `action[t]` leaves frame t and arrives at frame t + 1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.meta import StoreMeta, read_meta
from lewm.data.shard import Shard, open_shard, verify_values


class Store:
    """A validated, memory-mapped reader of the store at `path`; make one with `Store.open`.

    Reading is safe from several processes; pickling one passes its path, not its content.
    """

    path: Path
    meta: StoreMeta
    episodes: NDArray[Any]
    """Structured array (see EPISODE) over all shards; the offsets count over the whole store."""

    def __init__(self, path: Path, meta: StoreMeta, shards: Sequence[Shard]) -> None:
        self.path, self.meta, self._shards = path, meta, tuple(shards)
        frames = np.cumsum([0, *(shard.frames for shard in meta.shards)])
        counts = np.cumsum([0, *(shard.episodes for shard in meta.shards)])
        self._first_frame, self._first_episode = frames, counts
        parts = []
        for shard, first_frame, first_action in zip(shards, frames, frames - counts):
            part = np.array(shard.arrays["episodes.npy"])
            part["frame_offset"] += first_frame
            part["action_offset"] += first_action
            parts.append(part)
        self.episodes = np.concatenate(parts)

    @staticmethod
    def open(path: str | Path, verify: bool = False) -> "Store":
        """Open the store at `path`; sizes, shapes and offsets are always checked, every value too with `verify`.

        Raises FileNotFoundError or ValueError naming the file and the position.
        """
        path = Path(path)
        meta = read_meta(path)
        if not meta.shards:
            raise ValueError(
                f"{path} holds no complete shard yet: run the command that records it again, it goes on there"
            )
        store = Store(path, meta, [open_shard(path, meta, shard) for shard in meta.shards])
        if verify:
            for opened, shard in zip(store._shards, meta.shards):
                verify_values(opened, meta, shard)
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return Store.open, (self.path,)

    @property
    def num_episodes(self) -> int:
        """Number of complete episodes."""
        return len(self.episodes)

    @property
    def num_frames(self) -> int:
        """Number of frames in all episodes."""
        return int(self._first_frame[-1])

    def frames_in(self, episodes: NDArray[np.int64]) -> int:
        """Number of frames in some episodes."""
        return int((self.episodes["length"][episodes].astype(np.int64) + 1).sum())

    def pixels(
        self, episode: int, frames: slice | Sequence[int] | NDArray[np.int64] | None = None
    ) -> NDArray[np.uint8]:
        """Frames of one episode as a new uint8 array (T + 1, Y, X, C); `frames` selects some (ids in 0..T)."""
        shard, row = self._locate(episode)
        first, count = int(row["frame_offset"]), int(row["length"]) + 1
        if frames is None or isinstance(frames, slice):
            start, stop, step = (frames or slice(None)).indices(count)
            if step < 1:
                raise ValueError(f"frames has step {step}: only positive steps are read")
            return shard.frames(slice(first + start, first + max(start, stop), step), self.meta.frame)
        wanted = np.asarray(frames, np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < count:
            raise IndexError(
                f"frames {wanted.min()}..{wanted.max()} of episode {episode}: it has frames 0..{count - 1}"
            )
        return shard.frames(first + wanted, self.meta.frame)

    def actions(self, episode: int) -> NDArray[np.float32]:
        """Actions of one episode, float32 (T, a)."""
        return self._rows("action", "action", episode)

    def states(self, episode: int) -> NDArray[np.float32]:
        """States of one episode, float32 (T + 1, S)."""
        return self._rows("state", "frame", episode)

    def column(self, name: str, episode: int) -> NDArray[Any]:
        """An extra column of one episode, (T + 1, ...) or (T, ...) as its alignment says."""
        for column in self.meta.columns:
            if column.name == name:
                return self._rows(name, column.per, episode)
        raise ValueError(f"{self.path} has no column {name!r}: it has {[c.name for c in self.meta.columns]}")

    def extremes(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Smallest and largest value per flattened entry of `action`, `state` or an extra column, over the store."""
        if name not in ("action", "state", *(column.name for column in self.meta.columns)):
            raise ValueError(f"{self.path} has no column {name!r}: it has {[c.name for c in self.meta.columns]}")
        arrays = [shard.arrays[f"{name}.npy"] for shard in self._shards]
        flat = [array.reshape(len(array), -1) for array in arrays]
        return np.min([a.min(axis=0) for a in flat], axis=0), np.max([a.max(axis=0) for a in flat], axis=0)

    def read_frames(self, start_frame: int, step: int, out: NDArray[np.uint8]) -> None:
        """Copy `len(out)` frames, `step` apart, from global frame `start_frame` on into `out` (n, Y, X, C).

        They must lie in one episode; the caller keeps that promise (Windows does), here only the shard is found.
        """
        number = int(np.searchsorted(self._first_frame, start_frame, side="right")) - 1
        shard, first = self._shards[number], start_frame - int(self._first_frame[number])
        if shard.blob is None:
            np.copyto(out, shard.arrays["frames.npy"][first : first + (len(out) - 1) * step + 1 : step])
        else:
            for slot in range(len(out)):
                shard.decode(first + slot * step, out[slot])

    def _locate(self, episode: int) -> tuple[Shard, Any]:
        if not 0 <= episode < self.num_episodes:
            raise IndexError(f"episode {episode} is not in {self.path}: it has episodes 0..{self.num_episodes - 1}")
        number = int(np.searchsorted(self._first_episode, episode, side="right")) - 1
        shard = self._shards[number]
        return shard, shard.arrays["episodes.npy"][episode - int(self._first_episode[number])]

    def _rows(self, name: str, per: str, episode: int) -> NDArray[Any]:
        shard, row = self._locate(episode)
        first, count = int(row[f"{per}_offset"]), int(row["length"]) + (per == "frame")
        return np.array(shard.arrays[f"{name}.npy"][first : first + count])


def split_episodes(num_episodes: int, held_out: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split episode ids into (train, held out), both sorted; `held_out` is a fraction in [0, 1).

    Splitting by episode, never by window, keeps near-copies of held-out frames out of training. At least one episode is
    held out when `held_out` > 0, and at least one stays for training.
    """
    if not 0.0 <= held_out < 1.0:
        raise ValueError(f"held_out is {held_out}, it must be a fraction in [0, 1)")
    if num_episodes < 1 + (held_out > 0):
        raise ValueError(f"{num_episodes} episodes cannot be split with held_out={held_out}: record at least 2")
    count = min(max(round(num_episodes * held_out), int(held_out > 0)), num_episodes - 1)
    order = np.random.default_rng(seed).permutation(num_episodes)
    return np.sort(order[count:]), np.sort(order[:count])
