"""The file a training continues from: written whole or not at all, and only continued by a run of the same settings."""

import os
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


def refuse_other_settings(path: Path, ours: dict[str, str], theirs: dict[str, str]) -> None:
    """Raise RuntimeError naming the first setting in which a saved trainer state differs from this run."""
    for key in sorted(theirs.keys() | ours.keys()):
        if theirs.get(key) != ours.get(key):
            raise RuntimeError(
                f"{path} belongs to a run with another configuration: {key} is {ours.get(key)} "
                f"here and {theirs.get(key)} there; set it to that to continue, or choose another --out"
            )
