"""`lewm bench plan --breakdown`: where the time of a plan goes, and how close each part is to this machine's GEMM.

The parts are those of the plan that agents make: the same code runs with a meter at its seams, once reading a clock and
once reading torch's count of floating-point operations.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lewm.bench.measure import wait
from lewm.bench.plan import load_or_fresh
from lewm.cost_to_go import CostToGo
from lewm.data.stacking import channels_first
from lewm.evaluate.timing import hardware, load_average, torch_threads, where_measured
from lewm.pipeline import pick_device
from lewm.planning.action_limits import action_box
from lewm.planning.costs import CostConfig, GoalCost, Situation
from lewm.planning.fast_affine import Affine
from lewm.planning.fast_loop import Rollout
from lewm.planning.fast_rollout import FastMLP, FastModel, FastRollout, prepare
from lewm.planning.fast_tokens import FastAC, FastDinoWM
from lewm.planning.fast_transformer import FastTransformer
from lewm.world_model import WorldModel
from planners import CEM, noise_table

PARTS = {
    "encode": "one picture, normalised on the device, to its latent",
    "conditioning": "all actions of all candidates through the predictor's action maps",
    "steps": "the rest of the rollout, block after block",
    "distance": "imagined frames to costs",
    "search": "drawing, sorting, refitting",
    "noise, copies": "drawing the noise table, to the device, the plan back",
}
"""What a plan consists of."""
WHOLE = "whole plan"
SEARCHES = (
    (CEM(candidates=32, iterations=3, elites=6, horizon=2, execute="best"), CostConfig()),
    (CEM(candidates=300, iterations=10, elites=30, horizon=5), CostConfig({"latent_l2": 1.0}, "terminal")),
)
"""A learned distance with little search, and the literature's distance with its search."""
WARMUP = 3
GEMM = {"cpu": 512, "cuda": 8192}
"""Rows and columns of the square float32 product that peak speed is measured with."""
GEMMS = 20
"""How many of them, before the plans and again after."""


@dataclass(frozen=True)
class PartRow:
    """One part of a plan for one problem."""

    part: str
    """A row of `PARTS`, or the whole plan, timed without meters."""
    ms_p50: float
    share: float
    """Of the sum of all parts."""
    mflop: float
    """Millions of floating-point operations, see `count_flops`."""
    gflop_per_s: float
    """mflop / ms_p50."""
    of_peak: float
    """gflop_per_s over that of a large matrix product here."""
    gemm_gflop_per_s: float
    """The fastest of the large float32 products, before and after the plans."""
    planner: str
    candidates: int
    iterations: int
    horizon: int
    cost: str
    model: str
    plans: int
    threads: int
    device: str
    hardware: str
    load: float | None
    """Load average of the last minute when the row was begun: what else the machine was doing; None if unknown."""
    torch: str


class Meter:
    """Adds up, part by part, what a reading grows by while the part runs."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self.total: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Everything inside belongs to `name`; parts may be nested, and the outer one then counts both."""
        before = self.read()
        yield
        self.total[name] += self.read() - before

    def parts(self) -> dict[str, float]:
        """What each row of `PARTS` alone has taken."""
        total = self.total
        return {
            "encode": total["encode"],
            "conditioning": total["conditioning"],
            "steps": total["rollout"] - total["conditioning"],
            "distance": total["cost"] - total["rollout"],
            "search": total["plan"] - total["cost"],
            "noise, copies": total["noise, copies"],
        }


@dataclass(frozen=True)
class MeteredAffine(Affine):
    """An affine map of actions alone."""

    meter: Meter

    def __call__(self, x: Tensor) -> Tensor:
        """As `Affine`."""
        with self.meter.part("conditioning"):
            return super().__call__(x)


