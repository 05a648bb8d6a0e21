"""What `lewm compare baselines` compares: the files of configs/baselines/, and the goals they name."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lewm.baselines.trainers import TRAINERS
from lewm.compare.shared import check_names, read_comparison
from lewm.evaluate.manifest import Manifest, load_manifest

OURS = ("checkpoint", "train", "evaluation")
"""Folders of a seed that are no row's."""


@dataclass(frozen=True)
class BaselineRow:
    """One way to reach goals."""

    name: str
    """Name in the table, and of the row's folder."""
    method: dict[str, Any] = field(default_factory=dict)
    """What `evaluate.methods` would list; name and path are filled in, and the python of a peer. Empty: the method of
    this name of the row's run, or of a row that is trained {kind: gcbc} (what was trained) or {kind: sb3}."""
    train: str | None = None
    """What `lewm train-baseline` trains for it; null for rows that need none."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of that training, as its --keys lists them; steps among them."""
    run: str | None = None
    """Another world model, trained once for the rows that name it: a shipped run or a YAML file. Null: the one that all
    rows share."""
    set: dict[str, Any] = field(default_factory=dict)
    """Keys of that other run that are changed, by dotted name."""
    seeds: tuple[int, ...] = ()
    """The only training seeds that the row is made for; empty for all."""
    manifests: tuple[str, ...] = ()
    """The only manifests that it is evaluated on; empty for all."""

    @property
    def asks_peer(self) -> bool:
        """Whether stable-worldmodel decides."""
        return self.method.get("kind") == "peer"

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name in OURS:
            raise ValueError(f"name is {self.name!r}; it names a folder, other than {', '.join(OURS)}")
        if self.train is not None and self.train not in TRAINERS:
            raise ValueError(f"row {self.name}: train is {self.train!r}; choose one of {', '.join(TRAINERS)}")
        if self.train is not None and self.run is not None:
            raise ValueError(f"row {self.name} has both train and run; leave one out")
        if self.run is not None and Path(self.run).stem in OURS:
            raise ValueError(f"row {self.name}: run is {self.run!r}, whose name is a folder of ours: rename the file")
        for name, needed in (("settings", "train"), ("set", "run")):
            if getattr(self, name) and getattr(self, needed) is None:
                raise ValueError(f"row {self.name} has {name} but no {needed}, which they would change")


@dataclass(frozen=True)
class BaselinesConfig:
    """A comparison."""

    run: str
    """Recordings and world model that the rows share: a shipped run or a YAML file."""
    manifests: tuple[str, ...]
    """What all are evaluated on: files NAME.json.gz of one folder."""
    rows: tuple[BaselineRow, ...]
    """What is compared."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds."""
    set: dict[str, Any] = field(default_factory=dict)
    """Keys of the runs that are changed in every row, by dotted name."""

    def __post_init__(self) -> None:
        check_names(self.rows)
        if not self.manifests or not self.seeds:
            raise ValueError("a comparison needs at least one manifest and one seed")
        for row in self.rows:
            if unknown := [name for name in row.manifests if name not in self.manifests]:
                raise ValueError(f"row {row.name}: manifest {unknown[0]!r} is not among {', '.join(self.manifests)}")
        _check_homes(self.rows)


def _check_homes(rows: Sequence[BaselineRow]) -> None:
    """Raise ValueError where two trainings would share a folder: another world model's is named after its run."""
    homes: dict[str, BaselineRow] = {}
    for row in rows:
        if row.run is None:
            continue
        first = homes.setdefault(Path(row.run).stem, row)
        if (first.run, first.set) != (row.run, row.set):
            raise ValueError(
                f"rows {first.name} and {row.name} would share one world model's folder, but run or set differ: give "
                "one of them a YAML file of another name"
            )
    for row in rows:
        if row.train is not None and row.name in homes:
            raise ValueError(
                f"row {row.name} is trained, and has the name of the run of {homes[row.name].name}: rename it"
            )


def load_config(name: str | Path) -> BaselinesConfig:
    """A comparison by path or shipped name. Raises FileNotFoundError, and SchemaError naming the key."""
    return read_comparison(BaselinesConfig, "baselines", name)


def load_manifests(comparison: BaselinesConfig, folder: Path | None, task: str) -> dict[str, Manifest]:
    """The manifests by name, from docs/results/manifests/TASK for None.

    Raises FileNotFoundError for a missing one and ValueError for one of another task.
    """
    found, where = {}, folder or Path("docs/results/manifests") / task
    for name in comparison.manifests:
        path = where / f"{name}.json.gz"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: pass --manifests FOLDER, which holds NAME.json.gz for each of "
                f"{', '.join(comparison.manifests)} (lewm's repository has them in docs/results/manifests)"
            )
        found[name] = load_manifest(path)
        if found[name].task != task:
            raise ValueError(f"{path} holds goals of {found[name].task}, but the run is of {task}: pass another folder")
    return found
