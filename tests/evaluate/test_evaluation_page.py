"""docs/evaluation.md: its commands are understood, its power table is the one the command prints, its rules exist."""

import re
import shlex
from pathlib import Path

from lewm.cli import build_parser, split_overrides
from lewm.evaluate.power import power_rows, table
from lewm.evaluate.rules import RULES

PAGE = (Path(__file__).parent.parent.parent / "docs" / "evaluation.md").read_text()


def test_every_command_it_shows_is_understood() -> None:
    shown = re.findall(r"^    lewm (.*)", PAGE, re.MULTILINE)
    assert {line.split()[0] for line in shown} >= {"manifest", "evaluate", "report", "compare", "power", "leaderboard"}
    for line in shown:
        _, unknown = build_parser().parse_known_args(split_overrides(shlex.split(line))[1])
        assert not unknown, line


def test_its_power_table_is_the_commands() -> None:
    printed = table(power_rows([(0.8, 0.9)], n=50), 0.8, 0.05, 50)
    assert "\n".join(f"    {line}" for line in printed.splitlines()) in PAGE


def test_it_lists_the_rules() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == list(RULES)
