"""HDF5 of stable-worldmodel and LeWorldModel: one flat dataset per column, `ep_len` and `ep_offset` for the episodes.

Columns: `pixels` or `pixels.<camera>`, `action`, `state` or `proprio`, ...; `episode_idx` or `ep_idx` and `step_idx`
name episode and time of every row. A row's action leaves its frame; the last one of an episode is NaN, or stale.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.importers.arrays import Arrays, Entry, as_recording, first_of, span
from lewm.data.importers.hdf5 import entries_of, is_hdf5, open_hdf5
from lewm.data.importers.recording import Choice, Importer, Recording

INDEX = ("ep_len", "ep_offset")
EPISODE_NAMES = ("episode_idx", "ep_idx")


def recognises(path: Path) -> bool:
    """Such an HDF5 file, or a folder that holds one HDF5 file which is such."""
    file = _file(path)
    if not is_hdf5(file):
        return False
    try:
        with open_hdf5(file) as content:
            return all(name in content for name in INDEX)
    except ValueError:
        return False


def open_swm(path: Path, choice: Choice) -> Recording:
    """Open such a file; `ep_len` and `ep_offset` are checked against each other and against the rows."""
    file = _file(path)
    content = open_hdf5(file)
    missing = [name for name in INDEX if name not in content]
    if missing:
        raise ValueError(f"{file} has no {' and no '.join(missing)}; it has {', '.join(content) or 'nothing'}")
    lengths, starts = (np.asarray(content[name][:], np.int64) for name in INDEX)
    check_spans(file, lengths, starts)
    columns = {name: entry for name, entry in entries_of(content).items() if name not in INDEX}
    entries = {name: replace(entry, rows=int(lengths[0])) for name, entry in columns.items()}

    def check(episode: int) -> None:
        start, length = int(starts[episode]), int(lengths[episode])
        for name in EPISODE_NAMES:
            if name in entries:
                check_episode_ids(content[name], name, start, length)
        if "step_idx" in entries:
            check_steps(span(content["step_idx"], "step_idx", start, length))

    arrays = Arrays(
        file,
        len(lengths),
        entries,
        rows=lambda episode, name: span(content[name], name, int(starts[episode]), int(lengths[episode])),
        count=lambda episode, name: int(lengths[episode]),
        place=lambda episode: f"{file}, episode {episode}",
        check=check,
    )
    state = first_of(entries, "state", "proprio")
    recording = as_recording(arrays, choice, f"swm_hdf5 {file.name}", ("action",), state)
    return replace(recording, notes=_notes(columns, int(lengths.sum())))


def check_spans(file: Path, lengths: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
    """Raise ValueError unless every episode begins where the one before ends."""
    if not len(lengths):
        raise ValueError(f"{file} holds no episode: its ep_len is empty")
    if len(lengths) != len(starts):
        raise ValueError(f"{file}: ep_len counts {len(lengths)} episodes and ep_offset {len(starts)}")
    wrong = (lengths < 1) | (starts != np.cumsum(lengths) - lengths)
    if wrong.any():
        episode = int(np.argmax(wrong))
        raise ValueError(
            f"{file}, episode {episode}: ep_offset says it begins at row {starts[episode]} and ep_len that it has "
            f"{lengths[episode]} rows, but the episodes before it end at row {lengths[:episode].sum()}"
        )


def check_episode_ids(column: Any, name: str, start: int, length: int) -> None:
    """Raise ValueError unless rows of one episode, and no neighbouring row, bear one number."""
    first = max(start - 1, 0)
    around = np.asarray(column[first : start + length + 1]).reshape(-1)
    own = around[start - first : start - first + length]
    others = np.concatenate([around[: start - first], around[start - first + length :]])
    if len(own) < length or (own != own[0]).any() or (others == own[0]).any():
        raise ValueError(f"ep_offset and ep_len give it rows {start} to {start + length - 1}, {name} gives it others")


def check_steps(steps: NDArray[Any]) -> None:
    """Raise ValueError unless the steps of an episode are consecutive."""
    jump = np.flatnonzero(np.diff(steps.reshape(-1).astype(np.int64)) != 1)
    if len(jump):
        at = int(jump[0])
        raise ValueError(f"frames are missing: step_idx goes from {int(steps[at])} to {int(steps[at + 1])}")


def _notes(entries: dict[str, Entry], rows: int) -> tuple[str, ...]:
    longest = max(entry.rows for entry in entries.values())
    if longest == rows:
        return ()
    return (f"rows {rows} to {longest - 1} belong to no episode and are not taken: a recording was cut off there",)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted([*path.glob("*.h5"), *path.glob("*.hdf5")])
    return files[0] if len(files) == 1 else path


IMPORTER = Importer(
    "HDF5 of stable-worldmodel and LeWorldModel (flat columns, ep_len, ep_offset)", recognises, open_swm
)
