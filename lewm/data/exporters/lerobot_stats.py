"""Statistics as LeRobot data sets carry them, of one episode and merged over all."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
SAMPLED_FRAMES = 32
"""Pictures of an episode, evenly spread, that its picture statistics are taken from."""

Stats = dict[str, NDArray[Any]]


def number_stats(rows: NDArray[Any]) -> Stats:
    """Of numbers (T, ...), per entry of a row; one number per row is taken as an entry of width 1."""
    values = rows.reshape(len(rows), -1).astype(np.float64) if rows.ndim == 1 else rows.astype(np.float64)
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "count": np.array([len(values)]),
        **dict(zip(QUANTILES, quantiles)),
    }


def picture_stats(pictures: NDArray[np.uint8]) -> Stats:
    """Of pictures (T, Y, X, 3), per channel in [0, 1], shape (3, 1, 1); `count` is the number of pictures looked at."""
    chosen = np.linspace(0, len(pictures) - 1, min(len(pictures), SAMPLED_FRAMES)).round().astype(int)
    sampled = pictures[chosen]
    channels = [number_stats_of_bytes(sampled[..., channel]) for channel in range(3)]
    stats = {name: np.array([c[name] for c in channels]).reshape(3, 1, 1) / 255.0 for name in channels[0]}
    return {**stats, "count": np.array([len(sampled)])}


def number_stats_of_bytes(values: NDArray[np.uint8]) -> dict[str, float]:
    """The same of bytes, from how often each of the 256 occurs; a quantile is the smallest byte that reaches it."""
    counts = np.bincount(values.reshape(-1), minlength=256)
    reached, level = np.cumsum(counts) / counts.sum(), np.arange(256)
    mean = float((counts * level).sum() / counts.sum())
    seen = np.flatnonzero(counts)
    return {
        "min": float(seen[0]),
        "max": float(seen[-1]),
        "mean": mean,
        "std": float(np.sqrt((counts * (level - mean) ** 2).sum() / counts.sum())),
        **{name: float(np.searchsorted(reached, share)) for name, share in QUANTILES.items()},
    }


def merge_stats(parts: list[Stats]) -> Stats:
    """Of all episodes together. Quantiles are averaged, weighted by counts, as LeRobot does: they are no true ones."""
    count = np.array([part["count"][0] for part in parts], np.float64)
    weight = count / count.sum()

    def average(name: str) -> NDArray[Any]:
        return np.tensordot(weight, np.stack([part[name] for part in parts]), axes=1)

    mean = average("mean")
    spread = np.stack([part["std"] ** 2 + (part["mean"] - mean) ** 2 for part in parts])
    return {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt(np.tensordot(weight, spread, axes=1)),
        "count": np.array([int(count.sum())]),
        **{name: average(name) for name in QUANTILES},
    }
