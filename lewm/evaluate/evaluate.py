"""Evaluation: goal sets x methods -> manifests, outcomes, result rows. Half-done runs continue."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import torch

import envs
from lewm import __version__
from lewm.baselines import OracleConfig, RandomConfig
from lewm.baselines.replay import ReplayConfig
from lewm.checkpoint import Checkpoint, split_of
from lewm.data.store import Store
from lewm.evaluate.fingerprint import fingerprint
from lewm.evaluate.manifest import GoalSet, Manifest, is_recorded, load_manifest, make_manifest, save_manifest
from lewm.evaluate.methods import (
    LearnedConfig,
    MethodConfig,
    PlanConfig,
    labels,
    make_policy,
    training_budget,
    weight_files,
    within_budget,
)
from lewm.evaluate.results import ResultRow, reached_digits
from lewm.evaluate.runner import Outcome, revisions, run_manifest
from lewm.evaluate.statistics import wilson
from lewm.evaluate.timing import hardware, time_plans
from lewm.evaluate.workers import shared_by
from lewm.planning.policy import Policy
from lewm.processes import Processes
from lewm.progress import Stage


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured."""

    goals: tuple[GoalSet, ...] = (GoalSet("ahead_25"),)
    """Sets of start and goal pairs."""
    methods: tuple[MethodConfig, ...] = field(default_factory=lambda: (PlanConfig(), RandomConfig(), OracleConfig()))
    """Planners and baselines; a random and an oracle row are added where they are missing."""
    seed: int = 0
    """Decides the pairs and every method's noise."""
    batch: int = 50
    """Problems that run side by side; never changes an outcome."""
    processes: int = 1
    """Processes that share the goals of a method, each with a model of its own; never changes an outcome either. Plans
    are timed in one, with `threads`."""
    timed_plans: int = 50
    """Plans timed per method, one problem at a time."""
    threads: int = 1
    """Torch threads while timing."""

    def __post_init__(self) -> None:
        for name in ("batch", "processes", "timed_plans", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluate.{name} is {getattr(self, name)}; it must be at least 1")
        for what, names in (("goals", [g.name for g in self.goals]), ("methods", [m.name for m in self.methods])):
            if len(set(names)) != len(names):
                raise ValueError(
                    f"evaluate.{what}: two are called {max(names, key=names.count)!r}; give each its own name"
                )


@dataclass(frozen=True)
class Evaluated:
    """One method on one goal set: the row and every outcome behind it."""

    row: ResultRow
    manifest: Manifest
    method: MethodConfig
    outcomes: tuple[Outcome, ...]


def held_out_manifests(config: EvaluateConfig, store: Store, checkpoint: Checkpoint, out: Path) -> list[Manifest]:
    """The manifests of all goal sets, from the episodes the checkpoint did not see; saved and reused in `out`.

    Raises ValueError for recordings that the checkpoint was not trained on, see `split_of`, and where `out` holds a
    manifest of other goals, another world or other episodes.
    """
    _, held_out = split_of(checkpoint, store)
    manifests = []
    for goals in config.goals:
        path = out / f"manifest_{goals.name}.json"
        if path.exists():
            manifest = load_manifest(path)
            if manifest.goals != goals or manifest.seed != config.seed:
                raise ValueError(f"{path} holds another goal set or seed: choose another --out, or delete it")
            if (manifest.task, manifest.settings) != (store.meta.task, store.meta.settings) or (
                manifest.held_out and manifest.held_out != tuple(held_out.tolist())
            ):
                raise ValueError(
                    f"{path} holds goals of another task or world, or from episodes that {checkpoint.path} may have "
                    "seen: choose another --out, or delete it"
                )
        else:
            manifest = make_manifest(goals, store, held_out, config.seed)
            save_manifest(manifest, path)
        manifests.append(manifest)
    return manifests


def with_baselines(methods: Sequence[MethodConfig]) -> tuple[MethodConfig, ...]:
    """The methods, and the floor and the ceiling that belong in every table."""
    kinds = {method.kind for method in methods}
    return (*methods, *(baseline for baseline in (RandomConfig(), OracleConfig()) if baseline.kind not in kinds))


def applicable(methods: Sequence[MethodConfig], manifest: Manifest) -> list[MethodConfig]:
    """The methods without the replay where nothing recorded leads to the goals.

    Raises ValueError for a replay on a manifest too old to tell.
    """
    return [method for method in methods if not isinstance(method, ReplayConfig) or is_recorded(manifest)]


def outcome_key(method: MethodConfig, manifest: Manifest, checkpoint: Checkpoint | None, seed: int) -> str:
    """What an outcome depends on; a log written for anything else is not continued.

    The weights themselves count and what they take as input, not where they lie, nor where a peer's interpreter does.
    """
    model = checkpoint.model if checkpoint is not None and isinstance(method, LearnedConfig) else None
    reads = [asdict(model.config), asdict(model.facts)] if model is not None else []
    weights = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in weight_files(method, checkpoint))
    world = _renderer(manifest.task, json.dumps(manifest.settings))
    said = {name: value for name, value in asdict(method).items() if name not in ("path", "python")}
    parts = [__version__, world, said, fingerprint(manifest), weights, reads, seed]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _renderer(task: str, settings: str) -> str:
    """What a task's pictures depend on beside its settings (JSON); takes a while, and is asked for every row."""
    env = envs.make(task, **json.loads(settings))
    try:
        return env.renderer_fingerprint()
    finally:
        env.close()


