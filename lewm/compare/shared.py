"""What the comparisons share: finding one by name, its changes as words, its rows, whose folder this is, a table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lewm import config
from lewm.trainer_state import refuse_other_settings

T = TypeVar("T")

UNBOUND = ("evaluate.batch", "evaluate.processes")
"""Settings of a run that may change while a comparison goes on: they never change what was found so far."""


class Named(Protocol):
    """A row of a comparison."""

    @property
    def name(self) -> str: ...


R = TypeVar("R", bound=Named)


def read_comparison(cls: type[T], kind: str, name: str | Path) -> T:
    """A comparison by path, or by name among those of configs/`kind`.

    Raises FileNotFoundError, and SchemaError naming the key.
    """
    shipped = config.shipped(kind)
    path = Path(name) if Path(name).is_file() else shipped.get(str(name))
    if path is None:
        raise FileNotFoundError(f"no comparison {name}: give a YAML file, or one of {', '.join(shipped)}")
    return config.read(cls, path, ())


def check_names(rows: Sequence[Named]) -> None:
    """Raise ValueError for no rows, and for two of one name."""
    names = [row.name for row in rows]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"rows are {names}; a comparison needs at least one, each with its own name")


def pick_rows(rows: Sequence[R], names: Sequence[str]) -> list[R]:
    """The rows of these names, in the comparison's order; all for none. Raises ValueError for an unknown name."""
    known = [row.name for row in rows]
    if wrong := [name for name in names if name not in known]:
        raise ValueError(f"no row is called {wrong[0]!r}; there are {', '.join(known)}")
    return [row for row in rows if not names or row.name in names]


def words(changes: Mapping[str, Any]) -> list[str]:
    """Changes by dotted key as the command line has them."""
    return [word for key, value in changes.items() for word in (f"--{key}", json.dumps(value))]


def leaves(tree: Any) -> dict[str, Any]:
    """Settings (a dataclass, or plain data) as JSON has them, by dotted key: {"evaluate.goals.0.count": 100, ...}."""
    plain = asdict(tree) if is_dataclass(tree) and not isinstance(tree, type) else tree
    return _leaves(json.loads(json.dumps(plain)), "")


def _leaves(tree: Any, path: str) -> dict[str, Any]:
    if not isinstance(tree, dict | list) or not tree:
        return {path: tree}
    found: dict[str, Any] = {}
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        found |= _leaves(value, f"{path}.{name}" if path else str(name))
    return found


def refuse_others(folder: Path, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise RuntimeError naming the first setting (`leaves`) in which what `folder` holds differs from ours."""
    here, there = ({key: x for key, x in said.items() if not key.endswith(UNBOUND)} for said in (ours, theirs))
    refuse_other_settings(folder, here, there, "a comparison with other settings", "not set")