@dataclass(frozen=True)
class MeteredRollout:
    """A `FastRollout` with a meter around it."""

    inner: FastRollout
    meter: Meter

    def begin(self, latent_BTKD: Tensor, past_BTA: Tensor) -> Rollout:
        """See `FastRollout`."""
        with self.meter.part("rollout"):
            futures = self.inner.begin(latent_BTKD, past_BTA)

        def rollout(action_BNHA: Tensor) -> list[Tensor]:
            with self.meter.part("rollout"):
                return futures(action_BNHA)

        return rollout


def metered(fast: FastModel, meter: Meter) -> FastModel:
    """The same model, prepared for planning, with a meter at its seams. Raises TypeError for an unknown predictor."""

    def watch(affine: Affine) -> MeteredAffine:
        return MeteredAffine(affine.weight_IO, affine.bias_O, meter)

    inner: FastRollout = fast.rollout
    if isinstance(inner, FastMLP):
        inner = replace(inner, action=watch(inner.action))
    elif isinstance(inner, FastTransformer):
        blocks = tuple(replace(block, modulation=watch(block.modulation)) for block in inner.blocks)
        inner = replace(inner, condition=tuple(watch(affine) for affine in inner.condition), blocks=blocks)
    elif isinstance(inner, FastAC):
        inner = replace(inner, action=watch(inner.action), change=None if inner.change is None else watch(inner.change))
    elif isinstance(inner, FastDinoWM):
        inner = replace(inner, action=watch(inner.action))
    else:
        raise TypeError(f"the breakdown does not know {type(inner).__name__}; say in `metered` where its actions enter")
    return replace(fast, rollout=MeteredRollout(inner, meter))


@dataclass(frozen=True)
class PlanOnce:
    """One plan from a picture to an action, with all that stays the same from plan to plan."""

    model: WorldModel
    head: CostToGo | None
    fast: FastModel
    planner: CEM
    cost: CostConfig

    def __call__(self, meter: Meter | None = None) -> None:
        """Plan; with a meter, its parts are added up."""
        model, planner, device = self.model, self.planner, self.model.device
        quiet = Meter(lambda: 0.0) if meter is None else meter
        fast = self.fast if meter is None else metered(self.fast, meter)
        size, stack = model.facts.size, model.config.frame_stack
        pictures = [np.full((1, 1, size, size, 3), 100, np.uint8)] * stack
        goal_BKD = torch.zeros(1, model.tokens, model.latent_dim, device=device)
        with quiet.part("encode"):
            latent_BTKD = model.encode(channels_first([torch.from_numpy(p) for p in pictures]).to(device))
        with quiet.part("noise, copies"):
            noise_BINHA = noise_table([(0, 0, 0)], planner, model.action_dim).to(device)
        situation = Situation(latent_BTKD, torch.zeros(1, 0, model.action_dim, device=device))
        cost = GoalCost(model, self.head, self.cost, situation, goal_BKD, fast)

        def cost_fn(action_BNHA: Tensor) -> Tensor:
            with quiet.part("cost"):
                return cost(action_BNHA)

        with quiet.part("plan"):
            plan = planner.plan(cost_fn, noise_BINHA, action_box(model))
        with quiet.part("noise, copies"):
            plan.action_BHA.cpu()


def cpu_attention_flop(
    query: torch.Size,
    key: torch.Size,
    value: torch.Size,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: torch.Size | None = None,
    scale: float | None = None,
    out_shape: object = None,
) -> int:
    """Operations of the fused attention of a CPU, which torch does not count by itself."""
    return sdpa_flop_count(query, key, value)


def count_flops(plan: PlanOnce) -> dict[str, float]:
    """Operations of every part in matrix products, convolutions and fused attention, two per multiplication.

    What is done entry by entry counts nothing, attention over a handful of frames included (`attend_one`).
    """
    fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: cpu_attention_flop}
    with FlopCounterMode(display=False, custom_mapping=fused) as counter:
        meter = Meter(lambda: float(counter.get_total_flops()))
        plan(meter)
    return meter.parts()


def gemm_gflop_per_s(device: torch.device) -> float:
    """Speed of the fastest of `GEMMS` large float32 matrix products."""
    size, clock, took = GEMM[device.type], _clock(device), []
    factor = torch.ones(size, size, device=device)
    for _ in range(1 + GEMMS):
        start = clock()
        torch.mm(factor, factor)
        took.append(clock() - start)
    return 2 * size**3 / min(took) / 1e6


