"""Windows: what training reads. One is T frames of an episode, `frame_skip` apart, with the actions between them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm.data.features import Features
from lewm.data.proprio import measured, read_proprio
from lewm.data.stacking import channels_first, history_index
from lewm.data.stacking import stack_frames as stack_frames
from lewm.data.store import Store

Resident = Literal["auto", "disk", "ram", "gpu"]


@dataclass(frozen=True)
class Batch:
    """B windows of T frames."""

    pixels_BTCYX: Tensor
    """uint8, C = 3 * cameras * frame_stack, oldest frame first in the channels; in channels-last memory. C = 0 where
    cached features were read in place of pictures."""
    action_BTA: Tensor
    """float32, T - 1 blocks of A = frame_skip * action_dim raw actions; block t leaves frame t."""
    state_BTS: Tensor
    """float32, the states at the T frames."""
    index_B: Tensor
    """int64, window numbers."""
    proprio_BTP: Tensor | None = None
    """float32, what `WindowSpec.proprio` names at the T frames; None where it names nothing."""
    feature_BTPKD: Tensor | None = None
    """Cached features of the P = frame_stack * cameras pictures of every frame, oldest first, as they lie on disk."""


@dataclass(frozen=True)
class WindowSpec:
    """Shape of a window."""

    length: int
    """Frames T per window."""
    frame_skip: int = 5
    """Raw environment steps between two frames of a window."""
    frame_stack: int = 1
    """Raw frames stacked into the channels of each frame: oldest first, newest last."""
    stack_stride: int = 1
    """Raw environment steps between two stacked frames; before an episode's first frame that frame is repeated."""
    proprio: tuple[str, ...] = ()
    """State entries and extra columns that are read as proprioception."""

    def __post_init__(self) -> None:
        for name in ("length", "frame_skip", "frame_stack", "stack_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")

    @property
    def span(self) -> int:
        """Raw steps from the first to the last frame of a window."""
        return (self.length - 1) * self.frame_skip


