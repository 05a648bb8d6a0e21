"""What identifies a manifest: two results may stand side by side when their fingerprints are the same."""

import hashlib
import json
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from lewm.evaluate.manifest import Manifest, load_manifest, save_manifest


def fingerprint(manifest: Manifest) -> str:
    """A sha256 of what is evaluated: task, settings, goal set and problems.

    How they were drawn (seed, episodes, what was left out) is no part of it, and neither are fields at their default,
    so that a field added later changes no older manifest's.
    """
    said = {name: _said(getattr(manifest, name)) for name in ("task", "settings", "goals", "problems")}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def keep_manifest(manifest: Manifest, path: Path) -> None:
    """Write a manifest where none is yet. Raises ValueError where there is another one, and leaves it as it is."""
    if not path.exists():
        save_manifest(manifest, path)
    elif fingerprint(load_manifest(path)) != fingerprint(manifest):
        raise ValueError(f"{path} holds another manifest: choose another --out, or delete it")


def _said(value: Any) -> Any:
    """Plain data without the fields of dataclasses that are at their default."""
    if is_dataclass(value):
        return {f.name: _said(given) for f in fields(value) if (given := getattr(value, f.name)) != _default(f)}
    return [_said(item) for item in value] if isinstance(value, tuple | list) else value


def _default(of: Field[Any]) -> Any:
    return of.default_factory() if of.default_factory is not MISSING else of.default
