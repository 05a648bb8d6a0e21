"""`lewm compare objectives`: every objective on the same recordings, with the same network and budget.

Resumable: a finished row is kept, an unfinished one continues.
"""

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from lewm import pipeline
from lewm.checkpoint import Checkpoint, load
from lewm.compare.objectives_report import write_outputs
from lewm.compare.objectives_rows import CompareRow, CurvePoint, Success, collapse_step, curve_point
from lewm.compare.shared import leaves, refuse_others
from lewm.config import RunConfig, dump
from lewm.data.store import Store, split_episodes
from lewm.data.windows import Windows
from lewm.evaluate.evaluate import held_out_manifests
from lewm.evaluate.manifest import Manifest
from lewm.evaluate.methods import PlanConfig, make_policy, within_budget
from lewm.evaluate.runner import run_manifest
from lewm.evaluate.statistics import wilson
from lewm.evaluate.timing import hardware
from lewm.evaluate.workers import shared_by
from lewm.nets.frozen import FrozenConfig
from lewm.objectives import OBJECTIVES, RunObjective
from lewm.objectives.addons import TERMS
from lewm.objectives.cjepa import CJepaConfig
from lewm.objectives.data2vec import Data2VecConfig
from lewm.objectives.ema import EmaConfig
from lewm.objectives.reconstruction import ReconstructionConfig
from lewm.objectives.simsiam import SimSiamConfig
from lewm.objectives.teacher import TeacherConfig
from lewm.planning.policy import Policy
from lewm.probes import Health, probe_model
from lewm.processes import Processes
from lewm.progress import Stage
from lewm.schema import build, read_json, write_json
from lewm.train import Trainer, build_model, model_facts, train
from lewm.world_model import WorldModel

POINTS = 12
"""Points of a curve after the fresh weights, evenly spread over the training."""
MLP_EVERY = 3
"""Every how manieth of them has an MLP probe, which takes seconds to fit."""
FINAL_CLIPS = 400
"""Fewest clips the end is measured on, and as many to fit the probes; a point takes `train.probe_clips`."""
ROUNDS, TIMED = 3, 8
"""Turns that objectives take when they are timed again, and steps of a turn."""
SHORT_RUN = TeacherConfig("constant", 0.97)
"""A teacher for runs of some hundred steps; published momenta would leave it at its random start."""


@dataclass(frozen=True)
class Recipe:
    """How an objective is compared."""

    objective: RunObjective
    change: str = ""
    """What differs from its published constants."""
    batch_norm: bool = False
    """Whether the encoder ends in a BatchNorm, for methods that do not set the scale of the latents themselves."""
    add_ons: tuple[str, ...] = ()
    """Terms added to it, each with weight 1."""

    @property
    def name(self) -> str:
        """As it is asked for and called in tables: sigreg, or sigreg+fovea."""
        return "+".join([self.objective.name, *self.add_ons])

    def apply(self, run: RunConfig) -> RunConfig:
        """The run with this objective. ValueError for a frozen encoder, which no objective shapes."""
        if isinstance(run.model.encoder, FrozenConfig):
            raise ValueError(
                "model.encoder is frozen, and objectives are compared by the encoders they train: use conv"
            )
        encoder = replace(run.model.encoder, batch_norm=self.batch_norm)
        weights: dict[str, Any] = dict.fromkeys(self.add_ons, 1.0)
        add_ons = replace(run.train.add_ons, **weights)
        train_config = replace(run.train, add_ons=add_ons)
        return replace(run, objective=self.objective, model=replace(run.model, encoder=encoder), train=train_config)


TEACHER, NORM = "teacher momentum 0.97 instead of", "the encoder ends in a BatchNorm"
ADAPTED: dict[str, Recipe] = {
    "ema": Recipe(EmaConfig(teacher=SHORT_RUN), f"{TEACHER} 0.996 to 1; {NORM}", batch_norm=True),
    "simsiam": Recipe(SimSiamConfig(projector=256, predictor=64), "heads 256 and 64 wide instead of 2048 and 512"),
    "data2vec": Recipe(Data2VecConfig(teacher=SHORT_RUN), f"{TEACHER} 0.9998; {NORM}", batch_norm=True),
    "cjepa": Recipe(CJepaConfig(teacher=SHORT_RUN), f"{TEACHER} 0.996 to 1"),
    "reconstruction": Recipe(ReconstructionConfig(), NORM, batch_norm=True),
}
"""Rows that are not run with their published constants; all others are."""


def recipe(name: str) -> Recipe:
    """How a row is compared: an objective's name, and after a + those of add-ons, as in sigreg+fovea."""
    objective, *add_ons = name.split("+")
    if objective not in OBJECTIVES:
        raise ValueError(f"no objective is called {objective!r}; there are {', '.join(OBJECTIVES)}")
    if unknown := [term for term in add_ons if term not in TERMS]:
        raise ValueError(f"{name}: no add-on is called {unknown[0]!r}; there are {', '.join(TERMS)}")
    row = ADAPTED[objective] if objective in ADAPTED else Recipe(default_objective(objective))
    return replace(row, add_ons=tuple(add_ons))


