"""What the tables mark: McNemar on the same goals against the best or a chosen row, corrected over the rows."""

from dataclasses import replace

import pytest
from test_results import ROW

from lewm.evaluate.logged import Logged
from lewm.evaluate.manifest import GoalSet, Manifest, Problem
from lewm.evaluate.results import markdown, table
from lewm.evaluate.runner import Outcome
from lewm.evaluate.significance import legend, marked_markdown, marked_table, verdicts
from lewm.evaluate.statistics import mcnemar

MANIFEST = Manifest(
    "two_room",
    {"size": 32},
    GoalSet("near", count=20),
    0,
    0,
    tuple(Problem(0, i, 0, i + 1, (0.1, 0.8), (0.4, 0.8), (), 0.3) for i in range(20)),
)


def logged(method: str, reached: int, goals: str = "near", first: int = 0, **row: object) -> Logged:
    """A method that reached problems `first` to `first + reached` of twenty."""
    hit = range(first, first + reached)
    outcomes = tuple(Outcome(i, i in hit, 5, 0.0, 0.0) for i in range(20))
    facts = replace(ROW, method=method, goals=goals, n=20, successes=reached, success=reached / 20, **row)  # type: ignore[arg-type]
    return Logged(facts, replace(MANIFEST, goals=replace(MANIFEST.goals, name=goals)), outcomes)


GROUP = [
    logged("ours", 18, kind="world_model"),
    logged("close", 15, kind="world_model"),
    logged("worse", 10, kind="world_model"),
    logged("random", 1, kind="random"),
    logged("oracle", 20, kind="oracle"),
]


def test_the_best_row_is_the_reference_and_the_oracle_is_not() -> None:
    """Raw p: close 0.25 (3 lost), worse 2/256 (8 lost), random 2/2^17, oracle 0.5 (2 won); Holm over the four."""
    found = {method: v for (_, method), v in verdicts(GROUP).items()}
    assert {v.reference for v in found.values()} == {"ours"} and found["ours"].is_reference
    assert found["close"].p == pytest.approx(2 * 0.25) and found["worse"].p == pytest.approx(3 * 2 / 256)
    assert found["random"].p == pytest.approx(4 * 2 / 2**17) and found["oracle"].p == pytest.approx(0.5)
    assert (found["close"].won, found["close"].lost) == (0, 3) and (found["oracle"].won, found["oracle"].lost) == (2, 0)
    assert {method: v.mark for method, v in found.items()} == {
        "ours": "reference",
        "close": "≈ p = 0.500",
        "worse": "p = 0.023",
        "random": "p < 0.001",
        "oracle": "≈ p = 0.500",
    }


def test_a_chosen_reference() -> None:
    found = verdicts(GROUP, "worse")
    assert found["near", "worse"].is_reference and found["near", "ours"].reference == "worse"
    ours = [o.success for o in GROUP[0].outcomes], [o.success for o in GROUP[2].outcomes]
    assert found["near", "ours"].p == pytest.approx(2 * max(mcnemar(*ours), 0.0), rel=0.6)  # oracle's is smaller
    with pytest.raises(
        ValueError, match=r"goals near: there is no row 'ors' to compare with; the rows are ours, close"
    ):
        verdicts(GROUP, "ors")


def test_every_goal_set_has_its_own_reference() -> None:
    found = verdicts([*GROUP[:2], logged("ours", 3, "far"), logged("close", 12, "far", 8)])
    assert found["near", "close"].reference == "ours" and found["far", "ours"].reference == "close"
    assert found["far", "ours"].p == mcnemar([True] * 3 + [False] * 12, [False] * 3 + [True] * 12)


def test_rows_of_an_older_lewm_have_no_kind() -> None:
    oracle = logged("oracle", 20, cost="true distance (sum)")
    assert verdicts([logged("ours", 9), oracle])["near", "ours"].is_reference
    assert verdicts([oracle])["near", "oracle"].is_reference  # alone it is the best there is


def test_rows_on_other_goals_are_not_compared() -> None:
    moved = replace(GROUP[1], manifest=replace(MANIFEST, problems=MANIFEST.problems[::-1]))
    with pytest.raises(ValueError, match="goals near: the rows were measured on different manifests"):
        verdicts([GROUP[0], moved])


def test_tables_gain_a_column_and_a_legend_and_are_otherwise_as_before() -> None:
    rows = [m.row for m in GROUP]
    plain, marked = table(rows).splitlines(), marked_table(GROUP).splitlines()
    assert marked[-1] == legend() and len(marked) == len(plain) + 1
    for before, after in zip(plain, marked, strict=False):
        assert after.startswith(before.rstrip()[:60])
    assert [line.split("  ")[-1].strip() for line in marked[1:3]] == ["reference", "≈ p = 0.500"]
    bare, full = markdown(rows).splitlines(), marked_markdown(GROUP, "close").splitlines()
    assert full[0] == bare[0] + " difference |" and full[1] == bare[1] + "---|"
    assert full[2:7] == [f"{line} {mark} |" for line, mark in zip(bare[2:], marks(full), strict=True)]
    assert full[7:] == ["", legend("close")] and legend("close").startswith("≈: the difference to close may be chance")


def marks(lines: list[str]) -> list[str]:
    return [line.split("|")[-2].strip() for line in lines[2:7]]
