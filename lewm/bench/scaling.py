"""`lewm bench plan --scaling`: milliseconds per plan as candidates, horizon, problems and latent tokens grow.

Fresh weights, latent L2 to the last frame, CEM; each axis grows alone, and the points of an axis take turns.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lewm.bench.plan import load_or_fresh, planning
from lewm.bench.sized import planner_at
from lewm.evaluate.timing import hardware, load_average, torch_threads, where_measured
from lewm.nets.predictors import PredictorConfig, RotaryConfig, build_predictor
from lewm.pipeline import pick_device
from lewm.planning.costs import CostConfig
from lewm.progress import Stage
from lewm.world_model import WorldModel

ITERATIONS = 3
WARMUP = 2
COST = CostConfig({"latent_l2": 1.0}, "terminal")


@dataclass(frozen=True)
class Point:
    """One size of search."""

    candidates: int = 64
    """Action sequences per iteration."""
    horizon: int = 4
    """Blocks planned ahead."""
    batch: int = 1
    """Problems planned at once."""
    tokens: int = 1
    """Latent tokens K per frame."""


AXES: dict[str, tuple[int, ...]] = {
    "candidates": (16, 64, 256, 1024),
    "horizon": (1, 2, 4, 8),
    "batch": (1, 4, 16, 64),
    "tokens": (1, 4, 16, 64),
}
"""Values that replace one field of `Point` at a time; the horizon stays within the context of the rotary predictor."""


@dataclass(frozen=True)
class ScalingRow:
    """One size of one predictor."""

    axis: str
    """The field of `Point` that grows."""
    predictor: str
    candidates: int
    iterations: int
    horizon: int
    batch: int
    tokens: int
    ms_p50: float
    """Milliseconds of one plan for all problems, latents to actions, noise included."""
    ms_p95: float
    ms_per_problem: float
    """ms_p50 / batch."""
    growth: float
    """ms_p50 over that of the first value of the axis."""
    cost: str
    model: str
    plans: int
    threads: int
    device: str
    hardware: str
    load: float | None
    """Load average of the last minute when the axis was begun: what else the machine was doing; None if unknown."""
    torch: str


def with_predictor(model: WorldModel, config: PredictorConfig, tokens: int) -> WorldModel:
    """The same model with a fresh predictor for K tokens; its encoder no longer fits, and is not asked.

    Weights come from torch's generator: no time depends on them.
    """
    changed = copy.deepcopy(model)
    changed.config = replace(model.config, predictor=config)
    changed.tokens = tokens
    predictor = build_predictor(config, model.latent_dim, model.action_dim, tokens).to(model.device).eval()
    changed.predictor, changed.context = predictor, predictor.context
    return changed


def planning_at(model: WorldModel, point: Point) -> Callable[[], None]:
    """A function that makes one plan of a size on random latents."""
    planner = planner_at("cem", point.candidates, ITERATIONS, point.horizon)
    return planning(model, None, planner, COST, point.batch)


def points(axis: str, single_token: bool) -> list[Point]:
    """The sizes of an axis; none for the tokens of a predictor that reads a single one."""
    if axis == "tokens" and single_token:
        return []
    return [replace(Point(), **{axis: value}) for value in AXES[axis]]


@torch.inference_mode()
def time_axis(model: WorldModel, config: PredictorConfig, axis: str, plans: int, name: str) -> list[ScalingRow]:
    """Time every size of one axis with one predictor, in turns."""
    load = load_average()
    sizes = points(axis, single_token=config.name == "mlp")
    runs = [planning_at(with_predictor(model, config, point.tokens), point) for point in sizes]
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(WARMUP + plans):
        for run, times in zip(runs, taken):
            start = time.perf_counter()
            run()
            times.append(1000 * (time.perf_counter() - start))
    rows: list[ScalingRow] = []
    for point, times in zip(sizes, taken):
        p50, p95 = (float(p) for p in np.percentile(times[WARMUP:], [50, 95]))
        rows.append(
            ScalingRow(
                axis=axis,
                predictor=config.name,
                candidates=point.candidates,
                iterations=ITERATIONS,
                horizon=point.horizon,
                batch=point.batch,
                tokens=point.tokens,
                ms_p50=p50,
                ms_p95=p95,
                ms_per_problem=p50 / point.batch,
                growth=p50 / rows[0].ms_p50 if rows else 1.0,
                cost=COST.label,
                model=name,
                plans=plans,
                threads=torch.get_num_threads(),
                device=model.device.type,
                hardware=hardware(),
                load=load,
                torch=torch.__version__,
            )
        )
    return rows


def bench_scaling(config: str, threads: int, plans: int, device: str) -> list[ScalingRow]:
    """Every axis, with the run's own predictor and with the rotary one, which reads any number of tokens."""
    if plans < 1:
        raise ValueError(f"--plans is {plans}; time at least one plan per row")
    model, _, name = load_or_fresh(None, config, pick_device(device))
    own, rotary = model.config.predictor, RotaryConfig()
    predictors = [own] if own.name == rotary.name else [own, rotary]
    rows = []
    with torch_threads(threads), Stage("bench scaling", len(predictors) * len(AXES), "axes") as stage:
        for predictor in predictors:
            for axis in AXES:
                rows += time_axis(model, predictor, axis, plans, name)
                stage.update()
    return rows


def table(rows: Sequence[ScalingRow]) -> str:
    """The rows as aligned text."""
    lines = [
        f"{'axis':<11} {'predictor':<9} {'candidates':>10} {'horizon':>7} {'batch':>6} {'tokens':>6} {'ms p50':>9}"
        f" {'p95':>9} {'per problem':>12} {'growth':>8}"
    ]
    for r in rows:
        lines.append(
            f"{r.axis:<11} {r.predictor:<9} {r.candidates:>10} {r.horizon:>7} {r.batch:>6} {r.tokens:>6}"
            f" {r.ms_p50:>9.2f} {r.ms_p95:>9.2f} {r.ms_per_problem:>12.3f} {r.growth:>7.1f}x"
        )
    first = rows[0]
    lines += [
        f"cem, {first.iterations} iterations, {first.cost}; {first.model}; latents to actions, all problems together",
        where_measured(first),
    ]
    return "\n".join(lines)


def plot_scaling(rows: Sequence[ScalingRow], path: Path) -> None:
    """One panel per axis, logarithmic; a dotted line grows in proportion."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * len(AXES), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    predictors = list(dict.fromkeys(row.predictor for row in rows))
    for column, axis in enumerate(AXES):
        axes = figure.add_subplot(1, len(AXES), column + 1)
        for i, predictor in enumerate(predictors):
            line = [r for r in rows if r.axis == axis and r.predictor == predictor]
            if not line:
                continue
            values = [getattr(r, axis) for r in line]
            axes.plot(values, [r.ms_p50 for r in line], "o-", color=f"C{i}", label=predictor, markersize=4)
            proportional = [line[0].ms_p50 * value / values[0] for value in values]
            axes.plot(values, proportional, ":", color=f"C{i}", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="ms per plan (median)" if column == 0 else "")
        axes.set_xticks(AXES[axis], [str(value) for value in AXES[axis]], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
