"""One recording in many stores, ours and the peers', and how each of them reads windows: rows of `STORES`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from lewm.bench.measure import wait
from lewm.data.codec import Codec, encode_frame
from lewm.data.exporters.exporter import ExportConfig, episodes_of
from lewm.data.exporters.run import export_store
from lewm.data.importers.recording import extra
from lewm.data.meta import Statistics
from lewm.data.store import Store
from lewm.data.windows import Resident, Windows, WindowSpec
from lewm.data.writer import StoreWriter

SHARD_EPISODES = 10


@dataclass(frozen=True)
class Picks:
    """Which windows to read, B of them."""

    index_B: NDArray[np.int64]
    """Window numbers."""
    episode_B: NDArray[np.int64]
    start_B: NDArray[np.int64]
    """First raw frame within the episode."""


Clips = tuple[NDArray[np.uint8], NDArray[np.float32]]
"""Pictures (B, T, Y, X, C) and blocks of actions (B, T - 1, A)."""
Read = Callable[[Picks], Any]
"""Reads windows; what comes back is `Clips`, or a `Batch` of ours."""


@dataclass(frozen=True)
class Kind:
    """One way to keep and read a recording."""

    store: str
    codec: str
    make: Callable[[Store, Path], Path]
    """Write it from an unencoded native store; returns the file or folder. ImportError where a library is missing."""
    open: Callable[[Path, Store, WindowSpec, torch.device], Read]
    """Open it for windows of a shape; the native store says where episodes begin."""
    resident: Literal["disk", "ram", "gpu"] = "disk"
    lossy: bool = False


def make_native(store: Store, path: Path, codec: Codec) -> Path:
    """The same episodes with frames in another codec; the store itself where it has that one."""
    if store.meta.codec == codec:
        return store.path
    meta = replace(store.meta, codec=codec, shards=(), statistics=Statistics())
    with StoreWriter(path, meta) as writer:
        everything = episodes_of(store, ExportConfig("native"), lambda done, total: None)
        writer.write((episode for _, episode in everything), SHARD_EPISODES)
    return path


def open_native(path: Path, store: Store, spec: WindowSpec, device: torch.device, resident: Resident) -> Read:
    """Our reader, as training uses it."""
    home = device if resident == "gpu" else torch.device("cpu")
    windows = Windows(Store.open(path), spec, resident=resident, device=home)

    def read(picks: Picks) -> Any:
        batch = windows.batch(picks.index_B)
        wait(home)
        return batch

    return read


def make_hdf5(store: Store, path: Path, codec: Literal["none", "blosc"]) -> Path:
    """stable-worldmodel's file: every column in chunks of one row; released ones are compressed by Blosc."""
    h5py = extra("h5py", "h5py")
    filters = {} if codec == "none" else dict(extra("hdf5plugin", "hdf5plugin").Blosc(cname="zstd"))
    meta, path = store.meta, path.with_suffix(".h5")
    with h5py.File(path, "w", libver="latest") as file:
        for name, entry, dtype in (("pixels", meta.frame, np.uint8), ("action", (meta.action_dim,), np.float32)):
            file.create_dataset(name, (store.num_frames, *entry), dtype, chunks=(1, *entry), **filters)
        for episode, first in enumerate(store.episodes["frame_offset"].tolist()):
            pixels, actions = store.pixels(episode), store.actions(episode)
            file["pixels"][first : first + len(pixels)] = pixels
            file["action"][first : first + len(actions)] = actions
    return path


def open_hdf5(path: Path, store: Store, spec: WindowSpec, device: torch.device) -> Read:
    """stable-worldmodel's way: `frame_skip` frames for each one of a window in one piece, then every one of those.

    It is the fast one: h5py reads a range with a step a hundred times slower still. Options of the file are theirs.
    """
    file = extra("h5py", "h5py").File(path, "r", swmr=True, rdcc_nbytes=256 * 1024**2)
    pixels, actions, first = file["pixels"], file["action"], store.episodes["frame_offset"]
    rows = spec.length * spec.frame_skip

    def read(picks: Picks) -> Clips:
        starts = (first[picks.episode_B] + picks.start_B).tolist()
        return (
            np.stack([pixels[at : at + rows][:: spec.frame_skip] for at in starts]),
            _blocks(np.stack([actions[at : at + spec.span] for at in starts]), spec),
        )

    return read


def make_lerobot(store: Store, path: Path) -> Path:
    """A LeRobot v3 data set with its default video codec."""
    return export_store(store, path, ExportConfig("lerobot", "av1"))