@torch.no_grad()
def break_down(plan: PlanOnce, plans: int, name: str) -> list[PartRow]:
    """Time every part and the whole plan in turns, and large matrix products before and after."""
    device, planner = plan.model.device, plan.planner
    load = load_average()
    flops, clock = count_flops(plan), _clock(device)
    times: dict[str, list[float]] = defaultdict(list)
    before = gemm_gflop_per_s(device)
    for i in range(WARMUP + plans):
        meter, whole = Meter(clock), Meter(clock)
        plan(meter)
        with whole.part(WHOLE):
            plan()
        for part, ms in (meter.parts() | whole.total).items():
            times[part] += [ms] if i >= WARMUP else []
    ms_p50 = {part: float(np.median(taken)) for part, taken in times.items()}
    flops[WHOLE] = sum(flops.values())
    together, peak = sum(ms_p50[part] for part in PARTS), max(before, gemm_gflop_per_s(device))
    rows = []
    for part in (*PARTS, WHOLE):
        speed = flops[part] / 1e6 / ms_p50[part]
        rows.append(
            PartRow(
                part=part,
                ms_p50=ms_p50[part],
                share=ms_p50[part] / together,
                mflop=flops[part] / 1e6,
                gflop_per_s=speed,
                of_peak=speed / peak,
                gemm_gflop_per_s=peak,
                planner=planner.name,
                candidates=planner.candidates,
                iterations=planner.iterations,
                horizon=planner.horizon,
                cost=plan.cost.label,
                model=name,
                plans=plans,
                threads=torch.get_num_threads(),
                device=device.type,
                hardware=hardware(),
                load=load,
                torch=torch.__version__,
            )
        )
    return rows


def bench_breakdown(checkpoint: Path | None, config: str, threads: int, plans: int, device: str) -> list[PartRow]:
    """Break down every row of `SEARCHES` that the checkpoint, or fresh weights of a run, can be searched with."""
    if plans < 1:
        raise ValueError(f"--plans is {plans}; time at least one plan per row")
    model, head, name = load_or_fresh(checkpoint, config, pick_device(device))
    rows = []
    with torch_threads(threads):
        fast = prepare(model, head)
        for planner, cost in SEARCHES:
            if head is not None or "cost_to_go" not in cost.terms:
                rows += break_down(PlanOnce(model, head, fast, planner, cost), plans, name)
    return rows


def table(rows: Sequence[PartRow]) -> str:
    """One block of aligned text per plan."""
    lines = []
    for r in rows:
        if r.part == next(iter(PARTS)):
            search = f"{r.planner} {r.candidates} x {r.iterations} x {r.horizon}, {r.cost}"
            lines += [search, f"  {'part':<14} {'ms p50':>9} {'share':>7} {'MFLOP':>9} {'GFLOP/s':>8} {'of GEMM':>8}"]
        speed = f"{r.gflop_per_s:>8.1f} {100 * r.of_peak:>6.0f} %" if r.mflop else f"{'-':>8} {'-':>8}"
        what = PARTS.get(r.part, "the same without meters")
        lines.append(f"  {r.part:<14} {r.ms_p50:>9.3f} {100 * r.share:>5.1f} % {r.mflop:>9.2f} {speed}  {what}")
    first = rows[0]
    size = GEMM[first.device]
    lines += [
        "",
        f"{first.model}; one problem, one frame seen, eager; a {size} x {size} float32 product reaches up to "
        f"{max(r.gemm_gflop_per_s for r in rows):.1f} GFLOP/s",
        where_measured(first),
    ]
    return "\n".join(lines)


def _clock(device: torch.device) -> Callable[[], float]:
    """Milliseconds; on CUDA after everything launched so far is done."""

    def read() -> float:
        wait(device)
        return 1000 * time.perf_counter()

    return read
