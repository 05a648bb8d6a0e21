"""Encode every frame of a store once with a frozen encoder: what is planned, the loop that does it, and who may use it.

A killed computation goes on behind the last frames that were safely on disk.
"""

import io
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor, nn

from lewm.data.features import (
    Dtype,
    FeatureMeta,
    Features,
    ShardFeatures,
    fingerprint,
    folder_of,
    other_caches,
    read_features_meta,
    write_features_meta,
)
from lewm.data.meta import ShardMeta
from lewm.data.store import Store
from lewm.data.writer import lock_folder
from lewm.nets.frozen.encoder import FrozenConfig, FrozenEncoder, frozen_in
from lewm.nets.pixels import pixel_scaling
from lewm.progress import Stage

FeatureUse = Literal["auto", "cached", "live"]
SAVE_EVERY = 20.0
"""Seconds between two safe points: what a kill costs."""


@dataclass(frozen=True)
class FeaturePlan:
    """What is left to compute."""

    store: Store
    encoder: FrozenEncoder
    folder: Path
    meta: FeatureMeta
    free: int
    """Bytes free on the disk of the store."""

    @property
    def left(self) -> int:
        """Frames without features."""
        return self.store.num_frames - sum(_kept(self.meta, shard) for shard in self.store.meta.shards)

    def describe(self) -> str:
        """Bytes per frame, in all, and what is there already."""
        meta, total = self.meta, self.meta.frame_bytes * self.store.num_frames
        return (
            f"features   {meta.pictures} picture(s) x {meta.tokens} tokens x {meta.width}, {meta.dtype}: "
            f"{meta.frame_bytes:,} bytes per frame, {total / 1e9:.3g} GB for {self.store.num_frames:,} frames\n"
            f"folder     {self.folder}\n"
            f"left       {self.left:,} frames, {self.left * meta.frame_bytes / 1e9:.3g} GB; "
            f"{self.free / 1e9:.3g} GB are free"
        )


def _kept(meta: FeatureMeta, shard: ShardMeta) -> int:
    """Frames of a shard that need not be encoded again."""
    found = meta.shard(shard.name)
    return found.done if found is not None and found.source == fingerprint(shard) else 0


def plan_features(store: Store, config: FrozenConfig, dtype: Dtype, device: torch.device | str = "cpu") -> FeaturePlan:
    """Open the encoder and see what is left. Raises ValueError for frames it cannot see and a disk without the room."""
    height, width, channels = store.meta.frame
    if height != width:
        raise ValueError(f"frames are {height} x {width}, models see squares: import them with --size")
    encoder = FrozenEncoder(config, channels, height).to(device)
    shape = (encoder.pictures, encoder.tokens, encoder.backbone.width)
    folder = folder_of(store, encoder.key)
    meta = FeatureMeta(config.path, encoder.key, dtype, *shape)
    if (folder / "meta.json").exists():
        meta = read_features_meta(folder)
        if meta.dtype != dtype:
            raise ValueError(
                f"{folder} holds these features as {meta.dtype}: give --precision {meta.dtype}, or delete the folder"
            )
    free = shutil.disk_usage(store.path).free
    plan = FeaturePlan(store, encoder, folder, meta, free)
    if plan.left * meta.frame_bytes > free:
        raise ValueError(
            f"{plan.left:,} frames of {meta.frame_bytes:,} bytes need {plan.left * meta.frame_bytes / 1e9:.3g} GB, and "
            f"{store.path} has {free / 1e9:.3g} GB free: make room, or take a smaller --grid or --precision float16"
        )
    return plan


