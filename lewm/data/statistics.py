"""Mean and standard deviation of what was recorded, gathered episode by episode and merged over shards."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.meta import Moments, ShardMeta, Statistics, StoreMeta

Part = tuple[NDArray[np.float64], NDArray[np.float64], int]  # mean, variance, count


def shard_statistics(columns: dict[str, NDArray[Any]], pixel_parts: list[Part]) -> Statistics:
    """Statistics of one shard from its columns and the `pixel_part` of each of its episodes."""
    return _statistics({key: _moments(array) for key, array in columns.items()} | {"pixel": _merge(pixel_parts)})


def merge_statistics(meta: StoreMeta, shards: Iterable[ShardMeta]) -> Statistics:
    """Statistics of all shards together, independent of the order they were written in."""
    per_action = {"action", *(column.name for column in meta.columns if column.per == "action")}
    parts: dict[str, list[Part]] = {}
    for shard in sorted(shards, key=lambda s: s.name):
        for key, moments in _by_name(shard.statistics).items():
            weight = shard.frames - shard.episodes if key in per_action else shard.frames
            parts.setdefault(key, []).append((np.array(moments.mean), np.array(moments.std) ** 2, weight))
    return _statistics({key: _merge(part) for key, part in parts.items()})


def _by_name(statistics: Statistics) -> dict[str, Moments]:
    s = statistics
    return {
        "action": Moments(s.action_mean, s.action_std),
        "state": Moments(s.state_mean, s.state_std),
        "pixel": Moments(s.pixel_mean, s.pixel_std),
        **s.columns,
    }


def _statistics(moments: dict[str, Moments]) -> Statistics:
    action, state, pixel = moments["action"], moments["state"], moments["pixel"]
    columns = {key: value for key, value in moments.items() if key not in ("action", "state", "pixel")}
    return Statistics(action.mean, action.std, state.mean, state.std, pixel.mean, pixel.std, columns)


def _moments(array: NDArray[Any]) -> Moments:
    flat = array.reshape(len(array), -1).astype(np.float64)
    return Moments(tuple(flat.mean(axis=0).tolist()), tuple(flat.std(axis=0).tolist()))


def pixel_part(pixels: NDArray[np.uint8]) -> Part:
    """Mean, variance per channel (pixels in [0, 1]) and number of frames of one episode."""
    import cv2

    cameras = np.split(pixels, pixels.shape[-1] // 3, axis=-1)  # OpenCV takes at most four channels
    parts = [cv2.meanStdDev(np.ascontiguousarray(camera).reshape(-1, pixels.shape[2], 3)) for camera in cameras]
    mean, std = (np.concatenate(moment).astype(np.float64).ravel() / 255.0 for moment in zip(*parts))
    return mean, std**2, len(pixels)


def _merge(parts: list[Part]) -> Moments:
    """Moments of the union of parts given as (mean, variance, count)."""
    weight = np.array([count for *_, count in parts], np.float64)[:, None]
    weight /= weight.sum()
    means, variances = np.array([p[0] for p in parts]), np.array([p[1] for p in parts])
    mean = (weight * means).sum(axis=0)
    variance = (weight * (variances + (means - mean) ** 2)).sum(axis=0)
    return Moments(tuple(mean.tolist()), tuple(np.sqrt(variance).tolist()))
