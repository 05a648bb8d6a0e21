"""The tables in docs/ that are made from committed rows say what those rows say."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lewm.bench import training_budget
from lewm.compare import baselines_table, encoders, load_rows, table
from lewm.evaluate.results import load_results
from lewm.schema import read_rows

DOCS = Path(__file__).parent.parent / "docs"


def objectives(path: Path) -> str:
    """What `lewm compare objectives` prints of the rows."""
    return table(load_rows(path))


def frozen_encoders(path: Path) -> str:
    """What `lewm compare encoders` prints of the rows."""
    return encoders.table(encoders.load_rows(path))


def baselines(path: Path) -> str:
    """What `lewm compare baselines` prints of the rows."""
    return baselines_table.table(load_results(path))


def budget(path: Path) -> str:
    """What `lewm bench budget` prints of the rows, as it stands in a terminal."""
    rows = read_rows(training_budget.BudgetRow, path, "")
    return f"```\n{training_budget.table(rows)}\n```"


TABLES: dict[str, tuple[str, Callable[[Path], str]]] = {
    "objectives_two_room": ("objectives.md", objectives),
    "objectives_push_t": ("objectives.md", objectives),
    "baselines_two_room": ("baselines.md", baselines),
    "baselines_reacher": ("baselines.md", baselines),
    "baselines_two_room_shift": ("baselines.md", baselines),
    "encoders_two_room": ("frozen_encoders.md", frozen_encoders),
    "encoders_reacher": ("frozen_encoders.md", frozen_encoders),
    "budget_two_room": ("evaluation.md", budget),
    "budget_reacher": ("evaluation.md", budget),
}
"""File below docs/results/ -> page that shows it between <!-- NAME --> and <!-- /NAME -->, and what writes it."""


@pytest.mark.parametrize("name", TABLES)
def test_the_page_shows_the_committed_rows(name: str) -> None:
    page, written = TABLES[name]
    shown = re.search(f"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", (DOCS / page).read_text(), re.DOTALL)
    assert shown is not None, f"docs/{page} has no <!-- {name} -->"
    (path,) = (DOCS / "results").rglob(f"{name}.json")
    assert shown[1] == written(path)


def test_every_committed_comparison_is_shown() -> None:
    assert {path.stem for path in (DOCS / "results" / "compare").glob("*.json")} <= set(TABLES)