def cache_features(plan: FeaturePlan, batch: int = 64, quiet: bool = False) -> Features:
    """Compute what is left, `batch` frames at a time. Raises ValueError for features that the precision cannot hold."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(plan.folder, "wait for it")
    try:
        with Stage("cache features", plan.store.num_frames, "frames", quiet) as stage:
            begun, first = (plan.folder / "meta.json").exists(), 0
            meta = read_features_meta(plan.folder) if begun else plan.meta  # somebody may have gone on since
            stage.skip_to(plan.store.num_frames - replace(plan, meta=meta).left)
            for shard in plan.store.meta.shards:
                meta = _cache_shard(plan, meta, shard, first, batch, stage)
                first += shard.frames
    finally:
        os.close(lock)
    return Features(plan.store, plan.folder)


def _cache_shard(
    plan: FeaturePlan, meta: FeatureMeta, shard: ShardMeta, first: int, batch: int, stage: Stage
) -> FeatureMeta:
    """Compute the features of one shard whose first frame has number `first`; returns the meta that says so."""
    done, path = _kept(meta, shard), plan.folder / f"{shard.name}.npy"
    if done == shard.frames and path.is_file():
        return meta
    header = _header(meta, shard)
    if not path.is_file() or path.stat().st_size < len(header) + done * meta.frame_bytes:
        done = 0
    if done == 0:
        path.write_bytes(header)
    saved = time.monotonic()
    with path.open("r+b") as file:
        file.truncate(len(header) + done * meta.frame_bytes)  # rows behind the safe point may be half-written
        file.seek(0, os.SEEK_END)
        while done < shard.frames:
            count = min(batch, shard.frames - done)
            file.write(_encode(plan, first + done, count, meta.dtype).tobytes())
            done += count
            stage.update(count)
            if done == shard.frames or time.monotonic() - saved >= SAVE_EVERY:
                saved = time.monotonic()
                _sync(file)
                meta = meta.with_shard(ShardFeatures(shard.name, fingerprint(shard), shard.frames, done))
                write_features_meta(plan.folder, meta)
    return meta


def _encode(plan: FeaturePlan, first: int, count: int, dtype: Dtype) -> np.ndarray:
    """Features (count, pictures, tokens, width) of consecutive frames of one shard."""
    encoder, frame = plan.encoder, plan.store.meta.frame
    pixels_BYXC = np.empty((count, *frame), np.uint8)
    plan.store.read_frames(first, 1, pixels_BYXC)
    pixels_BCYX = torch.from_numpy(pixels_BYXC).to(encoder.weights_sha256.device).movedim(-1, 1)
    feature = encoder_features(encoder, pixels_BCYX).cpu().numpy()
    with np.errstate(over="ignore"):
        rows = feature.astype(dtype)
    if not np.isfinite(rows).all():
        what = f"beyond what {dtype} holds: use --precision float32" if np.isfinite(feature).all() else "not finite"
        raise ValueError(f"features of frames {first}..{first + count - 1} of {plan.store.path} are {what}")
    return rows


def encoder_features(encoder: FrozenEncoder, pixels_BCYX: Tensor) -> Tensor:
    """feature_BPKD of uint8 frames, scaled as a world model scales them."""
    scale, shift = pixel_scaling(encoder.pixel_mean, encoder.pixel_std)
    scaled = torch.addcmul(shift.to(pixels_BCYX.device), pixels_BCYX.float(), scale.to(pixels_BCYX.device))
    picture_RCYX = scaled.unflatten(1, (encoder.pictures, -1)).flatten(0, 1)
    return encoder.features(picture_RCYX).unflatten(0, (-1, encoder.pictures))


def features_for(encoder: nn.Module, store: Store, use: FeatureUse = "auto") -> Features | None:
    """The cached features of `store` that fit a model's encoder; None where it is to encode by itself.

    auto: taken where they are. cached: required. live: never. Raises ValueError for features of a store that has
    changed since, for an unfinished cache, and, with `cached`, naming what differs, where there are none that fit.
    """
    frozen = frozen_in(encoder)
    if frozen is None and use == "cached":
        raise ValueError("train.features is cached, but the encoder is trained, so there are none: use auto or live")
    if frozen is None or use == "live":
        return None
    folder = folder_of(store, frozen.key)
    if (folder / "meta.json").exists():
        return Features(store, folder)
    if use == "auto":
        return None
    raise ValueError(
        f"train.features is cached, but {store.path} has no features of this encoder ({_difference(store, frozen)}): "
        f"run `lewm cache-features {store.path} --encoder {frozen.config.path} --grid {frozen.config.grid}`"
    )


def _difference(store: Store, frozen: FrozenEncoder) -> str:
    """What sets the nearest cache apart from the one that is needed."""
    nearest, fewest = "none are cached", len(frozen.key) + 1
    for meta in other_caches(store):
        other = [name for name, value in frozen.key.items() if meta.key.get(name) != value]
        if len(other) < fewest:
            name, fewest = other[0], len(other)
            nearest = f"those cached have {name} {str(meta.key.get(name))[:12]}, it has {str(frozen.key[name])[:12]}"
    return nearest


def _header(meta: FeatureMeta, shard: ShardMeta) -> bytes:
    """The .npy header of a whole shard; the rows follow as they come."""
    buffer = io.BytesIO()
    shape = {"descr": np.dtype(meta.dtype).str, "fortran_order": False, "shape": (shard.frames, *meta.row)}
    npy.write_array_header_1_0(buffer, shape)
    return buffer.getvalue()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
