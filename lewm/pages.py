"""Pages whose tables are made from committed rows: `<!-- NAME -->` to `<!-- /NAME -->` shows what NAME.json holds."""

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from lewm.bench import control_rate, peer_plan, plan, training_budget
from lewm.bench.front import front_markdown, load_front
from lewm.compare import baselines_table, encoders, objectives_table
from lewm.compare.objectives_rows import load_rows
from lewm.evaluate.results import load_results
from lewm.evaluate.summary import summary
from lewm.schema import read_rows
from lewm.study import STUDIES


def _of(row: type, shown: Callable[..., str]) -> Callable[[Path], str]:
    """What shows the rows of a file."""
    return lambda path: shown(read_rows(row, path, "measure again"))


def _printed(table: Callable[..., str]) -> Callable[..., str]:
    """As it stands in a terminal."""
    return lambda rows: f"```\n{table(rows)}\n```"


TABLES: dict[str, Callable[[Path], str]] = {
    "front_*": lambda path: front_markdown(load_front(path)),
    "*_cpu": lambda path: summary(load_results(path)),
    "compare/objectives_*": lambda path: objectives_table.table(load_rows(path)),
    "compare/encoders_*": lambda path: encoders.table(encoders.load_rows(path)),
    "compare/baselines_*": lambda path: baselines_table.table(load_results(path)),
    "bench/budget_*": _of(training_budget.BudgetRow, _printed(training_budget.table)),
    "bench/plan_*": _of(plan.BenchRow, plan.markdown),
    "bench/control_*": _of(control_rate.ControlRow, control_rate.markdown),
    "bench/peer_*": _of(peer_plan.PeerRow, peer_plan.markdown),
    **{f"study/*_{name}": _of(study.row, _printed(study.table)) for name, study in STUDIES.items()},
}
"""File below the folder of results, without its ending -> the Markdown of its rows."""


def filled(text: str, results: Path) -> str:
    """A page with all its tables written anew from the files below `results`.

    Raises ValueError for a table that is not closed, and for one of a file that is not there or has no table.
    """
    for name in names(text):
        block = re.compile(f"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        if not block.search(text):
            raise ValueError(f"<!-- {name} --> has no <!-- /{name} --> on a line of its own below it")
        table = table_of(results, name)
        text = block.sub(lambda match, table=table: match[1] + table + match[2], text)  # type: ignore[misc]
    return text


def names(text: str) -> list[str]:
    """The tables that a page shows."""
    return re.findall(r"^<!-- (\w+) -->$", text, re.MULTILINE)


def table_of(results: Path, name: str) -> str:
    """The Markdown of `name`.json, wherever below `results` it lies."""
    found = sorted(results.rglob(f"{name}.json"))
    if len(found) != 1:
        raise ValueError(f"<!-- {name} -->: there are {len(found)} files {name}.json below {results}; it takes one")
    inside = found[0].relative_to(results).with_suffix("").as_posix()
    for pattern, written in TABLES.items():
        if fnmatch(inside, pattern) and pattern.count("/") == inside.count("/"):
            return written(found[0])
    raise ValueError(f"<!-- {name} -->: nothing makes a table of {inside}.json; such files are {', '.join(TABLES)}")


def fill(pages: Sequence[Path], results: Path) -> list[Path]:
    """Write the tables of these pages anew; returns those that changed."""
    changed = []
    for page in pages:
        before = page.read_text()
        try:
            after = filled(before, results)
        except ValueError as error:
            raise ValueError(f"{page}: {error}") from error
        if after != before:
            page.write_text(after)
            changed.append(page)
    return changed
