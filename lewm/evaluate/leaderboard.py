"""Committed results side by side: one table per task and goal set, with hardware and code revision in every row.

Rows on other manifests were measured on other goals: they never share a table.
"""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import jinja2

from lewm import __version__
from lewm.evaluate.report_figures import interval_bar, milliseconds
from lewm.evaluate.results import ResultRow, load_results, search
from lewm.schema import SchemaError, read_json

UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Entry:
    """One row and where it is committed."""

    row: ResultRow
    source: str
    """Path of its file as it was given."""


@dataclass(frozen=True)
class Table:
    """Rows that may be compared: of one task and goal set, best first."""

    task: str
    goals: str
    manifest: str
    """Fingerprint; empty where no row says it."""
    entries: tuple[Entry, ...]

    @property
    def note(self) -> str:
        """What is known of the goals behind the rows."""
        unsaid = sum(not entry.row.manifest for entry in self.entries)
        known = f"manifest {self.manifest[:12]}" if self.manifest else f"manifest {UNKNOWN}"
        if not unsaid or not self.manifest:
            return known
        return f"{known}; of {unsaid} row{'s' * (unsaid > 1)} it is {UNKNOWN}: they may be of other goals"

    def label(self, entry: Entry) -> str:
        """Name of a row: the method, and its training seed where a file has several."""
        twins = [e for e in self.entries if (e.row.method, e.source) == (entry.row.method, entry.source)]
        return f"{entry.row.method}, seed {entry.row.seed}" if len(twins) > 1 else entry.row.method


def find_results(paths: Sequence[Path]) -> tuple[list[Entry], list[Path]]:
    """All rows in the files, and in the JSON files below the folders; and files of folders that hold something else.

    Raises FileNotFoundError for a path that is not there and ValueError for a named file that holds no rows.
    """
    entries: list[Entry] = []
    left_out: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: give result files, or folders that hold them")
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            if path.is_dir() and not _has_rows(read_json(file)):
                left_out.append(file)
                continue
            entries += [Entry(row, str(file)) for row in load_results(file)]
    return entries, left_out


def _has_rows(data: Any) -> bool:
    """Whether a file holds rows of an evaluation, these or older ones, and nothing else."""
    if not isinstance(data, list) or not data or not all(isinstance(row, dict) for row in data):
        return False
    known = {f.name for f in fields(ResultRow)}
    needed = {f.name for f in fields(ResultRow) if f.default is MISSING}
    return all(needed <= set(row) <= known for row in data)


def tables(entries: Sequence[Entry], split: bool = False) -> list[Table]:
    """One table per task and goal set; with `split`, one per manifest where there are several.

    Raises ValueError for rows of one task and goal set on different manifests without `split`, and for no row at all.
    """
    if not entries:
        raise SchemaError("there is no row of an evaluation: give results.json files, or a folder that holds some")
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.row.task, entry.row.goals), []).append(entry)
    found = []
    for (task, goals), group in groups.items():
        manifests = list(dict.fromkeys(e.row.manifest for e in group if e.row.manifest))
        if len(manifests) > 1 and not split:
            one, other = (next(e for e in group if e.row.manifest == m) for m in manifests[:2])
            raise ValueError(
                f"{task}, {goals}: {one.source} was measured on manifest {one.row.manifest[:12]} and {other.source} on "
                f"{other.row.manifest[:12]}, which do not belong in one table: leave one out, or add --split"
            )
        if len(manifests) > 1 and any(not e.row.manifest for e in group):
            manifests.append("")
        for manifest in manifests or [""]:
            mine = [e for e in group if len(manifests) < 2 or e.row.manifest == manifest]
            best = sorted(mine, key=lambda e: (-e.row.success, e.row.plan_ms_p50))
            found.append(Table(task, goals, manifest, tuple(best)))
    return found


def markdown(found: Sequence[Table]) -> str:
    """The tables as Markdown."""
    return "\n\n".join(_markdown(table) for table in found)


def _markdown(table: Table) -> str:
    head = ["method", "search", "success", "95 % interval", "steps allowed", "ms per plan, p50 / p95", "hardware"]
    head += ["commit", "file"]
    lines = [f"**{table.task}, {table.goals}** ({table.note})", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for entry in table.entries:
        row = entry.row
        times = f"{row.plan_ms_p50:.1f} / {row.plan_ms_p95:.1f}" if row.candidates else "-"
        method = table.label(entry) + (f" (manifest {UNKNOWN})" if table.manifest and not row.manifest else "")
        lines.append(
            f"| {method} | {search(row)} | {100 * row.success:.1f} % of {row.n} | {100 * row.low:.1f} - "
            f"{100 * row.high:.1f} | {row.budget} | {times} | {hardware(row)} | {commit(row)} | {entry.source} |"
        )
    return "\n".join(lines)


def hardware(row: ResultRow) -> str:
    """Where the times were measured."""
    return f"{row.hardware}, {row.device}, {row.threads} thread{'s' * (row.threads != 1)}, torch {row.torch}"


def commit(row: ResultRow) -> str:
    """The code's revisions, short, or that they are not known."""
    parts = (revision.partition("+") for revision in row.commit.split(", "))
    return ", ".join(f"{digits[:12]}{plus}{changes}" for digits, plus, changes in parts) or UNKNOWN


def write_page(found: Sequence[Table], path: Path) -> Path:
    """Write the tables as one self-contained HTML page."""
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    html = page.get_template("leaderboard.html.jinja").render(
        tables=found,
        bar=interval_bar,
        ms=milliseconds,
        search=search,
        hardware=hardware,
        commit=commit,
        unknown=UNKNOWN,
        version=__version__,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return path
