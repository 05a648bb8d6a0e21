"""Rows of a results table and the file they live in."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lewm.schema import read_rows, write_json


@dataclass(frozen=True)
class ResultRow:
    """One method on one goal set."""

    task: str
    goals: str
    method: str
    planner: str
    cost: str
    candidates: int
    iterations: int
    horizon: int
    replan_every: int
    """Blocks executed per plan."""
    budget: int
    """Environment steps allowed."""
    n: int
    successes: int
    success: float
    low: float
    """Wilson 95 % interval."""
    high: float
    plan_ms_p50: float
    """Milliseconds per plan, one problem at a time, encoder included, warm-up excluded."""
    plan_ms_p95: float
    encode_ms_p50: float
    threads: int
    device: str
    seed: int
    hardware: str
    torch: str
    kind: str = field(default="", kw_only=True)
    """Kind of method, such as world_model or oracle; empty in rows of an older lewm, as the next two."""
    manifest: str = field(default="", kw_only=True)
    """Fingerprint of the manifest."""
    commit: str = field(default="", kw_only=True)
    """Revision of the code that ran the goals, `+changes` when edited; several after a comma."""
    joules_per_plan: float | None = field(default=None, kw_only=True)
    """Of the processors and the GPU that plans; None where they do not count it."""
    trained: str = field(default="", kw_only=True)
    """What learning took: environment steps or recorded frames, and wall time. Empty where nothing was learned, where
    nobody wrote it down, and in rows of an older lewm."""
    true_state: bool = field(default=False, kw_only=True)
    """Whether the method is told the true state and that of the goal; planners see pictures."""
    reached: str = field(default="", kw_only=True)
    """A 1 for every goal that was reached and a 0 for every other, in the manifest's order; empty in older rows."""

    @property
    def by_goal(self) -> list[bool]:
        """The same as truth values."""
        return [digit == "1" for digit in self.reached]


def reached_digits(by_goal: Iterable[bool]) -> str:
    """What `ResultRow.reached` says of goals."""
    return "".join("01"[reached] for reached in by_goal)


def save_results(rows: Sequence[ResultRow], path: Path) -> None:
    """Write rows as a JSON list."""
    write_json([asdict(row) for row in rows], path)


def load_results(path: Path) -> list[ResultRow]:
    """Read rows; raises ValueError naming the file and what does not fit."""
    return read_rows(ResultRow, path, "evaluate again")


def table(rows: Sequence[ResultRow], marks: Mapping[tuple[str, str], str] | None = None, legend: str = "") -> str:
    """The rows as aligned text. marks: what a column says of a goal set and method, explained by `legend`."""
    counted = any(row.joules_per_plan is not None for row in rows)
    header: tuple[str, ...] = ("goals", "method", "planner", "success", "95 % interval", "n", "ms/plan p50", "p95")
    header += ("encoder", "J/plan") if counted else ("encoder",)
    lines = [header if marks is None else (*header, "difference")]
    for row in rows:
        search = f"{planner(row)} {row.candidates}x{row.iterations}x{row.horizon}" if row.candidates else "-"
        lines.append(
            (
                row.goals,
                row.method,
                search,
                f"{100 * row.success:.1f} %",
                f"{100 * row.low:.1f} - {100 * row.high:.1f}",
                str(row.n),
                f"{row.plan_ms_p50:.2f}",
                f"{row.plan_ms_p95:.2f}",
                f"{row.encode_ms_p50:.2f}",
                *(("-" if row.joules_per_plan is None else f"{row.joules_per_plan:.3f}",) if counted else ()),
                *(() if marks is None else (marks[row.goals, row.method],)),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, legend] if legend else text)


def planner(row: ResultRow) -> str:
    """What decides, and whether it is told what no agent sees."""
    return f"{row.planner} (true state)" if row.true_state else row.planner


def search(row: ResultRow) -> str:
    """The planner and its size, or a dash."""
    every = f", every {row.replan_every} blocks" if row.replan_every > 1 else ""
    return f"{planner(row)} {row.candidates} x {row.iterations} x {row.horizon}{every}" if row.candidates else "-"


def markdown(rows: Sequence[ResultRow], marks: Mapping[tuple[str, str], str] | None = None, legend: str = "") -> str:
    """The rows as the README shows them; marks and legend as in `table`."""
    more = ("", "") if marks is None else (" difference |", "---|")
    lines = [
        "| goals | method | search | success | 95 % interval | ms per plan, p50 / p95 |" + more[0],
        "|---|---|---|---|---|---|" + more[1],
    ]
    for row in rows:
        times = f"{row.plan_ms_p50:.1f} / {row.plan_ms_p95:.1f}" if row.candidates else "-"
        mark = "" if marks is None else f" {marks[row.goals, row.method]} |"
        lines.append(
            f"| {row.goals} | {row.method} | {search(row)} | {100 * row.success:.1f} % of {row.n} | "
            f"{100 * row.low:.1f} - {100 * row.high:.1f} | {times} |{mark}"
        )
    return "\n".join([*lines, "", legend] if legend else lines)
