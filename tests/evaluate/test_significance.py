"""What the tables mark: McNemar on the same goals against the best or a chosen row, corrected over the rows."""

from dataclasses import replace

import pytest
from test_results import ROW

from lewm.evaluate.results import ResultRow, markdown, table
from lewm.evaluate.significance import legend, marked_markdown, marked_table, verdicts
from lewm.evaluate.statistics import mcnemar


def measured(method: str, reached: int, goals: str = "near", first: int = 0, **row: object) -> ResultRow:
    """A method that reached problems `first` to `first + reached` of twenty."""
    said = "".join("01"[first <= i < first + reached] for i in range(20))
    facts = {"n": 20, "successes": reached, "success": reached / 20, "reached": said, "manifest": "a"}
    return replace(ROW, method=method, goals=goals, **facts | row)  # type: ignore[arg-type]


GROUP = [
    measured("ours", 18, kind="world_model"),
    measured("close", 15, kind="world_model"),
    measured("worse", 10, kind="world_model"),
    measured("random", 1, kind="random"),
    measured("oracle", 20, kind="oracle"),
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
    ours = [c == "1" for c in GROUP[0].reached], [c == "1" for c in GROUP[2].reached]
    assert found["near", "ours"].p == pytest.approx(2 * max(mcnemar(*ours), 0.0), rel=0.6)  # oracle's is smaller
    with pytest.raises(
        ValueError, match=r"goals near: there is no row 'ors' to compare with; the rows are ours, close"
    ):
        verdicts(GROUP, "ors")


def test_every_goal_set_has_its_own_reference() -> None:
    found = verdicts([*GROUP[:2], measured("ours", 3, "far"), measured("close", 12, "far", 8)])
    assert found["near", "close"].reference == "ours" and found["far", "ours"].reference == "close"
    assert found["far", "ours"].p == mcnemar([True] * 3 + [False] * 12, [False] * 3 + [True] * 12)


def test_rows_of_an_older_lewm_have_no_kind() -> None:
    oracle = measured("oracle", 20, cost="true distance (sum)")
    assert verdicts([measured("ours", 9), oracle])["near", "ours"].is_reference
    assert verdicts([oracle])["near", "oracle"].is_reference  # alone it is the best there is


def test_rows_on_other_goals_are_not_compared() -> None:
    moved = replace(GROUP[1], manifest="b")
    with pytest.raises(ValueError, match="goals near: the rows were measured on different manifests"):
        verdicts([GROUP[0], moved])


def test_rows_that_do_not_say_what_was_reached_have_no_verdict() -> None:
    older = replace(GROUP[0], reached="", manifest="")
    assert verdicts([older, *GROUP[1:]])["near", "close"].is_reference
    assert marked_table([older, *GROUP[1:]]).splitlines()[1].endswith("not recorded")


def test_tables_gain_a_column_and_a_legend_and_are_otherwise_as_before() -> None:
    plain, marked = table(GROUP).splitlines(), marked_table(GROUP).splitlines()
    assert marked[-1] == legend() and len(marked) == len(plain) + 1
    for before, after in zip(plain, marked, strict=False):
        assert after.startswith(before.rstrip()[:60])
    assert [line.split("  ")[-1].strip() for line in marked[1:3]] == ["reference", "≈ p = 0.500"]
    bare, full = markdown(GROUP).splitlines(), marked_markdown(GROUP, "close").splitlines()
    assert full[0] == bare[0] + " difference |" and full[1] == bare[1] + "---|"
    assert full[2:7] == [f"{line} {mark} |" for line, mark in zip(bare[2:], marks(full), strict=True)]
    assert full[7:] == ["", legend("close")] and legend("close").startswith("≈: the difference to close may be chance")


def marks(lines: list[str]) -> list[str]:
    return [line.split("|")[-2].strip() for line in lines[2:7]]
