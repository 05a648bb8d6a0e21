"""`meta.json` of a store: frozen dataclasses, read and checked."""

import json
import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lewm.data.codec import Codec

FORMAT = "lewm-store"
VERSION = 1
UNKNOWN_SUCCESS = 255

EPISODE = np.dtype(
    [
        ("frame_offset", "<i8"),
        ("action_offset", "<i8"),
        ("length", "<i4"),
        ("seed", "<i8"),
        ("policy", "<i2"),
        ("success", "u1"),
    ]
)


@dataclass(frozen=True)
class Column:
    """One extra float column, beside actions and states."""

    name: str
    """Name, also the file name without `.npy`."""
    per: Literal["frame", "action"]
    """Whether an episode of T actions has T + 1 entries (frame) or T (action)."""
    shape: tuple[int, ...] = ()
    """Shape of one entry."""
    dtype: Literal["float32", "float64"] = "float32"
    """Number type on disk."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name in (
            "action",
            "state",
            "pixel",
            "frames",
            "frames_index",
            "episodes",
        ):
            raise ValueError(f"column name {self.name!r} is reserved or no identifier: choose another name")


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of one column, one number per flattened entry."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of everything recorded, per entry; pixels per channel, scaled to [0, 1]."""

    action_mean: tuple[float, ...] = ()
    action_std: tuple[float, ...] = ()
    state_mean: tuple[float, ...] = ()
    state_std: tuple[float, ...] = ()
    pixel_mean: tuple[float, ...] = ()
    pixel_std: tuple[float, ...] = ()
    columns: dict[str, Moments] = field(default_factory=dict)
    """Of the extra columns."""


@dataclass(frozen=True)
class ShardMeta:
    """What `meta.json` knows of one shard."""

    name: str
    """Folder name under `shards/`."""
    episodes: int
    """Number of episodes in it."""
    frames: int
    """Number of frames in it; it has `frames - episodes` actions."""
    bytes: dict[str, int]
    """File name -> size in bytes: how a truncated file is found."""
    statistics: Statistics
    """Of this shard alone."""


@dataclass(frozen=True)
class PolicyMeta:
    """A policy that recorded episodes; `episodes["policy"]` indexes the tuple of these."""

    name: str
    weight: float
    noise: float


@dataclass(frozen=True)
class Provenance:
    """Where the episodes come from, enough to record them again."""

    policies: tuple[PolicyMeta, ...]
    """Who acted."""
    seed: int = 0
    """Seed of the whole recording."""
    episodes: int = 0
    """Episodes that were asked for; the store holds fewer while the recording is unfinished."""
    steps: int = 0
    """Environment steps per episode; 0 when they differ."""
    shard_episodes: int = 0
    """Episodes per shard."""
    source: str = "collect"
    """`collect`, or the format and place the episodes were imported from."""
    versions: dict[str, str] = field(default_factory=dict)
    """Package -> version at recording time."""
    renderer: str = ""
    """Fingerprint of the renderer: the same state gives the same pixels only under the same fingerprint."""
    git_revision: str | None = None
    """Revision of this repository, when it was run from one."""
    created: str = ""
    """ISO time of the first write."""


@dataclass(frozen=True)
class StoreMeta:
    """The content of `meta.json`."""

    task: str
    """Name of the task, as `envs.make` takes it."""
    settings: dict[str, Any]
    """Settings that rebuild the task."""
    frame: tuple[int, int, int]
    """Y, X, C: C = 3 for every camera, one camera after the other."""
    codec: Codec
    """How frames are stored."""
    action_dim: int
    """Numbers in one action."""
    action_low: tuple[float, ...]
    """Smallest action."""
    action_high: tuple[float, ...]
    """Largest action."""
    state_names: tuple[str, ...]
    """Names of the entries of a state; empty when no states were recorded."""
    angle_names: tuple[str, ...]
    """Those state entries that are angles, in radians."""
    control_dt: float
    """Seconds between two actions."""
    provenance: Provenance
    """Where it comes from."""
    columns: tuple[Column, ...] = ()
    """Extra columns."""
    cameras: tuple[str, ...] = ("main",)
    """Names of the cameras, in the order of the channels; all take pictures of one size."""
    shards: tuple[ShardMeta, ...] = ()
    """Complete shards, sorted by name."""
    statistics: Statistics = Statistics()
    """Over all shards."""
    format: str = FORMAT
    """Name of the format."""
    version: int = VERSION
    """Version of the format."""

    def __post_init__(self) -> None:
        count = len(self.cameras)
        if len(set(self.cameras)) != count or not all(name.isidentifier() for name in self.cameras):
            raise ValueError(f"cameras are {self.cameras}: give each its own name of letters, digits and _")
        if len(self.frame) != 3 or not count or self.frame[2] != 3 * count or min(self.frame) < 1:
            raise ValueError(f"frame is {self.frame}, with {count} cameras it must be (height, width, {3 * count})")
        if not len(self.action_low) == len(self.action_high) == self.action_dim >= 1:
            raise ValueError(
                f"action_dim is {self.action_dim} with {len(self.action_low)} lower and {len(self.action_high)} "
                "upper bounds: it must be at least 1 and the bounds as many"
            )
        if not all(map(math.isfinite, (*self.action_low, *self.action_high))):
            raise ValueError(f"action bounds {self.action_low}..{self.action_high} must be finite numbers")
        unknown = set(self.angle_names) - set(self.state_names)
        if unknown:
            raise ValueError(f"angle_names {sorted(unknown)} are not among the state_names {self.state_names}")
        names = [column.name for column in self.columns]
        if len(set(names)) != len(names):
            raise ValueError(f"two extra columns have the same name: {names}")

    @property
    def state_dim(self) -> int:
        """Numbers in one state."""
        return len(self.state_names)


def array_files(meta: StoreMeta, shard: ShardMeta) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Every `.npy` file of a shard with the shape and dtype it must have."""
    actions = shard.frames - shard.episodes
    files: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        "episodes.npy": ((shard.episodes,), EPISODE),
        "action.npy": ((actions, meta.action_dim), np.dtype("<f4")),
        "state.npy": ((shard.frames, meta.state_dim), np.dtype("<f4")),
    }
    if meta.codec == "raw":
        files["frames.npy"] = ((shard.frames, *meta.frame), np.dtype("u1"))
    else:
        files["frames_index.npy"] = ((shard.frames + 1,), np.dtype("<i8"))
    for column in meta.columns:
        rows = shard.frames if column.per == "frame" else actions
        files[f"{column.name}.npy"] = ((rows, *column.shape), np.dtype(column.dtype))
    return files


def read_meta(path: Path) -> StoreMeta:
    """Read and check `meta.json` of the store at `path`.

    Raises FileNotFoundError where there is no store, ValueError when it is damaged or of a future version.
    """
    file = path / "meta.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} is not a lewm store: it has no meta.json; "
            "record one with `lewm collect` or bring one with `lewm import`"
        )
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not readable JSON ({error}); restore it or record the store again") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
        raise ValueError(
            f"{file} has format {found!r}, not {FORMAT!r}: this is not a lewm store; use `lewm import` for others"
        )
    version = raw.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise ValueError(f"{file} has format version {version!r}, this lewm reads 1..{VERSION}: install a newer lewm")
    return _parse_meta(raw, file)


def _parse_meta(raw: dict[str, Any], file: Path) -> StoreMeta:
    from pydantic import ValidationError

    try:
        return _meta_adapter().validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "meta"
        raise ValueError(f"{file}: {where}: {first['msg']}; restore the file or record the store again") from error


@cache
def _meta_adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(StoreMeta)
