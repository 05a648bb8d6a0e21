"""One YAML file is one complete run. Loads it, applies dotted overrides, prints it back.

A configuration is found by path, or by name (`two_room`) among the runs that ship with the package.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lewm.cost_to_go import CostToGoConfig
from lewm.data.collect import CollectConfig
from lewm.evaluate.evaluate import EvaluateConfig
from lewm.objectives import RunObjective, SigRegConfig
from lewm.proposal import ProposalConfig
from lewm.readout import ReadoutConfig
from lewm.schema import SchemaError, build, describe
from lewm.train import TrainConfig
from lewm.world_model import ModelConfig

T = TypeVar("T")


@dataclass(frozen=True)
class RunConfig:
    """A complete run: record, train, evaluate."""

    task: str
    """Task name, as in `envs.TASKS`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the task, such as size and renderer."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    """Recording."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture."""
    objective: RunObjective = field(default_factory=SigRegConfig)
    """What the world model is trained for, and what keeps its latent from collapsing."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training."""
    cost_to_go: CostToGoConfig = field(default_factory=CostToGoConfig)
    """The learned distance, fitted after the world model."""
    proposal: ProposalConfig = field(default_factory=ProposalConfig)
    """The learned first guess of a plan; without steps there is none."""
    readout: ReadoutConfig = field(default_factory=ReadoutConfig)
    """What the proprioceptive cost compares; without entries there is none."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """What is measured."""


def shipped(kind: str = "") -> dict[str, Path]:
    """The runs that come with lewm, by name: beside the package in a checkout, inside it in a wheel.

    kind: another folder of YAML files below that of the runs, such as pretrain.
    """
    here = Path(__file__).parent
    folders = [here / "configs" / kind, here.parent / "configs" / kind]
    return {path.stem: path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.yaml"))}


def find(name: str | Path) -> Path:
    """Path of a configuration given as a file or as the name of a shipped run."""
    if Path(name).is_file():
        return Path(name)
    runs = shipped()
    if str(name) in runs:
        return runs[str(name)]
    raise FileNotFoundError(f"no configuration {name}: give a YAML file, or one of {', '.join(sorted(runs))}")


def load(name: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run; `overrides` are words such as `--train.steps 500` or `--train.steps=500`.

    Raises SchemaError: one sentence with the file (or the option), the key, and the closest valid name.
    """
    return read(RunConfig, find(name), overrides)


def read(cls: type[T], source: Path | dict[str, Any], overrides: Sequence[str]) -> T:
    """Make a `cls` from a YAML file, or from settings that need not be complete yet, and dotted overrides."""
    data = source if isinstance(source, dict) else _read_yaml(source)
    if isinstance(source, Path):
        build(cls, data, str(source))  # mistakes in the file are told from those on the command line
    changes = parse_overrides(overrides)
    for key, value in changes.items():
        _set(data, key.split("."), value, key)
    return build(cls, data, "command line" if changes or isinstance(source, dict) else str(source))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise SchemaError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise SchemaError(f"{path} must hold a mapping of settings, not {data!r}")
    return data


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`--a.b 1 --c=2` as {"a.b": 1, "c": 2}; values are read as YAML."""
    changes: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise SchemaError(f"command line: {word!r} is not an option; overrides look like --train.steps 500")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not rest:
                raise SchemaError(f"command line: --{key} has no value; write --{key} VALUE")
            text = rest.pop(0)
        try:
            changes[key.replace("-", "_")] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SchemaError(f"command line: --{key} {text}: {' '.join(str(error).split())}") from error
    return changes


def _set(data: Any, keys: list[str], value: Any, full: str) -> None:
    """Set one dotted key; numbers index lists."""
    for i, key in enumerate(keys):
        last = i == len(keys) - 1
        if isinstance(data, list):
            if not key.isdigit() or int(key) >= len(data):
                raise SchemaError(f"command line: --{full}: {key!r} must be an index below {len(data)}")
            if last:
                data[int(key)] = value
            else:
                data = data[int(key)]
        elif not isinstance(data, dict):
            raise SchemaError(f"command line: --{full}: {'.'.join(keys[:i])} has no settings of its own")
        elif last:
            data[key] = value
        else:
            data = data.setdefault(key, {})


def with_seed(run: RunConfig, seed: int) -> RunConfig:
    """The same run with another seed for recording, training and evaluation."""
    return dataclasses.replace(
        run,
        collect=dataclasses.replace(run.collect, seed=seed),
        train=dataclasses.replace(run.train, seed=seed),
        evaluate=dataclasses.replace(run.evaluate, seed=seed),
    )


def dump(run: Any) -> str:
    """The resolved run (a RunConfig, or another dataclass of settings) as YAML; loading it gives the same run."""
    return yaml.safe_dump(_plain(asdict(run)), sort_keys=False, width=110)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


@functools.cache
def help_text() -> str:
    """Every key of a run with its meaning, for `lewm train --keys`."""
    return "\n".join(f"  --{key:<36} {text}" for key, text in describe(RunConfig))
