"""Frozen encoders that several files read."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_encoders import save_encoder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small encoder of a family; made once."""
    root = tmp_path_factory.mktemp("encoders")

    def folder(family: str) -> Path:
        return root / family if (root / family).exists() else save_encoder(family, root / family)

    return folder