def default_objective(name: str) -> RunObjective:
    """An objective as it is without settings."""
    return build(RunConfig, {"task": "", "objective": {"name": name}}, name).objective


def compare_objectives(
    runs: Sequence[RunConfig], names: Sequence[str], seeds: Sequence[int], out: Path, device: torch.device
) -> list[CompareRow]:
    """Train and measure every (task, objective, seed); finished rows in `out` are kept.

    After every row `out/report.html` and `out/summary.json` are written anew. The objective of a run is not used.
    Raises ValueError for an unknown objective and for two runs of one task, and RuntimeError naming the first setting
    that differs from those a row in `out` was begun with.
    """
    recipes = [recipe(name) for name in names]  # refuse a wrong name before any work
    tasks = [run.task for run in runs]
    if twice := sorted({task for task in tasks if tasks.count(task) > 1}):
        raise ValueError(f"two runs are of the task {twice[0]}; compare them one at a time, each with its own --out")
    planned = []
    for run in runs:
        for seed in seeds:
            train_config = replace(run.train, seed=seed, probe_every=spacing(run.train.steps))
            planned += [(r.apply(replace(run, train=train_config)), r) for r in recipes]
    for run, row in planned:
        claim(run, row_folder(run, row, out))  # refuse other settings before any work
    stores = {run.task: pipeline.record(run, out / run.task / "data", processes=1) for run in runs}
    texts = {run.task: dump(run) for run in runs}
    rows: list[CompareRow] = []
    for run, row in planned:
        folder = row_folder(run, row, out)
        if (folder / "row.json").exists():
            rows.append(build(CompareRow, read_json(folder / "row.json"), str(folder / "row.json")))
            continue
        print(f"== {run.task}, {row.name}, seed {run.train.seed}")
        write_json(leaves(run), folder / "settings.json")
        rows.append(compare_one(run, row, stores[run.task], folder, device))
        write_json(asdict(rows[-1]), folder / "row.json")
        write_outputs(rows, out, texts)
    print(f"report {write_outputs(rows, out, texts)}")
    return rows


def time_again(runs: Sequence[RunConfig], names: Sequence[str], out: Path, device: torch.device) -> None:
    """Take the seconds per step of all finished rows in `out` again, of every objective in one go: on a quiet machine.

    The objectives take turns, `ROUNDS` of `TIMED` steps each; the median stands in the rows of all seeds.
    """
    for run in runs:
        recipes = [recipe(name) for name in names]
        kept = {row.name: sorted((out / run.task).glob(f"{row.name}.*/row.json")) for row in recipes}
        store = pipeline.record(run, out / run.task / "data", processes=1)
        with TemporaryDirectory() as folder:
            trainers = {
                row.name: Trainer(changed.model, changed.objective, changed.train, store, Path(folder), device)
                for row in recipes
                if kept[row.name] and (changed := row.apply(run))
            }
            taken: dict[str, list[float]] = {name: [] for name in trainers}
            with Stage("time again", ROUNDS * len(trainers), "rounds") as stage:
                for _ in range(ROUNDS):
                    for name, trainer in trainers.items():
                        trainer.update(trainer.read_batch())  # what it needs is in the cache again
                        began = time.perf_counter()
                        for _ in range(TIMED):
                            trainer.update(trainer.read_batch())
                        taken[name].append((time.perf_counter() - began) / TIMED)
                        stage.update()
        for name, seconds in taken.items():
            for path in kept[name]:
                row = build(CompareRow, read_json(path), str(path))
                again = replace(row, seconds_per_step=statistics.median(seconds), hardware=hardware())
                write_json(asdict(again), path)


