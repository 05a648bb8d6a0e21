"""Cached features of a store's frames: what a frozen encoder gives, computed once and memory-mapped ever after.

    <store>/features/<key>/meta.json      which encoder, which preprocessing, how far every shard is
    <store>/features/<key>/00000.npy      (frames, pictures, tokens, width) of one shard

<key> is a hash of all that decides the features, so that two encoders, or one at two grids, lie side by side.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lewm.data.meta import ShardMeta
from lewm.data.store import Store
from lewm.schema import build, read_json, write_json

FORMAT = "lewm-features"
VERSION = 1
AGAIN = "run `lewm cache-features` again"
Dtype = Literal["float16", "float32"]


@dataclass(frozen=True)
class ShardFeatures:
    """How far one shard is."""

    name: str
    """Name of the store's shard."""
    source: str
    """Fingerprint of the shard that was encoded, see `fingerprint`."""
    frames: int
    """Frames in it."""
    done: int = 0
    """Frames whose features are safely on disk, from the first on."""


@dataclass(frozen=True)
class FeatureMeta:
    """The content of `meta.json`."""

    encoder: str
    """Where the encoder was, for people to read: a folder or a hub name."""
    key: dict[str, Any]
    """All that decides the features of a frame, as the encoder states it."""
    dtype: Dtype
    """Number type on disk."""
    pictures: int
    """Pictures per frame, one per camera."""
    tokens: int
    """Tokens per picture (K)."""
    width: int
    """Width of a token (D)."""
    shards: tuple[ShardFeatures, ...] = ()
    """Shards that were begun."""
    format: str = FORMAT
    version: int = VERSION

    @property
    def row(self) -> tuple[int, int, int]:
        """Shape of the features of one frame: pictures, tokens, width."""
        return self.pictures, self.tokens, self.width

    @property
    def frame_bytes(self) -> int:
        """Bytes per frame."""
        return int(np.prod(self.row)) * np.dtype(self.dtype).itemsize

    def shard(self, name: str) -> ShardFeatures | None:
        """The shard of that name, if it was begun."""
        return next((shard for shard in self.shards if shard.name == name), None)

    def with_shard(self, shard: ShardFeatures) -> "FeatureMeta":
        """The same with this shard's newest state."""
        others = [other for other in self.shards if other.name != shard.name]
        return replace(self, shards=tuple(sorted((*others, shard), key=lambda s: s.name)))


def folder_of(store: Store, key: dict[str, Any]) -> Path:
    """Where the features with this key lie, whether or not they do."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return store.path / "features" / name


def fingerprint(shard: ShardMeta) -> str:
    """Changes with the content of a shard: sizes of its files and statistics of every column and pixel channel."""
    return hashlib.sha256(json.dumps(asdict(shard), sort_keys=True).encode()).hexdigest()


def read_features_meta(folder: Path) -> FeatureMeta:
    """Read `meta.json`. Raises ValueError when it is damaged or of another version."""
    raw = read_json(folder / "meta.json")
    if not isinstance(raw, dict) or raw.get("format") != FORMAT or raw.get("version") != VERSION:
        raise ValueError(f"{folder / 'meta.json'} is not {FORMAT} {VERSION}: delete {folder} and {AGAIN}")
    return build(FeatureMeta, raw, str(folder / "meta.json"))


def write_features_meta(folder: Path, meta: FeatureMeta) -> None:
    """Replace `meta.json` at once."""
    write_json(asdict(meta), folder / "meta.json")


class Features:
    """The complete features of a store, memory-mapped. Frames are numbered over the whole store, as in `Store`.

    Raises ValueError where they do not belong to the store as it is now, or where some are missing.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.folder, self.meta = folder, read_features_meta(folder)
        self._arrays = [self._open(store, shard) for shard in store.meta.shards]
        self._first = np.cumsum([0, *(shard.frames for shard in store.meta.shards)])

    def _open(self, store: Store, shard: ShardMeta) -> NDArray[Any]:
        found, meta = self.meta.shard(shard.name), self.meta
        if found is None or (found.source == fingerprint(shard) and found.done < found.frames):
            done = 0 if found is None else found.done
            raise ValueError(
                f"{self.folder} has features of {done} of {shard.frames} frames in shard {shard.name} of {store.path}: "
                f"{AGAIN}, it goes on there"
            )
        if found.source != fingerprint(shard):
            raise ValueError(
                f"{self.folder} is stale: shard {shard.name} of {store.path} was recorded anew since; {AGAIN}"
            )
        path = self.folder / f"{shard.name}.npy"
        if not path.is_file():
            raise ValueError(f"{path} is missing, though meta.json names it: delete {self.folder} and {AGAIN}")
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}): delete {self.folder} and {AGAIN}") from error
        if array.shape != (shard.frames, *meta.row) or array.dtype != np.dtype(meta.dtype):
            raise ValueError(
                f"{path} holds {array.dtype} {array.shape} and not {meta.dtype} {(shard.frames, *meta.row)}: delete "
                f"{self.folder} and {AGAIN}"
            )
        return array

    def read(self, frames: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copy the features of frames (n,), in any order, into `out` (n, pictures, tokens, width)."""
        shard_F = np.searchsorted(self._first, frames, side="right") - 1
        for number in np.unique(shard_F):
            rows = np.flatnonzero(shard_F == number)
            out[rows] = self._arrays[number][frames[rows] - self._first[number]]


def other_caches(store: Store) -> list[FeatureMeta]:
    """What features there are beside the store, of any encoder."""
    folders = sorted(path.parent for path in (store.path / "features").glob("*/meta.json"))
    return [read_features_meta(folder) for folder in folders]
