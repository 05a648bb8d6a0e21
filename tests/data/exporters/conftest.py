"""A store worth exporting: smooth pictures, bounds that no action reaches, columns of every kind, any cameras."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lewm.data.meta import Column, PolicyMeta, Provenance, StoreMeta
from lewm.data.store import Store
from lewm.data.writer import Episode, StoreWriter

LENGTHS = (5, 9, 3)
COLUMNS = (
    Column("reward", "action"),
    Column("touch", "frame", (2, 3), "float64"),
    Column("index", "frame"),  # also the name of an entry that LeRobot has
)


def smooth(episode: int, frames: int, size: int, camera: int) -> NDArray[np.uint8]:
    ramp = np.arange(size) * 96 / size
    flat = np.stack([ramp[:, None] + 0 * ramp, ramp + 0 * ramp[:, None], np.full((size, size), 60.0)], axis=-1)
    light = 30 * episode + 4 * np.arange(frames) + 20 * camera
    return (flat + light[:, None, None, None]).astype(np.uint8)


@pytest.fixture
def toy_store(tmp_path: Path) -> Callable[..., Store]:
    def make(
        lengths: tuple[int, ...] = LENGTHS,
        cameras: tuple[str, ...] = ("main",),
        columns: tuple[Column, ...] = COLUMNS,
        states: tuple[str, ...] = ("x", "angle"),
        size: int = 64,
        noise: bool = False,
        control_dt: float = 0.1,
    ) -> Store:
        meta = StoreMeta(
            task="toy",
            settings={"level": 3},
            frame=(size, size, 3 * len(cameras)),
            codec="raw",
            action_dim=2,
            action_low=(-2.0, -3.0),
            action_high=(2.0, 3.0),
            state_names=states,
            angle_names=states[1:],
            control_dt=control_dt,
            provenance=Provenance(policies=(PolicyMeta("random", 1.0, 0.0),)),
            columns=columns,
            cameras=cameras,
        )
        rng = np.random.default_rng(5)

        def episode(number: int, length: int) -> Episode:
            views = [smooth(number, length + 1, size, camera) for camera in range(len(cameras))]
            pixels = np.concatenate(views, axis=-1)
            rows = {column.name: length + (column.per == "frame") for column in columns}
            return Episode(
                rng.integers(0, 256, pixels.shape, np.uint8) if noise else pixels,
                rng.uniform(-1, 1, (length, 2)).astype(np.float32),
                rng.normal(size=(length + 1, len(states))).astype(np.float32),
                extra={c.name: rng.normal(size=(rows[c.name], *c.shape)).astype(c.dtype) for c in columns},
            )

        with StoreWriter(tmp_path / "store", meta) as writer:
            writer.write((episode(number, length) for number, length in enumerate(lengths)), 2)
        return Store.open(tmp_path / "store")

    return make
