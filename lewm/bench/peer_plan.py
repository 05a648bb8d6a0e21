"""`lewm bench plan --peer`: LeWM's published search by stable-worldmodel and by us, same weights, same latents."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lewm import tables
from lewm.evaluate.timing import hardware, torch_threads
from lewm.import_model import DataFacts, read_model
from lewm.peer import ACTION_DIM, AGREEMENT, FRAME_SKIP, PAPER, Peer, PeerPlan, Size
from lewm.planning.action_limits import action_box
from lewm.planning.costs import CostConfig, GoalCost, Situation
from lewm.planning.fast_compile import compile_rollout
from lewm.planning.fast_rollout import FastModel, prepare
from lewm.progress import Stage
from lewm.world_model import WorldModel
from planners import CEM, ActionBox, CostFn, noise_table

UNSCALED = DataFacts(
    task="bench",
    action_low=(-torch.inf,) * ACTION_DIM,
    action_high=(torch.inf,) * ACTION_DIM,
    action_mean=(0.0,) * ACTION_DIM,
    action_std=(1.0,) * ACTION_DIM,
    frame_skip=FRAME_SKIP,
)
"""The peer plans in scaled actions and without bounds; with these facts ours does the same."""

GoalToCost = Callable[[Tensor, Tensor], CostFn]
"""(latent_BTKD now, goal_BKD) to the mean squared difference of the last imagined frame from the goal."""
Ours = Callable[[WorldModel], GoalToCost]
"""What is done once per model, before any plan."""


@dataclass(frozen=True)
class PeerRow:
    """The same search by both; milliseconds are per plan and problem, from latents to actions."""

    case: str
    device: str
    threads: int
    model: str
    batch: int
    candidates: int
    iterations: int
    horizon: int
    ours_ms_p50: float
    ours_ms_p95: float
    peer: str
    peer_ms_p50: float
    ratio: float
    """How many times longer the peer takes, medians of runs that take turns."""
    max_cost_difference: float
    """Largest difference between the two costs of any candidate the peer scored, relative to the peer's."""
    hardware: str
    torch: str


def peer_search(size: Size) -> CEM:
    """Our CEM with the peer's search; see `peer_noise` for the rest of it."""
    return CEM(
        horizon=size.horizon,
        candidates=size.candidates,
        iterations=size.iterations,
        elites=size.elites,
        momentum=0.0,
        min_std=0.0,
    )


def peer_noise(noise_BINHA: Tensor, elites: int) -> Tensor:
    """Noise that makes our CEM draw what the peer's draws from `noise_BINHA`.

    The peer's std is that of a sample (division by elites - 1), ours that of the elites themselves.
    """
    factor = (elites / (elites - 1)) ** 0.5
    return torch.cat([noise_BINHA[:, :1], factor * noise_BINHA[:, 1:]], 1)


def plain(model: WorldModel, fast: FastModel | None = None) -> GoalToCost:
    """Latent L2 by the model's own rollout, or by a prepared one."""

    def cost(latent_BTKD: Tensor, goal_BKD: Tensor) -> CostFn:
        situation = Situation(latent_BTKD, torch.zeros(len(goal_BKD), 0, model.action_dim, device=model.device))
        return GoalCost(model, None, CostConfig({"latent_l2": 1.0}, "terminal"), situation, goal_BKD, fast)

    return cost


def fast(model: WorldModel) -> GoalToCost:
    """Latent L2 by the rollout that agents plan with."""
    return plain(model, prepare(model))


def compiled(size: Size) -> Ours:
    """The same compiled for one problem of this size."""
    return lambda model: plain(model, compile_rollout(prepare(model), model, size.candidates, size.horizon))


def cost_difference(cost_fn: CostFn, theirs: PeerPlan, model: WorldModel) -> float:
    """Largest difference between our cost and the peer's of the candidates it scored, relative to its cost.

    Its cost is a sum over the width of the latent, ours a mean. `theirs` must have been recorded.
    """
    assert theirs.candidates_BINHA is not None and theirs.costs_BIN is not None
    worst = 0.0
    for candidates_BNHA, costs_BN in zip(theirs.candidates_BINHA.unbind(1), theirs.costs_BIN.unbind(1)):
        ours_BN = model.latent_dim * cost_fn(candidates_BNHA.to(model.device)).cpu()
        worst = max(worst, ((ours_BN - costs_BN).abs() / costs_BN).max().item())
    return worst


