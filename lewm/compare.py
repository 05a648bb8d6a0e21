"""`lewm compare objectives`: every row of the table on the same recordings, with the same network and budget.

Resumable row by row: a finished row is a JSON file, an unfinished training continues.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lewm import pipeline
from lewm.checkpoint import Checkpoint, load
from lewm.config import RunConfig
from lewm.data.store import Store, split_episodes
from lewm.data.windows import Windows
from lewm.evaluate.evaluate import held_out_manifests
from lewm.evaluate.methods import PlanConfig, make_policy
from lewm.evaluate.runner import run_manifest
from lewm.evaluate.statistics import wilson
from lewm.evaluate.timing import hardware
from lewm.objectives import OBJECTIVES, ObjectiveConfig
from lewm.objectives.cjepa import CJepaConfig
from lewm.objectives.data2vec import Data2VecConfig
from lewm.objectives.ema import EmaConfig
from lewm.objectives.teacher import TeacherConfig
from lewm.probes import Health, linear_probe_r2, mlp_probe_r2, probe_model, state_targets
from lewm.progress import Stage
from lewm.schema import build, read_json, write_json
from lewm.train import train

COLLAPSED_RANK, COLLAPSED_STD = 0.1, 0.05
"""A latent counts as collapsed below this share of the ideal effective rank, or below this mean standard deviation: the
rank does not see a latent that shrinks evenly."""
CONTEXT = "information in the context"
PROBES = 4
"""Probes of the latent in the course of a training."""
SHORT_RUN = TeacherConfig("constant", 0.97)
"""A teacher for runs of some hundred steps; published momenta would leave it at its random start."""
ADAPTED: dict[str, tuple[ObjectiveConfig, str]] = {
    "ema": (EmaConfig(teacher=SHORT_RUN), "teacher momentum 0.97 instead of 0.996 to 1"),
    "cjepa": (CJepaConfig(teacher=SHORT_RUN), "teacher momentum 0.97 instead of 0.996 to 1"),
    "data2vec": (Data2VecConfig(teacher=SHORT_RUN), "teacher momentum 0.97 instead of 0.9998"),
}
"""Rows that are not run with their published constants, and what was changed; all others are."""


@dataclass(frozen=True)
class Success:
    """One planning cost on one goal set."""

    goals: str
    method: str
    n: int
    successes: int
    success: float
    low: float
    """Wilson 95 % interval."""
    high: float


@dataclass(frozen=True)
class CompareRow:
    """One objective, trained once."""

    task: str
    objective: str
    seed: int
    change: str
    """What differs from the published constants; empty for none."""
    steps: int
    seconds_per_step: float
    """Training, probes included."""
    effective_rank: float
    ideal_rank: float
    """Of an isotropic Gaussian of the same size."""
    std_min: float
    std_mean: float
    linear_r2: dict[str, float | None]
    """Held-out R2 of a linear probe per state factor; None where the factor does not vary."""
    mlp_r2: dict[str, float | None]
    """The same for a small MLP."""
    rollout_error: tuple[float, ...]
    """Held-out error after 1, 2, ... blocks, divided by the variance of the latents."""
    collapsed_at: int | None
    """First probed step from which the latent stayed collapsed (see COLLAPSED_RANK); None for never."""
    success: tuple[Success, ...]
    hardware: str
    torch: str


def objective_config(name: str) -> tuple[ObjectiveConfig, str]:
    """Configuration a row is compared with, and what differs from its published constants."""
    if name not in OBJECTIVES:
        raise ValueError(f"no objective is called {name!r}; there are {', '.join(OBJECTIVES)}")
    if name in ADAPTED:
        return ADAPTED[name]
    return build(RunConfig, {"task": "", "objective": {"name": name}}, name).objective, ""


def compare_objectives(
    runs: Sequence[RunConfig], names: Sequence[str], seeds: Sequence[int], out: Path, device: torch.device
) -> list[CompareRow]:
    """Train and measure every (task, objective, seed); finished rows in `out` are kept."""
    configs = {name: objective_config(name) for name in names}  # refuse a wrong name before any work
    rows = []
    for run in runs:
        store = pipeline.record(run, out / run.task / "data", processes=1)
        for seed in seeds:
            for name, (config, change) in configs.items():
                folder = out / run.task / f"{name}.{seed}"
                if (folder / "row.json").exists():
                    rows.append(build(CompareRow, read_json(folder / "row.json"), str(folder / "row.json")))
                    continue
                print(f"== {run.task}, {name}, seed {seed}")
                every = max(1, run.train.steps // PROBES)
                settings = replace(run.train, seed=seed, probe_every=every)
                row = compare_one(replace(run, objective=config, train=settings), change, store, folder, device)
                write_json(asdict(row), folder / "row.json")
                rows.append(row)
    return rows


def compare_one(run: RunConfig, change: str, store: Store, folder: Path, device: torch.device) -> CompareRow:
    """One row: train, probe, plan with latent L2 and with cost-to-go."""
    history = folder / "probes.json"
    saved: dict[str, Any] = read_json(history) if history.exists() else {"seconds": 0.0, "probes": {}}
    probes = {int(step): criteria for step, criteria in saved["probes"].items()}
    started = time.monotonic() - saved["seconds"]

    def watch(step: int, health: Health) -> None:
        # Kept at once: a row that is killed and continued must still know what it saw and how long it took.
        probes[step] = health.criteria
        write_json({"seconds": time.monotonic() - started, "probes": probes}, history)

    train(run.model, run.objective, run.train, store, folder / "train", device, on_probe=watch)
    seconds = read_json(history)["seconds"] if history.exists() else math.nan
    checkpoint = load(pipeline.fit(run, store, folder, device), str(device))
    health, linear, curved = measure_latent(checkpoint, store)
    last = probes.setdefault(run.train.steps, health.criteria)  # a kill may have come before the last probe
    return CompareRow(
        task=run.task,
        objective=run.objective.name,
        seed=run.train.seed,
        change=change,
        steps=run.train.steps,
        seconds_per_step=seconds / run.train.steps,
        effective_rank=last[f"{CONTEXT}/effective_rank"],
        ideal_rank=last[f"{CONTEXT}/effective_rank/ideal"],
        std_min=health.std_D.min().item(),
        std_mean=health.std_D.mean().item(),
        linear_r2=linear,
        mlp_r2=curved,
        rollout_error=tuple(health.rollout_error_T.tolist()),
        collapsed_at=collapse_step(probes),
        success=tuple(plan_with(run, checkpoint, store, folder)),
        hardware=hardware(),
        torch=torch.__version__,
    )


def collapse_step(probes: dict[int, dict[str, float]]) -> int | None:
    """The first probed step from which on every probe shows a collapsed latent."""

    def collapsed(criteria: dict[str, float]) -> bool:
        rank, ideal = criteria[f"{CONTEXT}/effective_rank"], criteria[f"{CONTEXT}/effective_rank/ideal"]
        return rank < COLLAPSED_RANK * ideal or criteria[f"{CONTEXT}/std_mean"] < COLLAPSED_STD

    healthy = [step for step, criteria in probes.items() if not collapsed(criteria)]
    late = [step for step in probes if step > max(healthy, default=-1)]
    return min(late, default=None)


def measure_latent(
    checkpoint: Checkpoint, store: Store, clips: int = 400
) -> tuple[Health, dict[str, float | None], dict[str, float | None]]:
    """Health of the final latent, and what linear and MLP probes read from it, on held-out episodes."""
    model, origin = checkpoint.model, checkpoint.origin
    rng = np.random.default_rng(0)
    batches = []
    for episodes in split_episodes(store.num_episodes, origin.held_out, origin.seed):
        windows = Windows(store, model.config.window(5), episodes, "disk", model.device)
        batches.append(windows.batch(rng.choice(len(windows), min(clips, len(windows)), replace=False)))
    fit, test = batches
    health = probe_model(model, fit, test, origin.state_names, origin.angle_names)
    with torch.no_grad():
        latents = [model.encode(b.pixels_BTCYX).flatten(0, 1).flatten(1).float().cpu() for b in batches]
    targets, labels = zip(
        *(state_targets(b.state_BTS.flatten(0, 1).cpu(), origin.state_names, origin.angle_names) for b in batches),
        strict=True,
    )
    found = [probe(latents[0], targets[0], latents[1], targets[1]) for probe in (linear_probe_r2, mlp_probe_r2)]
    named = [dict(zip(labels[0], r2.tolist(), strict=True)) for r2 in found]
    linear, curved = ({name: None if math.isnan(r2) else r2 for name, r2 in r2s.items()} for r2s in named)
    return health, linear, curved


def plan_with(run: RunConfig, checkpoint: Checkpoint, store: Store, folder: Path) -> list[Success]:
    """Success of the run's world-model planners on its goal sets."""
    rows = []
    for manifest in held_out_manifests(run.evaluate, store, checkpoint, folder / "evaluation"):
        for method in run.evaluate.methods:
            if not isinstance(method, PlanConfig):
                continue
            goals = manifest.goals.name
            log = folder / "evaluation" / f"{goals}.{method.name}.jsonl"
            with Stage(f"{goals} {method.name}", len(manifest.problems), "goals") as stage:
                policy = make_policy(method, checkpoint, run.evaluate.seed)
                outcomes = run_manifest(policy, manifest, log, json.dumps(asdict(method)), run.evaluate.batch)
                stage.update(len(outcomes))
            n, reached = len(outcomes), sum(o.success for o in outcomes)
            rows.append(Success(goals, method.name, n, reached, reached / n, *wilson(reached, n)))
    return rows


