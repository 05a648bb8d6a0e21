"""What is in a store: a plain-text summary and a contact sheet of its episodes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lewm.data.codec import side_by_side
from lewm.data.meta import UNKNOWN_SUCCESS
from lewm.data.store import Store


def describe(store: Store) -> str:
    """Summary of a store as plain text: size, episodes, actions, states, extra columns, policies, provenance."""
    return "\n".join(
        [*_head(store), "", *_ranges(store), "", *_policies(store), "", *_provenance(store)],
    )


def contact_sheet(
    store: Store, path: str | Path, episodes: Sequence[int] | int = 8, frames: int = 10, size: int | None = None
) -> Path:
    """Write a PNG with one row of `frames` evenly spaced pictures per episode and return its path.

    `episodes` are ids, or a number of episodes spread over the store; `size` is the height of a picture in pixels
    (default: as recorded, at least 64). Raises IndexError for an episode that is not there.
    """
    import cv2

    if frames < 1:
        raise ValueError(f"frames is {frames}, it must be at least 1")
    ids = spread(store.num_episodes, episodes) if isinstance(episodes, int) else [int(e) for e in episodes]
    if not ids:
        raise ValueError("episodes is empty: give at least one episode")
    height = max(store.meta.frame[0], 64) if size is None else size
    sheet = np.concatenate([_strip(store, episode, frames, height) for episode in ids])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    done, encoded = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    if not done:
        raise RuntimeError(f"OpenCV could not encode a sheet of shape {sheet.shape}: ask for fewer episodes or frames")
    path.write_bytes(encoded.tobytes())
    return path


def spread(total: int, count: int) -> list[int]:
    """At most `count` episode ids, spread evenly over `total` episodes."""
    if count < 1:
        raise ValueError(f"episodes is {count}, it must be at least 1")
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()


def _strip(store: Store, episode: int, frames: int, height: int) -> NDArray[np.uint8]:
    """One row: a label and pictures, with a grey gap below and to the right of each."""
    import cv2

    length = int(store.episodes["length"][episode]) if 0 <= episode < store.num_episodes else 0
    pixels = side_by_side(store.pixels(episode, np.linspace(0, length, frames).round().astype(np.int64)))
    _, y, x, _ = pixels.shape
    width = max(round(height * x / y), 1)
    shrink = height < y
    gap = max(height // 24, 2)
    label = np.full((height + gap, 56, 3), 255, np.uint8)
    cv2.putText(label, f"ep {episode}", (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (40, 40, 40), 1, cv2.LINE_AA)
    cv2.putText(label, f"{length} steps", (4, 32), cv2.FONT_HERSHEY_SIMPLEX, 0.3, (120, 120, 120), 1, cv2.LINE_AA)
    cells = [label]
    for picture in pixels:
        cell = np.full((height + gap, width + gap, 3), 190, np.uint8)
        scaled = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_NEAREST)
        cell[:height, :width] = scaled
        cells.append(cell)
    return np.concatenate(cells, axis=1)


def _cameras(names: Sequence[str]) -> str:
    return f" from {len(names)} cameras ({', '.join(names)})" if len(names) > 1 else ""


def _head(store: Store) -> list[str]:
    meta, length = store.meta, store.episodes["length"]
    size = sum(sum(shard.bytes.values()) for shard in meta.shards)
    names = "per episode" if length.min() == length.max() else f"per episode (mean {length.mean():.1f})"
    span = f"{length.min()}" if length.min() == length.max() else f"{length.min()}-{length.max()}"
    lines = [
        f"store      {store.path}  ({meta.format} version {meta.version}, {_bytes(size)}, {len(meta.shards)} shards)",
        f"task       {meta.task}  {_settings(meta.settings)}",
        f"episodes   {store.num_episodes}, {span} actions {names}, {store.num_frames} frames",
        f"frames     {meta.frame[0]} x {meta.frame[1]} RGB{_cameras(meta.cameras)}, {meta.codec}; "
        f"one action lasts {meta.control_dt:g} s",
    ]
    asked = meta.provenance.episodes
    if asked > store.num_episodes:
        lines.append(f"unfinished {store.num_episodes} of {asked} episodes: run the command that records it again")
    known = store.episodes["success"] != UNKNOWN_SUCCESS
    if known.any():
        lines.append(f"success    {(store.episodes['success'][known] == 1).mean():.1%} of {known.sum()} episodes")
    return lines


def _ranges(store: Store) -> list[str]:
    """One line per entry of the actions, the states and the extra columns."""
    meta, stats = store.meta, store.meta.statistics
    lines = [f"{'column':<28} {'min':>10} {'max':>10} {'mean':>10} {'std':>10}"]
    groups = [
        ("action", [f"action[{i}]" for i in range(meta.action_dim)], stats.action_mean, stats.action_std),
        ("state", [f"state.{name}" for name in meta.state_names], stats.state_mean, stats.state_std),
    ]
    for key, moments in stats.columns.items():
        names = [key] if len(moments.mean) == 1 else [f"{key}[{i}]" for i in range(len(moments.mean))]
        groups.append((key, names, moments.mean, moments.std))
    for key, names, mean, std in groups:
        low, high = store.extremes(key)
        for name, *numbers in zip(names, low, high, mean, std):
            lines.append(f"{name:<28} " + " ".join(f"{number:>10.4g}" for number in numbers))
    for channel, mean_c, std_c in zip("RGB", stats.pixel_mean, stats.pixel_std):
        lines.append(f"{'pixel.' + channel + ' (0..1)':<28} {'':>10} {'':>10} {mean_c:>10.4g} {std_c:>10.4g}")
    return lines


def _policies(store: Store) -> list[str]:
    lines = [f"{'policy':<28} {'weight':>10} {'noise':>10} {'episodes':>10}"]
    for index, policy in enumerate(store.meta.provenance.policies):
        count = int((store.episodes["policy"] == index).sum())
        lines.append(f"{policy.name:<28} {policy.weight:>10g} {policy.noise:>10g} {count:>10}")
    return lines


def _provenance(store: Store) -> list[str]:
    origin = store.meta.provenance
    return [
        f"source     {origin.source}, seed {origin.seed}, created {origin.created or 'unknown'}",
        f"versions   {', '.join(f'{name} {number}' for name, number in origin.versions.items()) or 'unknown'}",
        f"renderer   {origin.renderer or 'unknown'}",
        f"revision   {origin.git_revision or 'unknown'}",
    ]


def _settings(settings: dict[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
