"""What `lewm train-baseline` can train. Adding one is a row of `TRAINERS`: its default settings, and a function."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from lewm.baselines.offline import OFFLINE, Card, train_offline
from lewm.checkpoint import load
from lewm.data.store import Store
from lewm.sb3.config import Algorithm, Sb3Card, Sb3Config
from lewm.schema import SchemaError, build


@dataclass(frozen=True)
class Job:
    """What a training is given beside its settings; a trainer that needs a part that is None says so."""

    out: Path
    """Folder to write; an interrupted training in it is continued."""
    checkpoint: Path | None = None
    """World model whose encoder is used."""
    data: Path | None = None
    """Store of recordings; for a trainer that acts itself, the one that tells its task."""
    device: str = "cpu"
    """Where torch computes."""
    quiet: bool = False
    """No progress."""


@dataclass(frozen=True)
class Trainer:
    """One row of the table."""

    config: Any
    """The defaults: a frozen dataclass; its fields are options of the command."""
    train: Callable[[Any, Job], Card | Sb3Card]
    """Settings and job to the card of the folder that was written."""
    fixed: tuple[str, ...] = ()
    """Settings that the row decides: no options."""


def _train_offline(kind: str, config: Any, job: Job) -> Card:
    for name in ("checkpoint", "data"):
        if getattr(job, name) is None:
            raise ValueError(f"{kind} learns from recordings through a world model's encoder: pass --{name}")
    assert job.checkpoint is not None and job.data is not None
    return train_offline(kind, config, load(job.checkpoint, job.device), Store.open(job.data), job.out, job.quiet)


def _train_sb3(config: Sb3Config, job: Job) -> Sb3Card:
    from lewm.sb3.train import train_sb3

    if job.checkpoint is not None:
        raise ValueError(f"{config.algorithm} learns by acting and uses no world model: leave --checkpoint out")
    if job.data is not None:
        meta = Store.open(job.data).meta
        for name, theirs in (("task", meta.task), ("settings", meta.settings)):
            if getattr(config, name) not in (type(theirs)(), theirs):
                raise ValueError(
                    f"{name} is {getattr(config, name)!r}, but {job.data} was recorded with {theirs!r}: leave one out"
                )
        config = replace(config, task=meta.task, settings=dict(meta.settings))
    if not config.task:
        raise ValueError(f"{config.algorithm} learns by acting in a task: pass --task, or --data to take a store's")
    return train_sb3(config, job.out, job.quiet, job.device)


TRAINERS: Mapping[str, Trainer] = {
    **{kind: Trainer(row.config, partial(_train_offline, kind)) for kind, row in OFFLINE.items()},
    **{kind: Trainer(Sb3Config(algorithm=kind), _train_sb3, ("algorithm",)) for kind in get_args(Algorithm)},
}
"""Name on the command line to what is trained."""


def settings(kind: str, changes: Mapping[str, Any]) -> Any:
    """The defaults of a row with some changed; raises SchemaError naming the closest key for an unknown one."""
    defaults = TRAINERS[kind].config
    if decided := [name for name in TRAINERS[kind].fixed if name in changes]:
        raise SchemaError(f"command line: --{decided[0]} is decided by {kind}: leave it out")
    return build(type(defaults), asdict(defaults) | dict(changes), "command line")