class Windows:
    """All windows of some episodes of a store; window numbers count every raw start frame, episode by episode.

    `resident` says where frames are read from: `disk` (memory map), `ram`, `gpu` (the store is on `device`, nothing is
    copied per batch), or `auto`, the fastest that fits in half of the free memory. The choice made is in `.resident`.
    features: cached features that batches bring along. pictures: whether the pictures are read (too).
    Raises ValueError for unknown episodes, for episodes too short for one window, and for `gpu` without a CUDA device.
    """

    def __init__(
        self,
        store: Store,
        spec: WindowSpec,
        episodes: NDArray[np.int64] | None = None,
        resident: Resident = "auto",
        device: torch.device | str = "cpu",
        features: Features | None = None,
        pictures: bool = True,
    ) -> None:
        self.store, self.spec, self.device = store, spec, torch.device(device)
        self.features, self.pictures = features, pictures
        self.episodes = np.arange(store.num_episodes) if episodes is None else np.asarray(episodes, np.int64)
        _check_episodes(store, self.episodes)
        rows = store.episodes[self.episodes]
        length = rows["length"].astype(np.int64)
        counts = np.maximum(length - spec.span + 1, 0)
        if counts.sum() == 0:
            longest = int(length.max(initial=0))
            raise ValueError(
                f"no episode is long enough: a window of {spec.length} frames, frame_skip {spec.frame_skip}, needs "
                f"{spec.span} actions, the longest episode has {longest}; shorten the window or record longer episodes"
            )
        self._last_window = np.cumsum(counts)
        self._stored_first = rows["frame_offset"].astype(np.int64)
        self._first_frame = np.cumsum(length + 1) - (length + 1)
        self._first_action = np.cumsum(length) - length
        frame_bytes = int(np.prod(store.meta.frame)) * pictures + (features.meta.frame_bytes if features else 0)
        self.resident = _choose(resident, int((length + 1).sum()) * frame_bytes, self.device)
        home = self.device if self.resident == "gpu" else torch.device("cpu")
        entries = measured(store.meta, spec.proprio)
        self._actions = _gather(store.actions, self.episodes).to(home)
        self._states = _gather(store.states, self.episodes).to(home)
        self._proprio = None
        if entries:
            self._proprio = _gather(lambda episode: read_proprio(store, entries, episode), self.episodes).to(home)
        held = self.resident != "disk"
        self._frames = _load_frames(store, self.episodes, home) if held and pictures else None
        self._features = _load_features(store, self.episodes, features, home) if held and features else None

    def __len__(self) -> int:
        return int(self._last_window[-1])

    def locate(self, index_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Episode id (in the store) and first raw frame within that episode, of each window."""
        slot_B, start_B = self._slots(np.asarray(index_B, np.int64))
        return self.episodes[slot_B], start_B

    def batch(self, index_B: NDArray[np.int64]) -> Batch:
        """Read windows `index_B` (0..len - 1) onto the device. Raises IndexError for a number outside."""
        index_B = np.array(index_B, np.int64)
        spec, (slot_B, start_B) = self.spec, self._slots(index_B)
        first_B = self._first_frame[slot_B]
        frame_BT = (first_B + start_B)[:, None] + np.arange(spec.length) * spec.frame_skip
        action_BT = (self._first_action[slot_B] + start_B)[:, None] + np.arange(spec.span)
        index_BTK = history_index(frame_BT, first_B[:, None], spec.frame_stack, spec.stack_stride)
        width_A = spec.frame_skip * self.store.meta.action_dim
        action_BTA = _take(self._actions, action_BT).reshape(len(index_B), spec.length - 1, width_A)
        return Batch(
            pixels_BTCYX=self._read_pixels(slot_B, start_B, index_BTK),
            action_BTA=self._send(action_BTA),
            state_BTS=self._send(_take(self._states, frame_BT)),
            index_B=self._send(torch.from_numpy(index_B)),
            proprio_BTP=None if self._proprio is None else self._send(_take(self._proprio, frame_BT)),
            feature_BTPKD=self._read_features(
                index_BTK + (self._stored_first[slot_B] - first_B)[:, None, None], index_BTK
            ),
        )

    def _slots(self, index_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if index_B.size and not 0 <= index_B.min() <= index_B.max() < len(self):
            raise IndexError(f"window {index_B.min()}..{index_B.max()} is outside 0..{len(self) - 1}")
        slot_B = np.searchsorted(self._last_window, index_B, side="right")
        before_B = np.where(slot_B > 0, self._last_window[slot_B - 1], 0)
        return slot_B, index_B - before_B

    def _read_pixels(
        self, slot_B: NDArray[np.int64], start_B: NDArray[np.int64], index_BTK: NDArray[np.int64]
    ) -> Tensor:
        if not self.pictures:
            shape = (*index_BTK.shape[:2], 0, *self.store.meta.frame[:2])
            return torch.empty(shape, dtype=torch.uint8, device=self.device)
        held = self._frames
        pixels_BTKYXC = self._read_disk(slot_B, start_B) if held is None else _take(held, index_BTK)
        return channels_first(self._send(pixels_BTKYXC).unbind(2))

    def _read_features(self, stored_BTK: NDArray[np.int64], held_BTK: NDArray[np.int64]) -> Tensor | None:
        """Of frames by their number in the store, and among the frames that are held in memory."""
        if self.features is None:
            return None
        if self._features is None:
            found = _read_rows(self.features, stored_BTK.reshape(-1), self.device.type == "cuda")
            found = found.unflatten(0, stored_BTK.shape)
        else:
            found = _take(self._features, held_BTK)
        return self._send(found.flatten(2, 3))

    def _read_disk(self, slot_B: NDArray[np.int64], start_B: NDArray[np.int64]) -> Tensor:
        spec, first_B = self.spec, self._stored_first[slot_B]
        shape = (len(slot_B), spec.length, spec.frame_stack, *self.store.meta.frame)
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        out = pixels.numpy()
        for b, (first, start) in enumerate(zip(first_B.tolist(), start_B.tolist())):
            for k in range(spec.frame_stack):
                newest = start - (spec.frame_stack - 1 - k) * spec.stack_stride
                repeats = min(max(-(newest // spec.frame_skip), 0), spec.length)  # frames before the episode's first
                for t in range(repeats):
                    self.store.read_frames(first, 1, out[b, t : t + 1, k])
                if repeats < spec.length:
                    self.store.read_frames(
                        first + newest + repeats * spec.frame_skip, spec.frame_skip, out[b, repeats:, k]
                    )
        return pixels

    def _send(self, x: Tensor) -> Tensor:
        return x if x.device == self.device else x.to(self.device, non_blocking=True)


def _take(rows: Tensor, index: NDArray[np.int64]) -> Tensor:
    """Rows at `index` of any shape, by one index_select."""
    flat = torch.from_numpy(np.ascontiguousarray(index).reshape(-1)).to(rows.device, non_blocking=True)
    return rows.index_select(0, flat).reshape(*index.shape, *rows.shape[1:])


def _check_episodes(store: Store, episodes: NDArray[np.int64]) -> None:
    if episodes.ndim != 1 or len(episodes) == 0:
        raise ValueError(f"episodes has shape {episodes.shape}: give a list of at least one episode id")
    if not 0 <= episodes.min() <= episodes.max() < store.num_episodes:
        raise ValueError(
            f"episodes {episodes.min()}..{episodes.max()}: the store has episodes 0..{store.num_episodes - 1}"
        )


def _gather(read: Callable[[int], NDArray[np.float32]], episodes: NDArray[np.int64]) -> Tensor:
    """Rows of all episodes, one episode after the other."""
    return torch.from_numpy(np.concatenate([read(episode) for episode in episodes.tolist()]))


def _load_frames(store: Store, episodes: NDArray[np.int64], home: torch.device) -> Tensor:
    count = store.episodes["length"][episodes].astype(np.int64) + 1
    frames = torch.empty((int(count.sum()), *store.meta.frame), dtype=torch.uint8, device=home)
    at = 0
    for episode, rows in zip(episodes.tolist(), count.tolist()):
        target = frames[at : at + rows]
        if home.type == "cpu":
            store.read_frames(int(store.episodes["frame_offset"][episode]), 1, target.numpy())
        else:
            target.copy_(torch.from_numpy(store.pixels(episode)))
        at += rows
    return frames


def _load_features(store: Store, episodes: NDArray[np.int64], features: Features, home: torch.device) -> Tensor:
    rows = store.episodes[episodes]
    count = rows["length"].astype(np.int64) + 1
    held = torch.empty((int(count.sum()), *features.meta.row), dtype=getattr(torch, features.meta.dtype), device=home)
    at = 0
    for first, frames in zip(rows["frame_offset"].tolist(), count.tolist()):
        held[at : at + frames].copy_(_read_rows(features, np.arange(first, first + frames)))
        at += frames
    return held


def _read_rows(features: Features, frames: NDArray[np.int64], pin: bool = False) -> Tensor:
    """Features of frames (n,) by their number in the store."""
    shape, dtype = (len(frames), *features.meta.row), getattr(torch, features.meta.dtype)
    found = torch.empty(shape, dtype=dtype, pin_memory=pin)
    features.read(frames, found.numpy())
    return found


def _choose(resident: Resident, size: int, device: torch.device) -> Literal["disk", "ram", "gpu"]:
    if resident == "auto":
        if device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] // 2:
            return "gpu"
        return "ram" if size <= free_memory() // 2 else "disk"
    if resident == "gpu" and device.type != "cuda":
        raise ValueError(f"resident is 'gpu' but the device is {device}: choose a CUDA device, or auto, ram or disk")
    if resident not in ("disk", "ram", "gpu"):
        raise ValueError(f"resident is {resident!r}: choose one of auto, disk, ram, gpu")
    return resident


def free_memory() -> int:
    """Bytes of RAM that can still be taken: the kernel's MemAvailable, else half of what the machine has."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def batch_indices(seed: int, step: int, num_windows: int, batch: int) -> NDArray[np.int64]:
    """Window numbers (batch,) that training reads at `step` (from 0), a function of its arguments only.

    Steps walk through one permutation of all windows per epoch, without gaps: any `num_windows` consecutive positions
    starting at an epoch hold every window once. A batch may end one epoch and begin the next.
    """
    if num_windows < 1 or batch < 1 or step < 0:
        raise ValueError(f"num_windows {num_windows} and batch {batch} must be at least 1 and step {step} at least 0")
    position = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
    epoch, within = np.divmod(position, num_windows)
    parts = [_permutation(seed, int(e), num_windows)[within[epoch == e]] for e in np.unique(epoch)]
    return np.concatenate(parts)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_windows: int) -> NDArray[np.int64]:
    order = np.random.default_rng(np.random.SeedSequence((seed, epoch))).permutation(num_windows)
    order.flags.writeable = False
    return order
