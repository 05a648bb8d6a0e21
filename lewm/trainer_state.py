"""The file a training continues from: written whole or not at all, and only continued by a run of the same settings."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def flatten(tree: dict[str, Any], path: str = "") -> dict[str, str]:
    """Nested settings as {"train.steps": "500", ...}."""
    flat: dict[str, str] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{path}{name}.") if isinstance(value, dict) else {path + name: str(value)}
    return flat


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """torch.save that a kill at any moment cannot leave half-written."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def refuse_other_settings(
    path: Path,
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    owner: str = "a run with another configuration",
    unset: str | None = None,
) -> None:
    """Raise RuntimeError naming the first setting, by dotted key, in which what `path` holds differs from ours.

    owner: what it belongs to then. unset: what a setting that one of them lacks is said to be.
    """
    for key in sorted(theirs.keys() | ours.keys()):
        here, there = (values.get(key, unset) for values in (ours, theirs))
        if here != there:
            raise RuntimeError(
                f"{path} belongs to {owner}: {key} is {here} here and {there} there; set it to that to continue, or "
                "choose another --out"
            )
