"""docs/evaluation.md: its commands are there, its power table is the one the command prints, its rules exist."""

import re
from pathlib import Path

from lewm.evaluate.power import power_rows, table
from lewm.evaluate.rules import RULES

PAGE = (Path(__file__).parent.parent.parent / "docs" / "evaluation.md").read_text()


def test_it_shows_every_command_it_is_about() -> None:
    shown = set(re.findall(r"^    lewm (\S+)", PAGE, re.MULTILINE))
    assert shown >= {"manifest", "evaluate", "report", "compare", "power", "leaderboard"}


def test_its_power_table_is_the_commands() -> None:
    printed = table(power_rows([(0.8, 0.9)], n=50), 0.8, 0.05, 50)
    assert "\n".join(f"    {line}" for line in printed.splitlines()) in PAGE


def test_it_lists_the_rules() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == list(RULES)
