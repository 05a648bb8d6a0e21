"""Success against milliseconds: every planner x cost over a ladder of budgets, on the same start and goal pairs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lewm.baselines import OracleConfig, RandomConfig
from lewm.bench.sized import planner_at
from lewm.checkpoint import Checkpoint
from lewm.config import RunConfig
from lewm.evaluate.evaluate import Evaluated, evaluate
from lewm.evaluate.manifest import Manifest
from lewm.evaluate.methods import InverseModelConfig, MethodConfig, PlanConfig
from lewm.evaluate.results import ResultRow
from lewm.evaluate.statistics import SIGNIFICANT, mcnemar
from lewm.planning.costs import CostConfig
from lewm.schema import build, read_json
from lewm.tables import markdown
from planners import CEM

LADDER = ((8, 1), (16, 2), (32, 3), (64, 4), (128, 8))
"""Candidates and iterations."""

MOST = {"grasp": 32}
"""Most candidates of planners whose iteration is several rollouts (GRASP is for horizons of tens of blocks)."""

REFERENCE = PlanConfig(
    name="reference",
    planner=CEM(candidates=300, iterations=30, elites=30, horizon=5),
    cost=CostConfig({"latent_l2": 1.0}, "terminal"),
    replan_every=5,
)
"""The literature's protocol: latent L2 to the last imagined frame, five blocks executed open loop."""

BOUNDS = {RandomConfig.name: ":", OracleConfig.name: "--"}
"""Baselines that every evaluation adds, and their lines in the figure; they are no points of the front."""

MARKERS = "osD^vP*X<>hd"


@dataclass(frozen=True)
class FrontRow(ResultRow):
    """One point of the front, beside the literature's protocol on the same pairs."""

    reference_successes: int
    """Successes of the reference."""
    p_value: float
    """Exact two-sided McNemar test against the reference."""
    cheaper: float
    """Milliseconds per plan of the reference over those of this row (medians)."""

    @property
    def as_good(self) -> bool:
        """Whether it succeeds at least as often as the reference, or the difference may be chance."""
        return self.successes >= self.reference_successes or self.p_value >= SIGNIFICANT


def front_methods(
    run: RunConfig, planners: Sequence[str], proposal: bool, ladder: Sequence[tuple[int, int]] = LADDER
) -> tuple[MethodConfig, ...]:
    """The reference, and every planner at every budget with each cost that the run replans with at every block.

    proposal: whether the checkpoint has one; then it takes part alone, and as the first guess of CEM.
    """
    methods: list[MethodConfig] = [REFERENCE]
    if proposal:
        methods.append(InverseModelConfig())
    for base in run.evaluate.methods:
        if not isinstance(base, PlanConfig) or base.replan_every != 1:
            continue
        execute = getattr(base.planner, "execute", "mean")
        for name in planners:
            for candidates, iterations in (rung for rung in ladder if rung[0] <= MOST.get(name, rung[0])):
                planner = planner_at(name, candidates, iterations, base.planner.horizon, execute)
                label = f"{base.name}.{name}.{candidates}x{iterations}"
                methods.append(replace(base, name=label, planner=planner))
                if proposal and name == "cem":
                    methods.append(replace(base, name=f"{label}.seeded", planner=planner, proposal="seed"))
    if not any(isinstance(method, PlanConfig) and method != REFERENCE for method in methods):
        raise ValueError("the run has no method that replans at every block; add one to evaluate.methods")
    return tuple(methods)


def bench_front(
    run: RunConfig, manifests: Sequence[Manifest], checkpoint: Checkpoint, out: Path, planners: Sequence[str]
) -> list[FrontRow]:
    """Evaluate the whole front; outcomes are logged in `out` and a second call continues."""
    methods = front_methods(run, planners, checkpoint.proposal is not None)
    config = replace(run.evaluate, methods=methods)
    return front_rows(evaluate(config, manifests, checkpoint, out))


def front_rows(evaluated: Sequence[Evaluated]) -> list[FrontRow]:
    """Each evaluated method beside the reference on the same goals."""
    references = {e.row.goals: e for e in evaluated if e.method == REFERENCE}
    rows = []
    for each in evaluated:
        reference = references[each.row.goals]
        p_value = mcnemar([o.success for o in each.outcomes], [o.success for o in reference.outcomes])
        cheaper = reference.row.plan_ms_p50 / each.row.plan_ms_p50
        rows.append(
            FrontRow(**asdict(each.row), reference_successes=reference.row.successes, p_value=p_value, cheaper=cheaper)
        )
    return rows


def best_rows(rows: Sequence[FrontRow]) -> dict[str, FrontRow]:
    """Per goal set, the planning row of least median time that is as good as the reference."""
    best: dict[str, FrontRow] = {}
    for row in rows:
        contends = row.as_good and row.method not in (REFERENCE.name, *BOUNDS)
        if contends and (row.goals not in best or row.plan_ms_p50 < best[row.goals].plan_ms_p50):
            best[row.goals] = row
    return best


