"""One shard opened for reading: memory-mapped, and checked against `meta.json` file by file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.codec import decode_frame
from lewm.data.meta import ShardMeta, StoreMeta, array_files


@dataclass(frozen=True)
class Shard:
    """A checked, memory-mapped shard; `blob` holds the encoded frames, None for codec raw."""

    path: Path
    arrays: dict[str, NDArray[Any]]
    blob: NDArray[np.uint8] | None

    def frames(self, rows: slice | NDArray[np.int64], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """Copies of the frames at `rows` (n, Y, X, C)."""
        if self.blob is None:
            return np.array(self.arrays["frames.npy"][rows])
        if isinstance(rows, slice):
            rows = np.arange(rows.start, rows.stop, rows.step)
        out = np.empty((len(rows), *shape), np.uint8)
        for slot, row in enumerate(rows):
            self.decode(int(row), out[slot])
        return out

    def decode(self, row: int, out: NDArray[np.uint8]) -> None:
        """Decode one frame into `out` (Y, X, C)."""
        index = self.arrays["frames_index.npy"]
        assert self.blob is not None
        try:
            decode_frame(self.blob[index[row] : index[row + 1]], out)
        except ValueError as error:
            raise ValueError(
                f"{self.path / 'frames.bin'}: frame {row} (byte {index[row]}) {error}; copy or record this shard again"
            ) from error


def open_shard(path: Path, meta: StoreMeta, shard: ShardMeta) -> Shard:
    """Open one shard of the store at `path`; FileNotFoundError or ValueError names the file that is not as listed."""
    folder = path / "shards" / shard.name
    expected = array_files(meta, shard)
    for name in [*expected, *([] if meta.codec == "raw" else ["frames.bin"])]:
        _check_size(folder / name, shard.bytes.get(name))
    arrays = {name: _open_array(folder / name, shape, dtype) for name, (shape, dtype) in expected.items()}
    _check_episodes(folder / "episodes.npy", arrays["episodes.npy"], shard)
    blob = None
    if meta.codec != "raw":
        blob = np.memmap(folder / "frames.bin", np.uint8, mode="r")
        index = arrays["frames_index.npy"]
        if index[0] != 0 or index[-1] != len(blob) or np.any(np.diff(index) <= 0):
            raise ValueError(
                f"{folder / 'frames_index.npy'} does not rise from 0 to {len(blob)}: copy or record this shard again"
            )
    return Shard(folder, arrays, blob)


def _check_size(file: Path, size: int | None) -> None:
    mend = "copy or record this shard again"
    if size is None:
        raise ValueError(f"{file} is not listed in meta.json; {mend}")
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing, meta.json lists it with {size} bytes; {mend}")
    found = file.stat().st_size
    if found < size:
        raise ValueError(f"{file} is truncated at byte {found}, meta.json says {size} bytes; {mend}")
    if found > size:
        raise ValueError(f"{file} has {found} bytes, meta.json says {size}; {mend}")


def _open_array(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> NDArray[Any]:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} is not a readable .npy file ({error}); copy or record this shard again") from error
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"{file} has shape {array.shape} and dtype {array.dtype}, meta.json says {shape} and {dtype}; "
            "copy or record this shard again"
        )
    return array.view(np.ndarray)


def _check_episodes(file: Path, episodes: NDArray[Any], shard: ShardMeta) -> None:
    length = episodes["length"].astype(np.int64)
    first_action = np.cumsum(length) - length
    wrong = (
        (length < 1)
        | (episodes["action_offset"] != first_action)
        | (episodes["frame_offset"] != first_action + np.arange(len(length)))
    )
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"{file}: episode {row} has impossible values {episodes[row]}; copy or record this shard again"
        )
    if int(length.sum()) + len(length) != shard.frames:
        raise ValueError(f"{file} adds up to {int(length.sum()) + len(length)} frames, meta.json says {shard.frames}")


def verify_values(opened: Shard, meta: StoreMeta, shard: ShardMeta) -> None:
    """Read every value and decode every frame; ValueError names the file and the position of the first bad one."""
    for name in ("action", "state", *(column.name for column in meta.columns)):
        values = opened.arrays[f"{name}.npy"]
        bad = ~np.isfinite(values)
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"{opened.path / name}.npy holds {values[at]} at {at}: record the shard again without that episode"
            )
    if meta.codec != "raw":
        out = np.empty(meta.frame, np.uint8)
        for row in range(shard.frames):
            opened.decode(row, out)
