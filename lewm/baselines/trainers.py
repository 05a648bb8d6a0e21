"""What `lewm train-baseline` can train. Adding one is a row of `TRAINERS`: its default settings, and a function."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lewm.baselines.offline import OFFLINE, Card, train_offline
from lewm.checkpoint import load
from lewm.data.store import Store
from lewm.schema import build


@dataclass(frozen=True)
class Job:
    """What a training is given beside its settings; a trainer that needs a part that is None says so."""

    out: Path
    """Folder to write; an interrupted training in it is continued."""
    checkpoint: Path | None = None
    """World model whose encoder is used."""
    data: Path | None = None
    """Store of recordings."""
    device: str = "cpu"
    """Where torch computes."""
    quiet: bool = False
    """No progress."""


@dataclass(frozen=True)
class Trainer:
    """One row of the table."""

    config: Any
    """The defaults: a frozen dataclass; its fields are options of the command."""
    train: Callable[[Any, Job], Card]
    """Settings and job to the card of the folder that was written."""


def _train_offline(kind: str, config: Any, job: Job) -> Card:
    for name in ("checkpoint", "data"):
        if getattr(job, name) is None:
            raise ValueError(f"{kind} learns from recordings through a world model's encoder: pass --{name}")
    assert job.checkpoint is not None and job.data is not None
    return train_offline(kind, config, load(job.checkpoint, job.device), Store.open(job.data), job.out, job.quiet)


TRAINERS: Mapping[str, Trainer] = {
    kind: Trainer(row.config, partial(_train_offline, kind)) for kind, row in OFFLINE.items()
}
"""Name on the command line to what is trained."""


def settings(kind: str, changes: Mapping[str, Any]) -> Any:
    """The defaults of a row with some changed; raises SchemaError naming the closest key for an unknown one."""
    defaults = TRAINERS[kind].config
    return build(type(defaults), asdict(defaults) | dict(changes), "command line")