def spacing(steps: int) -> int:
    """Steps between two points of a curve."""
    return max(1, steps // POINTS)


def row_folder(run: RunConfig, row: Recipe, out: Path) -> Path:
    """Where everything of a row lies."""
    return out / run.task / f"{row.name}.{run.train.seed}"


def claim(run: RunConfig, folder: Path) -> None:
    """Refuse a folder that holds a row, finished or not, of other settings."""
    if not folder.exists():
        return
    path = folder / "settings.json"
    if not path.exists():
        raise RuntimeError(f"{folder} has no settings.json to tell how it was made; delete it, or choose another --out")
    refuse_others(folder, leaves(run), read_json(path))


def changed_settings(config: RunObjective) -> dict[str, Any]:
    """The settings of an objective that differ from its defaults, by dotted key."""
    ours, theirs = leaves(config), leaves(default_objective(config.name))
    return {key: value for key, value in ours.items() if key not in theirs or theirs[key] != value}


class Curve:
    """The points of a row, kept on disk as they come: a row that is killed and continued still knows what it saw."""

    def __init__(self, path: Path, steps: int) -> None:
        self.path, self.steps = path, steps
        saved = read_json(path) if path.exists() else []
        self.points = {p.step: p for p in (build(CurvePoint, point, str(path)) for point in saved)}
        self.last: tuple[int, float] | None = None
        """Step and moment of the last point of this process."""

    def add(self, step: int, health: Health) -> None:
        """Keep a measurement made after `step` steps; the trainer calls this."""
        per_step = None
        if self.last is not None:
            first, moment = self.last
            per_step = (time.perf_counter() - moment - health.seconds) / (step - first)
        mlp = step % (MLP_EVERY * spacing(self.steps)) == 0 or step == self.steps
        self.points[step] = curve_point(step, health, mlp, per_step)
        write_json([asdict(point) for point in self.in_order()], self.path)
        self.last = step, time.perf_counter()

    def in_order(self) -> tuple[CurvePoint, ...]:
        """The points, first to last."""
        return tuple(self.points[step] for step in sorted(self.points))

    def seconds_per_step(self) -> float | None:
        """Median over the stretches that were timed, so that a pause now and then does not count."""
        timed = [p.seconds_per_step for p in self.points.values() if p.seconds_per_step is not None]
        return statistics.median(timed) if timed else None


def compare_one(run: RunConfig, row: Recipe, store: Store, folder: Path, device: torch.device) -> CompareRow:
    """One row: measure the fresh weights, train, measure, plan with every cost of the run."""
    curve = Curve(folder / "curve.json", run.train.steps)
    if 0 not in curve.points:
        fresh = build_model(run.model, model_facts(store, run.model), run.train.seed).to(device)
        curve.add(0, measure_latent(fresh, run, store, run.train.probe_clips))
        curve.last = None  # what lies before the first step is no training
    train(run.model, run.objective, run.train, store, folder / "train", device, on_probe=curve.add)
    checkpoint = load(pipeline.fit(run, store, folder, device), str(device))
    end = curve_point(
        run.train.steps, measure_latent(checkpoint.model, run, store, max(FINAL_CLIPS, run.train.probe_clips)), mlp=True
    )
    curve.points.setdefault(end.step, end)  # a kill may have come between the last step and its point
    return CompareRow(
        task=run.task,
        objective=row.name,
        seed=run.train.seed,
        change=row.change,
        steps=run.train.steps,
        seconds_per_step=curve.seconds_per_step(),
        effective_rank=end.effective_rank,
        ideal_rank=end.ideal_rank,
        std_min=end.std_min,
        std_mean=end.std_mean,
        linear_r2=end.linear_r2,
        mlp_r2=end.mlp_r2,
        rollout_error=end.rollout_error,
        collapsed_at=collapse_step(curve.in_order()),
        success=tuple(success for success, _, _ in plan_with(run, checkpoint, store, folder)),
        hardware=hardware(),
        torch=torch.__version__,
        condition_number=end.condition_number,
        settings=changed_settings(run.objective),
        curve=curve.in_order(),
    )


def measure_latent(model: WorldModel, run: RunConfig, store: Store, clips: int) -> Health:
    """Health of a latent on clips of held-out episodes; probes are fitted on as many clips of training episodes.

    With the clips of a curve's points these are the very clips that the trainer probes.
    """
    rng = np.random.default_rng(run.train.seed)
    spec, batches = model.config.window(run.train.frames), []
    parts = split_episodes(store.num_episodes, run.train.held_out, run.train.seed)
    windows = [Windows(store, spec, episodes, "disk", model.device) for episodes in parts]
    count = min(clips, *(len(part) for part in windows))
    for part in windows:
        batches.append(part.batch(rng.choice(len(part), count, replace=False)))
    fit, test = batches
    meta = store.meta
    return probe_model(model, fit, test, tuple(meta.state_names), tuple(meta.angle_names), run.train.history)


Planned = tuple[Success, Manifest, Policy]
"""One planner on one goal set: how it went, the goals, and the policy that went for them."""


def plan_with(run: RunConfig, checkpoint: Checkpoint, store: Store, folder: Path) -> Iterator[Planned]:
    """The run's world-model planners on its goal sets, one after the other; outcomes in `folder` are kept."""
    planned = [method for method in run.evaluate.methods if isinstance(method, PlanConfig)]
    methods = [within_budget(method, checkpoint, run.evaluate.threads, quiet=False) for method in planned]
    how = run.evaluate
    with Processes(how.processes) as processes:
        for manifest in held_out_manifests(how, store, checkpoint, folder / "evaluation"):
            for method in methods:
                goals = manifest.goals.name
                log = folder / "evaluation" / f"{goals}.{method.name}.jsonl"
                with Stage(f"{goals} {method.name}", len(manifest.problems), "goals") as stage:
                    policy = make_policy(method, checkpoint, how.seed)
                    share = shared_by(processes, method, checkpoint, how.seed, manifest)
                    key = json.dumps(asdict(method))
                    outcomes = run_manifest(policy, manifest, log, key, how.batch, run=share)
                    stage.update(len(outcomes))
                n, reached = len(outcomes), sum(o.success for o in outcomes)
                yield Success(goals, method.name, n, reached, reached / n, *wilson(reached, n)), manifest, policy