def frontier(rows: Sequence[FrontRow]) -> list[FrontRow]:
    """Per goal set, from the cheapest up: rows that no cheaper row equals in success, and the reference."""
    kept = []
    for goals in dict.fromkeys(row.goals for row in rows):
        ours = [row for row in rows if row.goals == goals and row.method not in BOUNDS]
        for row in sorted(ours, key=lambda row: row.plan_ms_p50):
            beaten = any(o.successes >= row.successes and o.plan_ms_p50 < row.plan_ms_p50 for o in ours)
            if not beaten or row.method == REFERENCE.name:
                kept.append(row)
    return kept


def front_table(rows: Sequence[FrontRow]) -> str:
    """The frontier as aligned text, and what it takes to equal the reference."""
    head = f"{'goals':<14} {'method':<42} {'success':>8} {'95 % interval':>14} {'ms p50':>8} {'p95':>8} {'cheaper':>8}"
    lines = [head]
    for row in frontier(rows):
        interval = f"{100 * row.low:.1f} - {100 * row.high:.1f}"
        lines.append(
            f"{row.goals:<14} {row.method:<42} {100 * row.success:>6.1f} % {interval:>14} {row.plan_ms_p50:>8.2f} "
            f"{row.plan_ms_p95:>8.2f} {row.cheaper:>7.0f}x"
        )
    for goals, row in best_rows(rows).items():
        lines.append(
            f"{goals}: {row.method} succeeds on {row.successes} of {row.n}, the reference on {row.reference_successes} "
            f"(McNemar p {row.p_value:.2g}), {row.cheaper:.0f} times cheaper per plan"
        )
    lines.append(f"{rows[0].threads} torch thread(s), {rows[0].hardware}, torch {rows[0].torch}; encoder included")
    return "\n".join(lines)


def front_markdown(rows: Sequence[FrontRow]) -> str:
    """The frontier as the README shows it."""
    head = ["goals", "method", "search", "success", "95 % interval", "ms per plan, p50 / p95"]
    lines = [
        [
            row.goals,
            row.method,
            f"{row.candidates} x {row.iterations} x {row.horizon}",
            f"{100 * row.success:.1f} % of {row.n}",
            f"{100 * row.low:.1f} - {100 * row.high:.1f}",
            f"{row.plan_ms_p50:.1f} / {row.plan_ms_p95:.1f}",
            f"{row.cheaper:.0f}x",
        ]
        for row in frontier(rows)
    ]
    return markdown([*head, "cheaper than the reference"], lines)


def load_front(path: Path) -> list[FrontRow]:
    """Rows that `lewm bench front --json` wrote."""
    return [build(FrontRow, row, str(path), f"row {i}") for i, row in enumerate(read_json(path))]


def plot_front(rows: Sequence[FrontRow], path: Path) -> None:
    """Success against milliseconds per plan, one panel per goal set: colour is the cost, the marker the planner."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    goals = list(dict.fromkeys(row.goals for row in rows))
    figure = Figure(figsize=(max(8.5, 5.4 * len(goals)), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    drawn = [row for row in rows if row.method not in BOUNDS]
    costs = [cost for cost in dict.fromkeys(row.cost for row in drawn)]
    names = list(dict.fromkeys(row.planner for row in drawn))
    for column, goal in enumerate(goals):
        axes = figure.add_subplot(1, len(goals), column + 1)
        for row in (r for r in drawn if r.goals == goal):
            reference = row.method == REFERENCE.name
            axes.errorbar(
                row.plan_ms_p50,
                100 * row.success,
                [[100 * max(0, row.success - row.low)], [100 * max(0, row.high - row.success)]],
                fmt=MARKERS[names.index(row.planner) % len(MARKERS)],
                color="black" if reference else f"C{costs.index(row.cost)}",
                markersize=9 if reference else 5,
                elinewidth=0.5,
                alpha=0.85,
            )
        for name, style in BOUNDS.items():
            for row in (r for r in rows if r.goals == goal and r.method == name):
                axes.axhline(100 * row.success, color="grey", linestyle=style, linewidth=0.8)
        axes.set(xscale="log", xlabel="ms per plan (median, encoder included)", ylim=(-3, 103))
        axes.set(title=f"{rows[0].task}, {goal}", ylabel="success, %" if column == 0 else "")
        axes.grid(alpha=0.3)
    first = figure.axes[0]
    for i, cost in enumerate(costs):
        first.plot([], [], "s", color=f"C{i}", label=cost)
    for i, name in enumerate(names):
        first.plot([], [], MARKERS[i % len(MARKERS)], color="grey", label=name)
    first.plot([], [], "o", color="black", markersize=9, label=REFERENCE.name)
    figure.legend(loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
