"""Small synthetic recordings whose every number says where it came from."""

import numpy as np

from lewm.data.meta import Column, PolicyMeta, Provenance, StoreMeta
from lewm.data.writer import Episode

LENGTHS = (7, 12, 3, 20, 9)


def make_meta(codec: str = "raw", columns: tuple[Column, ...] = (), size: int = 8, states: int = 2) -> StoreMeta:
    return StoreMeta(
        task="toy",
        settings={"size": size},
        frame=(size, size, 3),
        codec=codec,
        action_dim=2,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        state_names=("x", "y")[:states],
        angle_names=(),
        control_dt=0.1,
        provenance=Provenance(policies=(PolicyMeta("expert", 1.0, 0.3),)),
        columns=columns,
    )


def make_episode(number: int, length: int, size: int = 8, states: int = 2) -> Episode:
    """Random pixels (a flat patch codes episode and frame), action and state numbers that name episode and time."""
    rng = np.random.default_rng((7, number))
    pixels = rng.integers(0, 256, (length + 1, size, size, 3), np.uint8)
    pixels[:, 0, 0, 0] = number
    pixels[:, 0, 0, 1] = np.arange(length + 1)
    actions = np.stack([np.full(length, number), np.arange(length)], 1).astype(np.float32)
    state = np.stack([np.full(length + 1, number), np.arange(length + 1)], 1).astype(np.float32)
    return Episode(pixels, actions, state[:, :states], seed=100 + number, success=bool(number % 2))