def table(rows: Sequence[CompareRow]) -> str:
    """The rows as Markdown, one line each."""
    if not rows:
        return "no rows"
    plans = [(s.goals, s.method) for s in rows[0].success]
    head = ["task", "objective", "seed", "rank / ideal", "std min", "linear R2", "MLP R2", "rollout error", "s/step"]
    head += [f"{goals} {method}" for goals, method in plans] + ["collapsed at"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for r in rows:
        worst = [min((v for v in r2.values() if v is not None), default=float("nan")) for r2 in (r.linear_r2, r.mlp_r2)]
        cells = [r.task, r.objective, str(r.seed), f"{r.effective_rank:.1f} / {r.ideal_rank:.1f}", f"{r.std_min:.3f}"]
        cells += [f"{worst[0]:.3f}", f"{worst[1]:.3f}", f"{r.rollout_error[-1]:.3f}", f"{r.seconds_per_step:.3f}"]
        cells += [f"{100 * s.success:.0f} ({100 * s.low:.0f}-{100 * s.high:.0f})" for s in r.success]
        cells.append("-" if r.collapsed_at is None else str(r.collapsed_at))
        lines.append("| " + " | ".join(cells) + " |")
    changes = {f"{r.objective}: {r.change}" for r in rows if r.change}
    notes = "\n".join(["", "R2: the worst state factor.", *sorted(changes)])
    return "\n".join(lines) + "\n" + notes
