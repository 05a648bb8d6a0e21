"""Milliseconds per plan over planners, budgets and batch sizes; the cost is the model's own."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lewm.bench.sized import planner_at, searches
from lewm.checkpoint import load
from lewm.config import load as load_config
from lewm.cost_to_go import CostToGo
from lewm.evaluate.timing import hardware, torch_threads
from lewm.pipeline import pick_device
from lewm.planning.action_limits import action_box
from lewm.planning.costs import CostConfig, GoalCost, Situation
from lewm.planning.fast_rollout import prepare
from lewm.world_model import ModelFacts, WorldModel
from planners import PlannerConfig, noise_table

BUDGETS = ((32, 3, 2), (64, 3, 4), (300, 10, 5))
"""Candidates, iterations, horizon."""
BATCHES = (1, 10)
WARMUP = 3


@dataclass(frozen=True)
class BenchRow:
    """One planner at one budget."""

    case: str
    device: str
    threads: int
    model: str
    batch: int
    candidates: int
    iterations: int
    horizon: int
    cost: str
    ours_ms_p50: float
    """Milliseconds per plan and problem, latents to actions."""
    ours_ms_p95: float
    hardware: str
    torch: str


def fresh_model(config: str) -> tuple[WorldModel, CostToGo]:
    """Randomly initialised weights of a run's architecture; speed does not depend on the values."""
    run = load_config(config)
    size = int(run.settings.get("size", 64))
    facts = ModelFacts(size, (-1.0, -1.0), (1.0, 1.0), (0.0, 0.0), (0.5, 0.5), (0.5,) * 3, (0.25,) * 3)
    torch.manual_seed(0)
    model = WorldModel(run.model, facts).eval()
    return model, CostToGo(run.cost_to_go, model.latent_dim, model.tokens).eval()


def load_or_fresh(
    checkpoint: Path | None, config: str, device: torch.device
) -> tuple[WorldModel, CostToGo | None, str]:
    """Model, learned distance and their name: a checkpoint's, or without one fresh weights of a run."""
    if checkpoint is not None:
        loaded = load(checkpoint, str(device))
        return loaded.model, loaded.cost_to_go, str(checkpoint)
    model, head = fresh_model(config)
    return model.to(device), head.to(device), f"{config} (fresh weights)"


def planning(
    model: WorldModel, head: CostToGo | None, planner: PlannerConfig, cost: CostConfig, batch: int
) -> Callable[[], None]:
    """A function that makes one plan for `batch` random problems, latents to actions, noise drawing included."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, batch, 1, model.tokens, model.latent_dim)
    now_BTKD, goal_BTKD = torch.randn(shape, generator=generator).to(model.device)
    situation = Situation(now_BTKD, torch.zeros(batch, 0, model.action_dim, device=model.device))
    fast, box, keys = prepare(model, head), action_box(model), [(0, problem, 0) for problem in range(batch)]

    def plan() -> None:
        cost_fn = GoalCost(model, head, cost, situation, goal_BTKD[:, 0], fast)
        noise_BINHA = noise_table(keys, planner, model.action_dim).to(model.device)
        planner.plan(cost_fn, noise_BINHA, box).action_BHA.cpu()

    return plan


@torch.no_grad()
def time_plan(
    model: WorldModel,
    head: CostToGo | None,
    planner_name: str,
    budget: tuple[int, int, int],
    batch: int,
    cost: CostConfig,
    plans: int,
) -> tuple[float, float]:
    """p50 and p95 milliseconds per plan and problem, noise drawing included, warm-up excluded."""
    plan, times = planning(model, head, planner_at(planner_name, *budget), cost, batch), []
    for _ in range(WARMUP + plans):
        start = time.perf_counter()
        plan()
        times.append(1000 * (time.perf_counter() - start) / batch)
    p50, p95 = np.percentile(times[WARMUP:], [50, 95])
    return float(p50), float(p95)


def bench_plan(checkpoint: Path | None, config: str, threads: int, plans: int, device: str) -> list[BenchRow]:
    """Every search at every budget and batch size, with latent-L2 and, where there is a head, cost-to-go."""
    if plans < 1:
        raise ValueError(f"--plans is {plans}; time at least one plan per row")
    chosen = pick_device(device)
    model, head, name = load_or_fresh(checkpoint, config, chosen)
    costs = [CostConfig({"latent_l2": 1.0}, "terminal")] + ([CostConfig()] if head is not None else [])
    rows = []
    with torch_threads(threads):
        for planner in searches():
            for budget in BUDGETS:
                for batch in BATCHES:
                    for cost in costs:
                        p50, p95 = time_plan(model, head, planner, budget, batch, cost, plans)
                        rows.append(
                            BenchRow(
                                planner,
                                chosen.type,
                                threads,
                                name,
                                batch,
                                *budget,
                                cost.label,
                                p50,
                                p95,
                                hardware(),
                                torch.__version__,
                            )
                        )
    return rows


def table(rows: list[BenchRow]) -> str:
    """The rows as aligned text."""
    lines = [f"{'planner':<8} {'batch':>5} {'budget':>10}  {'cost':<24} {'ms p50':>8} {'ms p95':>8}"]
    for r in rows:
        budget = f"{r.candidates}x{r.iterations}x{r.horizon}"
        lines.append(f"{r.case:<8} {r.batch:>5} {budget:>10}  {r.cost:<24} {r.ours_ms_p50:>8.2f} {r.ours_ms_p95:>8.2f}")
    lines.append(
        f"per plan and problem, latents to actions; {rows[0].threads} thread(s), {rows[0].hardware}, "
        f"torch {rows[0].torch}"
    )
    return "\n".join(lines)