def evaluate(
    config: EvaluateConfig,
    manifests: Sequence[Manifest],
    checkpoint: Checkpoint | None,
    out: Path,
    quiet: bool = False,
) -> list[Evaluated]:
    """Run every method on every manifest; outcomes are logged in `out` as they come and reused by the next call."""
    names = [manifest.goals.name for manifest in manifests]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two manifests are called {min(twice)}: evaluate them one at a time, each with its own --out")
    results = []
    methods = [within_budget(method, checkpoint, config.threads, quiet) for method in with_baselines(config.methods)]
    rows = [(manifest, applicable(methods, manifest)) for manifest in manifests]
    policies = {method.name: make_policy(method, checkpoint, config.seed) for method in methods}
    with Processes(config.processes) as processes:
        for manifest, fitting in rows:
            if len(fitting) < len(methods) and not quiet:
                print(f"{manifest.goals.name}: no replay, nothing recorded leads to goals elsewhere", file=sys.stderr)
            for method in fitting:
                policy = policies[method.name]
                results.append(run_method(config, method, policy, manifest, checkpoint, out, processes, quiet))
    return results


def acts_on(method: MethodConfig, checkpoint: Checkpoint | None) -> str:
    """The kind of device a method decides on."""
    if checkpoint and isinstance(method, LearnedConfig):
        return checkpoint.model.device.type
    return torch.device(getattr(method, "device", "cpu")).type


def run_method(
    config: EvaluateConfig,
    method: MethodConfig,
    policy: Policy,
    manifest: Manifest,
    checkpoint: Checkpoint | None,
    out: Path,
    processes: Processes,
    quiet: bool = False,
) -> Evaluated:
    """One method on one manifest, and its times; outcomes are logged in `out` as they come, and reused."""
    log = out / "outcomes" / f"{manifest.goals.name}.{method.name}.jsonl"
    with Stage(f"{manifest.goals.name} {method.name}", len(manifest.problems), "goals", quiet) as stage:

        def report(count: int, solved: int) -> None:
            stage.update(count, solved=str(solved))

        key = outcome_key(method, manifest, checkpoint, config.seed)
        run = shared_by(processes, method, checkpoint, config.seed, manifest)
        outcomes = run_manifest(policy, manifest, log, key, config.batch, report, run)
        stage.done = len(outcomes)
    device = acts_on(method, checkpoint)
    times = time_plans(policy, manifest, config.timed_plans, config.threads, device)
    n, successes = len(outcomes), sum(o.success for o in outcomes)
    low, high = wilson(successes, n)
    row = ResultRow(
        task=manifest.task,
        goals=manifest.goals.name,
        **asdict(labels(method)),
        budget=manifest.goals.budget,
        n=n,
        successes=successes,
        success=successes / n,
        low=low,
        high=high,
        plan_ms_p50=times.plan_ms_p50,
        plan_ms_p95=times.plan_ms_p95,
        encode_ms_p50=times.encode_ms_p50,
        threads=config.threads,
        device=device,
        seed=config.seed,
        hardware=hardware(),
        torch=torch.__version__,
        kind=method.kind,
        manifest=fingerprint(manifest),
        commit=revisions(log),
        joules_per_plan=times.joules,
        trained=training_budget(method, checkpoint),
        true_state=getattr(policy, "knows_state", False),
        reached=reached_digits(outcome.success for outcome in outcomes),
    )
    return Evaluated(row, manifest, method, tuple(outcomes))
