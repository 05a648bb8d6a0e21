"""A finished evaluation, read back from its folder."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

from lewm.evaluate.fingerprint import fingerprint
from lewm.evaluate.manifest import Manifest, load_manifest
from lewm.evaluate.methods import MethodConfig
from lewm.evaluate.results import ResultRow, load_results, reached_digits
from lewm.evaluate.runner import Outcome
from lewm.schema import SchemaError, build, read_json, write_json


class Measured(Protocol):
    """One method on one goal set, with what happened on every goal; `Evaluated` has it too."""

    @property
    def row(self) -> ResultRow: ...
    @property
    def manifest(self) -> Manifest: ...
    @property
    def outcomes(self) -> tuple[Outcome, ...]: ...


@dataclass(frozen=True)
class Logged:
    """One method on one goal set, read back from a run's files."""

    row: ResultRow
    manifest: Manifest
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class Setup:
    """What it takes to run a finished evaluation's methods again: `evaluation/setup.json`."""

    checkpoint: str | None
    """Folder of the model, absolute; None where every method was a baseline without one."""
    seed: int
    """Of every method's noise."""
    methods: tuple[MethodConfig, ...]
    """As they were run: a time budget has become the search it allowed."""
    others: dict[str, str] = field(default_factory=dict)
    """Folder of the model by method, where it is not `checkpoint`."""

    def model_of(self, method: str) -> str | None:
        """Folder of the model that a method acts with."""
        return self.others.get(method, self.checkpoint)


def load_logged(run_dir: Path) -> list[Logged]:
    """All rows of a run with their manifests and outcomes.

    Raises FileNotFoundError or ValueError naming the file that is missing or damaged.
    """
    folder = run_dir / "evaluation"
    if not (run_dir / "results.json").is_file():
        raise FileNotFoundError(
            f"{run_dir} has no results.json: give a folder that `lewm evaluate` or `lewm demo` wrote"
        )
    measured = []
    for row in load_results(run_dir / "results.json"):
        manifest, log = folder / f"manifest_{row.goals}.json", folder / "outcomes" / f"{row.goals}.{row.method}.jsonl"
        for file in (manifest, log):
            if not file.is_file():
                raise FileNotFoundError(
                    f"{file} is missing, so {row.method} on {row.goals} cannot be reported: evaluate again"
                )
        goals, outcomes = load_manifest(manifest), read_outcomes(log)
        reached = reached_digits(outcome.success for outcome in outcomes)  # rows of an older lewm say neither
        measured.append(Logged(replace(row, manifest=fingerprint(goals), reached=reached), goals, outcomes))
    return measured


def save_setup(setup: Setup, run_dir: Path) -> None:
    """Keep how a run's methods were set up."""
    write_json(asdict(setup), run_dir / "evaluation" / "setup.json")


def load_setup(run_dir: Path) -> Setup:
    """How a run's methods were set up. Raises FileNotFoundError for a run of an older lewm."""
    path = run_dir / "evaluation" / "setup.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, so its methods cannot be run again: evaluate again with this lewm")
    return build(Setup, read_json(path), str(path))


def read_outcomes(log: Path) -> tuple[Outcome, ...]:
    """The outcomes `run_manifest` logged, by problem. Raises ValueError naming the file and line that do not fit."""
    outcomes = {}
    for number, line in enumerate(log.read_text().splitlines()[1:], start=2):
        try:
            outcome = Outcome(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise SchemaError(f"{log}, line {number} is not an outcome ({error}): run `lewm evaluate` again") from error
        outcomes[outcome.problem] = outcome
    return tuple(outcomes[i] for i in sorted(outcomes))