@torch.no_grad()
def compare(
    peer: Peer, model: WorldModel, size: Size, plans: int, ours: Ours = fast, name: str = "LeWM", how: str = "eager"
) -> PeerRow:
    """Time one search by both, taking turns, each drawing its own noise; the plans before that are not timed.

    `model` must be the one the peer has made. Raises ValueError when the two disagree on what candidates cost.
    """
    generator = torch.Generator().manual_seed(0)
    latent_BD, goal_BD = torch.randn(2, size.batch, model.latent_dim, generator=generator)
    now, goal = latent_BD[:, None, None].to(model.device), goal_BD[:, None].to(model.device)
    planner, box, goal_to_cost = peer_search(size), action_box(model), ours(model)
    theirs = peer.plan(latent_BD, goal_BD, size, _noise(planner, box, size, 0), record=True)
    difference = cost_difference(goal_to_cost(now, goal), theirs, model)
    if not difference <= AGREEMENT:
        raise ValueError(
            f"{peer.version} and lewm disagree on the cost of a candidate by {difference:.1e} of it, more than "
            f"{AGREEMENT:g}: they are not planning with the same model, so their times do not compare"
        )
    ours_ms, peer_ms = [], []
    for i in range(1, plans + 1):
        start = time.perf_counter()
        noise = _noise(planner, box, size, i).to(model.device)
        planner.plan(goal_to_cost(now, goal), noise, box).action_BHA.cpu()
        ours_ms.append(1000 * (time.perf_counter() - start) / size.batch)
        peer_ms.append(peer.plan(latent_BD, goal_BD, size, seed=i).ms / size.batch)
    p50, p95 = (float(p) for p in np.percentile(ours_ms, [50, 95]))
    return PeerRow(
        case=f"cem, latent L2 of the last frame, {how}",
        device=model.device.type,
        threads=torch.get_num_threads(),
        model=name,
        batch=size.batch,
        candidates=size.candidates,
        iterations=size.iterations,
        horizon=size.horizon,
        ours_ms_p50=p50,
        ours_ms_p95=p95,
        peer=f"stable-worldmodel {peer.version}",
        peer_ms_p50=float(np.median(peer_ms)),
        ratio=float(np.median(peer_ms)) / p50,
        max_cost_difference=difference,
        hardware=hardware(),
        torch=torch.__version__,
    )


def bench_peer(
    python: Path, sizes: Sequence[Size], threads: int, plans: int, device: str, compile: bool = False
) -> list[PeerRow]:
    """Every search by both, on a LeWM of the paper's size whose random weights the peer writes and we import.

    compile: whether searches for one problem are also run with our rollout compiled, in rows of their own.
    """
    if plans < 1:
        raise ValueError(f"--plans is {plans}; time at least one plan per row")
    rows, extra = [], sum(compile and size.batch == 1 for size in sizes)
    stage = Stage("bench", len(sizes) + extra, "rows")
    with torch_threads(threads), Peer(python, threads, device) as peer, stage:
        peer.make(PAPER, 0, peer.folder / "model")
        model = read_model(peer.folder / "model", UNSCALED).to(device)
        for size in sizes:
            ways: list[tuple[str, Ours]] = [("eager", fast)]
            if compile and size.batch == 1:
                ways.append(("compiled", compiled(size)))
            for how, ours in ways:
                rows.append(compare(peer, model, size, plans, ours, "LeWM, paper size, random weights", how))
                stage.update()
    return rows


def table(rows: Sequence[PeerRow]) -> str:
    """The rows as aligned text."""
    lines = [
        f"{'ours':<8} {'batch':>5} {'search':>10} {'ours ms p50':>12} {'p95':>9} {'peer ms p50':>12} {'ratio':>6}"
        f" {'costs differ':>13}"
    ]
    for r in rows:
        search, how = f"{r.candidates}x{r.iterations}x{r.horizon}", r.case.rsplit(", ", 1)[1]
        lines.append(
            f"{how:<8} {r.batch:>5} {search:>10} {r.ours_ms_p50:>12.1f} {r.ours_ms_p95:>9.1f} {r.peer_ms_p50:>12.1f}"
            f" {r.ratio:>5.2f}x {r.max_cost_difference:>13.1e}"
        )
    first = rows[0]
    lines += [
        f"{first.case}; {first.model}; per plan and problem, latents to actions, all problems of a row in one batch",
        f"peer {first.peer}; {first.threads} thread(s), {first.device}, {first.hardware}, torch {first.torch}",
    ]
    return "\n".join(lines)


def markdown(rows: Sequence[PeerRow]) -> str:
    """The rows as the README shows them."""
    head = ["ours", "problems", "search", "ours ms, p50 / p95", "stable-worldmodel ms, p50", "ratio"]
    lines = [
        [
            r.case.rsplit(", ", 1)[1],
            str(r.batch),
            f"{r.candidates} x {r.iterations} x {r.horizon}",
            f"{r.ours_ms_p50:.0f} / {r.ours_ms_p95:.0f}",
            f"{r.peer_ms_p50:.0f}",
            f"{r.ratio:.2f}x",
            f"{r.max_cost_difference:.0e}",
        ]
        for r in rows
    ]
    return tables.markdown([*head, "largest cost difference"], lines)


def parse_size(text: str) -> Size:
    """`50x10`: 50 problems, 10 iterations. Raises ValueError for anything else."""
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--sizes: {text!r} is not problems x iterations, such as 50x10")
    return Size(*map(int, parts))


def _noise(planner: CEM, box: ActionBox, size: Size, plan: int) -> Tensor:
    return noise_table([(0, problem, plan) for problem in range(size.batch)], planner, len(box.low_A))
