"""A fixture that writes small synthetic stores."""

from collections.abc import Callable
from pathlib import Path

import pytest
from toy_recordings import LENGTHS, make_episode, make_meta

from lewm.data.store import Store
from lewm.data.writer import StoreWriter


@pytest.fixture
def write_store(tmp_path: Path) -> Callable[..., Store]:
    def write(lengths: tuple[int, ...] = LENGTHS, codec: str = "raw", shard_episodes: int = 2, **options: int) -> Store:
        path = tmp_path / f"store_{codec}"
        with StoreWriter(path, make_meta(codec, **options)) as writer:
            writer.write((make_episode(i, n, **options) for i, n in enumerate(lengths)), shard_episodes)
        return Store.open(path, verify=True)

    return write