def open_lerobot(path: Path, store: Store, spec: WindowSpec, device: torch.device) -> Read:
    """LeRobot's way: seek to the key frame before the window and decode up to its last frame; actions are in memory."""
    import av

    parquet = extra("pyarrow.parquet", "pyarrow")
    (key,) = (folder.name for folder in (path / "videos").iterdir())
    table = parquet.read_table(path / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pydict()
    number_E, begin_E = table[f"videos/{key}/file_index"], table[f"videos/{key}/from_timestamp"]
    files = sorted((path / "videos" / key).rglob("*.mp4"))
    containers = [av.open(str(file)) for file in files]
    actions = [store.actions(episode) for episode in range(store.num_episodes)]

    def pictures(episode: int, start: int) -> NDArray[np.uint8]:
        container = containers[number_E[episode]]
        stream = container.streams.video[0]
        assert stream.time_base is not None and stream.average_rate is not None
        first = round(begin_E[episode] * stream.average_rate) + start
        wanted = range(first, first + spec.span + 1, spec.frame_skip)
        container.seek(int(Fraction(first) / stream.average_rate / stream.time_base), stream=stream)
        found = []
        for frame in container.decode(stream):
            assert frame.pts is not None
            number = round(frame.pts * stream.time_base * stream.average_rate)
            if number in wanted:
                found.append(frame.to_ndarray(format="rgb24"))
            if number >= wanted[-1]:
                break
        return np.stack(found)

    def read(picks: Picks) -> Clips:
        places = list(zip(picks.episode_B.tolist(), picks.start_B.tolist()))
        blocks = np.stack([actions[episode][start : start + spec.span] for episode, start in places])
        return np.stack([pictures(*place) for place in places]), _blocks(blocks, spec)

    return read


def make_lance(store: Store, path: Path) -> Path:
    """stable-worldmodel's table: a row per frame, pictures as JPEG."""
    lance, pa = _lance(), extra("pyarrow", "pyarrow")
    schema = pa.schema([("pixels", pa.binary()), ("action", pa.list_(pa.float32(), store.meta.action_dim))])

    def batches() -> Iterator[Any]:
        for episode in range(store.num_episodes):
            frames = [encode_frame(frame, "jpeg").tobytes() for frame in store.pixels(episode)]
            actions = np.concatenate([store.actions(episode), np.full((1, store.meta.action_dim), np.nan, np.float32)])
            values = pa.FixedSizeListArray.from_arrays(pa.array(actions.reshape(-1)), store.meta.action_dim)
            yield pa.record_batch([pa.array(frames, pa.binary()), values], schema=schema)

    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), str(path))
    return path


def open_lance(path: Path, store: Store, spec: WindowSpec, device: torch.device) -> Read:
    """Only the rows that are needed, in one request per column and batch."""
    dataset = _lance().dataset(str(path))
    first = store.episodes["frame_offset"]

    def read(picks: Picks) -> Clips:
        start_B = first[picks.episode_B] + picks.start_B
        frames = (start_B[:, None] + np.arange(0, spec.span + 1, spec.frame_skip)).reshape(-1)
        encoded = dataset.take(frames.tolist(), columns=["pixels"])["pixels"].to_pylist()
        pictures = np.stack([_decode(each) for each in encoded])
        steps = (start_B[:, None] + np.arange(spec.span)).reshape(-1)
        column = dataset.take(steps.tolist(), columns=["action"])["action"].combine_chunks()
        actions = column.flatten().to_numpy().reshape(len(start_B), spec.span, -1)
        return pictures.reshape(len(start_B), spec.length, *pictures.shape[1:]), _blocks(actions, spec)

    return read


def _lance() -> Any:
    """Its library, which no extra installs: it is larger than everything else together."""
    try:
        import lance
    except ImportError as error:
        raise ImportError("pylance is not installed: pip install pylance") from error
    return lance


def _decode(encoded: bytes) -> NDArray[np.uint8]:
    picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


def _blocks(actions: NDArray[np.float32], spec: WindowSpec) -> NDArray[np.float32]:
    return actions.reshape(len(actions), spec.length - 1, -1)


def _native(codec: Codec, resident: Literal["disk", "ram", "gpu"] = "disk") -> Kind:
    make, open = partial(make_native, codec=codec), partial(open_native, resident=resident)
    return Kind("native", codec, make, open, resident, lossy=codec == "jpeg")


STORES: tuple[Kind, ...] = (
    _native("raw"),
    _native("raw", "ram"),
    _native("raw", "gpu"),
    _native("png"),
    _native("webp"),
    _native("jpeg"),
    Kind("hdf5", "none", partial(make_hdf5, codec="none"), open_hdf5),
    Kind("hdf5", "blosc", partial(make_hdf5, codec="blosc"), open_hdf5),
    Kind("lance", "jpeg", make_lance, open_lance, lossy=True),
    Kind("lerobot", "av1", make_lerobot, open_lerobot, lossy=True),
)
"""What is compared; the first one is what the others are measured against."""
