"""`lewm bench plan --model ac`: planning on grids of tokens, each frame visited once or the history run at each step.

Fresh weights, latent L1 to the last frame (the energy of V-JEPA 2-AC), CEM; the two ways take turns.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from lewm.bench.breakdown import cpu_attention_flop
from lewm.bench.scaling import with_predictor
from lewm.evaluate.timing import hardware, load_average, torch_threads, where_measured
from lewm.nets.encoders import ConvConfig
from lewm.nets.predictors import ACConfig, DinoWMConfig, PredictorConfig, RotaryConfig
from lewm.pipeline import pick_device
from lewm.planning.action_limits import action_box
from lewm.planning.costs import CostConfig, GoalCost, Situation
from lewm.planning.fast_rollout import prepare
from lewm.progress import Stage
from lewm.world_model import ModelConfig, ModelFacts, WorldModel
from planners import CEM, noise_table

MODELS: dict[str, PredictorConfig] = {
    "ac": ACConfig(width=192, layers=4, heads=6),
    "rotary": RotaryConfig(width=192, layers=4, heads=6, positions="axial"),
    "dino_wm": DinoWMConfig(layers=4, heads=6, head_dim=32, mlp_hidden=768),
}
"""Predictors of token grids, smaller than their defaults, so that one thread of a CPU plans in a second or so."""
LATENT_DIM = 192
"""Width of a patch of a ViT-Tiny."""
HISTORIES = (1, 2)
"""Frames seen; JEPA-WMs plans with 2."""
SEARCH = CEM(candidates=16, iterations=1, elites=4, horizon=5)
COST = CostConfig({"latent_l1": 1.0}, "terminal")
FACTS = ModelFacts(64, (-1.0, -1.0), (1.0, 1.0), (0.0, 0.0), (0.5, 0.5), (0.5,) * 3, (0.25,) * 3)
AGREEMENT = 1e-3
"""Largest relative difference of costs with which the two ways still count as one model."""


@dataclass(frozen=True)
class TokenRow:
    """One predictor and one history; milliseconds are per plan, from latents to actions, noise included."""

    model: str
    tokens: int
    """Latent tokens K per frame."""
    latent_dim: int
    history: int
    """Frames seen."""
    context: int
    """Most frames in a window; beyond it the window slides, and its frames are visited again."""
    candidates: int
    iterations: int
    horizon: int
    cached_ms_p50: float
    """Each frame visited once (`lewm.planning.fast_rollout`)."""
    cached_ms_p95: float
    plain_ms_p50: float
    """The model's own rollout, which runs the history again at each step."""
    plain_ms_p95: float
    ratio: float
    """Of the medians."""
    cached_gflop: float
    """Of one plan, matrix products and attention, two per multiplication."""
    plain_gflop: float
    max_cost_difference: float
    """Largest difference of the costs of any candidate, relative to the plain one."""
    cost: str
    plans: int
    threads: int
    device: str
    hardware: str
    load: float | None
    """Load average of the last minute when the row was begun: what else the machine was doing; None if unknown."""
    torch: str


def token_model(name: str, tokens: int, device: torch.device) -> WorldModel:
    """A model with a predictor of `MODELS` for K tokens; its encoder does not fit and is not asked."""
    if name not in MODELS:
        raise ValueError(f"--model {name}: no such predictor of token grids; there are {', '.join(MODELS)}")
    base = WorldModel(ModelConfig(ConvConfig(latent_dim=LATENT_DIM)), FACTS).eval().to(device)
    return with_predictor(base, MODELS[name], tokens)


def costs(model: WorldModel, history: int) -> tuple[GoalCost, GoalCost]:
    """The same goal on the cached and on the plain rollout."""
    generator = torch.Generator().manual_seed(0)
    latent_BTKD, goal_BTKD = (
        torch.randn(1, frames, model.tokens, model.latent_dim, generator=generator).to(model.device)
        for frames in (history, 1)
    )
    past_BTA = torch.randn(1, history - 1, model.action_dim, generator=generator).to(model.device)
    situation = Situation(latent_BTKD, past_BTA)
    fast = prepare(model)
    return tuple(GoalCost(model, None, COST, situation, goal_BTKD[:, 0], way) for way in (fast, None))  # type: ignore[return-value]


def planning(model: WorldModel, cost: GoalCost) -> Callable[[], None]:
    """A function that makes one plan."""
    box = action_box(model)

    def plan() -> None:
        # Made anew, so that what is shared by all candidates counts too.
        fresh = GoalCost(model, None, COST, cost.situation, cost.goal_BKD, cost.fast)
        noise_BINHA = noise_table([(0, 0, 0)], SEARCH, model.action_dim).to(model.device)
        SEARCH.plan(fresh, noise_BINHA, box).action_BHA.cpu()

    return plan


