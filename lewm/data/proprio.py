"""Proprioception: measured numbers that a model sees beside the pictures, taken from state entries or extra columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lewm.data.meta import StoreMeta
from lewm.data.store import Store


@dataclass(frozen=True)
class Measured:
    """One measured number."""

    source: str
    """`state`, or the name of an extra column with one row per frame."""
    index: int
    """Which of its flattened entries."""
    angle: bool
    """Whether it is an angle in radians."""
    mean: float
    """Over the recordings."""
    std: float
    """Over the recordings."""


def measured(meta: StoreMeta, names: Sequence[str]) -> tuple[Measured, ...]:
    """What `names` stand for: a state entry is one number, an extra column as many as it has.

    Raises ValueError naming what there is for a name that is neither, or a column with one row per action.
    """
    found: list[Measured] = []
    columns = {column.name: column for column in meta.columns if column.per == "frame"}
    statistics = meta.statistics
    for name in names:
        if name in meta.state_names:
            at = meta.state_names.index(name)
            mean, std = statistics.state_mean[at], statistics.state_std[at]
            found.append(Measured("state", at, name in meta.angle_names, mean, std))
        elif name in columns:
            moments = statistics.columns[name]
            pairs = zip(moments.mean, moments.std, strict=True)
            found += [Measured(name, i, False, *pair) for i, pair in enumerate(pairs)]
        else:
            raise ValueError(
                f"model.proprio names {name!r}, which the recordings do not hold per frame; they hold "
                f"{', '.join([*meta.state_names, *columns]) or 'no state and no such column'}"
            )
    return tuple(found)


def read_proprio(store: Store, entries: Sequence[Measured], episode: int) -> NDArray[np.float32]:
    """Measured numbers of one episode, float32 (T + 1, P); angles as they were recorded."""
    length = int(store.episodes["length"][episode])
    out = np.empty((length + 1, len(entries)), np.float32)
    for source in {entry.source for entry in entries}:
        rows = store.states(episode) if source == "state" else store.column(source, episode)
        flat = rows.reshape(length + 1, -1)
        for position, entry in enumerate(entries):
            if entry.source == source:
                out[:, position] = flat[:, entry.index]
    return out