def gflop(plan: Callable[[], None]) -> float:
    """Floating-point operations of one plan, in 10^9."""
    fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: cpu_attention_flop}
    with FlopCounterMode(display=False, custom_mapping=fused) as counter:
        plan()
    return counter.get_total_flops() / 1e9


@torch.no_grad()
def difference(model: WorldModel, cached: GoalCost, plain: GoalCost) -> float:
    """Largest difference of the costs of a few candidates, relative to the plain ones."""
    noise_BINHA = noise_table([(1, 0, 0)], SEARCH, model.action_dim).to(model.device)
    ours, theirs = cached(noise_BINHA[:, 0]), plain(noise_BINHA[:, 0])
    return float(((ours - theirs).abs() / theirs.abs()).max())


@torch.inference_mode()
def time_model(model: WorldModel, name: str, history: int, plans: int) -> TokenRow:
    """Time both ways in turns; the first plan of each is not timed."""
    load = load_average()
    ways = costs(model, history)
    apart = difference(model, *ways)
    if not apart <= AGREEMENT:
        raise ValueError(
            f"{name}: the cached and the plain rollout disagree on the cost of a candidate by {apart:.1e} of it, more "
            f"than {AGREEMENT:g}: one of them is wrong, so their times do not compare"
        )
    runs = [planning(model, way) for way in ways]
    flops = [gflop(run) for run in runs]
    taken: list[list[float]] = [[], []]
    for _ in range(plans):
        for run, times in zip(runs, taken):
            start = time.perf_counter()
            run()
            times.append(1000 * (time.perf_counter() - start))
    (cached_p50, cached_p95), (plain_p50, plain_p95) = (np.percentile(times, [50, 95]).tolist() for times in taken)
    return TokenRow(
        model=name,
        tokens=model.tokens,
        latent_dim=model.latent_dim,
        history=history,
        context=model.context,
        candidates=SEARCH.candidates,
        iterations=SEARCH.iterations,
        horizon=SEARCH.horizon,
        cached_ms_p50=cached_p50,
        cached_ms_p95=cached_p95,
        plain_ms_p50=plain_p50,
        plain_ms_p95=plain_p95,
        ratio=plain_p50 / cached_p50,
        cached_gflop=flops[0],
        plain_gflop=flops[1],
        max_cost_difference=apart,
        cost=COST.label,
        plans=plans,
        threads=torch.get_num_threads(),
        device=model.device.type,
        hardware=hardware(),
        load=load,
        torch=torch.__version__,
    )


def bench_token_grids(name: str, tokens: int, threads: int, plans: int, device: str) -> list[TokenRow]:
    """A row for every history. Raises ValueError for an unknown predictor, no plans, or tokens that are no grid."""
    if plans < 1:
        raise ValueError(f"--plans is {plans}; time at least one plan per row")
    model = token_model(name, tokens, pick_device(device))
    with torch_threads(threads), Stage("bench token grids", len(HISTORIES), "rows") as stage:
        rows = []
        for history in HISTORIES:
            rows.append(time_model(model, name, history, plans))
            stage.update()
    return rows


def table(rows: Sequence[TokenRow]) -> str:
    """The rows as aligned text."""
    lines = [
        f"{'model':<8} {'tokens':>6} {'history':>7} {'context':>7} {'cached ms p50':>13} {'p95':>9}"
        f" {'plain ms p50':>12} {'p95':>9} {'ratio':>6} {'GFLOP':>8} {'plain':>8} {'costs differ':>12}"
    ]
    for r in rows:
        lines.append(
            f"{r.model:<8} {r.tokens:>6} {r.history:>7} {r.context:>7} {r.cached_ms_p50:>13.1f} {r.cached_ms_p95:>9.1f}"
            f" {r.plain_ms_p50:>12.1f} {r.plain_ms_p95:>9.1f} {r.ratio:>5.2f}x {r.cached_gflop:>8.1f}"
            f" {r.plain_gflop:>8.1f} {r.max_cost_difference:>12.1e}"
        )
    first = rows[0]
    lines += [
        f"cem {first.candidates} x {first.iterations} x {first.horizon}, {first.cost}, width {first.latent_dim}, fresh "
        "weights; per plan, latents to actions; plain runs the history again at each step",
        where_measured(first),
    ]
    return "\n".join(lines)
