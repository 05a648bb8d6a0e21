"""The comparison over seeds and its page: numbers worked out by hand, and what is drawn is what was measured."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lewm.compare.objectives_report import R2Axis, collapses, mean_curve, write_report
from lewm.compare.objectives_rows import CompareRow, CurvePoint, Success
from lewm.compare.objectives_table import Spread, spread, summarise, table
from lewm.evaluate.statistics import wilson


def point(step: int, std: float = 1.0, linear: float | None = 0.9, mlp: float | None = None) -> CurvePoint:
    curved = {} if mlp is None else {"x": mlp, "still": None}
    return CurvePoint(step, 20.0, 40.0, 30.0, std, std / 2, {"x": linear, "still": None}, curved, (0.1, 0.2), 0.5)


def success(goals: str, method: str, reached: int, n: int = 10) -> Success:
    return Success(goals, method, n, reached, reached / n, *wilson(reached, n))


def row(objective: str = "sigreg", seed: int = 0, rank: float = 20.0, reached: int = 8, **more: object) -> CompareRow:
    base = CompareRow(
        task="two_room",
        objective=objective,
        seed=seed,
        change="",
        steps=100,
        seconds_per_step=0.2,
        effective_rank=rank,
        ideal_rank=40.0,
        std_min=0.5,
        std_mean=1.0,
        linear_r2={"x": 0.9, "y": 0.2, "still": None},
        mlp_r2={"x": 1.0, "y": 0.7, "still": None},
        rollout_error=(0.1, 0.3),
        collapsed_at=None,
        success=(success("ahead", "cost_to_go", reached), success("ahead", "latent_l2", 5)),
        hardware="cpu",
        torch="2",
        condition_number=1234.4,
        curve=(point(0), point(100)),
    )
    return replace(base, **more)  # type: ignore[arg-type]


# Over seeds -----------------------------------------------------------------------------------------------------------


def test_mean_and_spread_over_seeds() -> None:
    """2, 4, 9: mean 5, squared distances 9 + 1 + 16 over two, so 13 ** 0.5."""
    assert spread([2.0, 4.0, 9.0]) == Spread(5.0, pytest.approx(math.sqrt(13)), 3)
    assert spread([2.0, None]) == Spread(2.0, None, 1)
    assert spread([None]) is None
    assert Spread(0.98765, 0.01234, 3).text(3) == "0.988 ± 0.012" and Spread(0.98765, None, 1).text(1) == "1.0"


def test_a_summary_pools_goals_and_averages_the_rest() -> None:
    rows = [
        row(seed=1, rank=10.0, reached=9, condition_number=None, collapsed_at=50),
        row(seed=0, rank=20.0, reached=6, linear_r2={"x": 0.8, "y": 0.2, "still": None}),
    ]
    (summary,) = summarise(rows)
    assert summary.seeds == (0, 1)
    assert summary.effective_rank == Spread(15.0, pytest.approx(math.sqrt(50)), 2)
    assert summary.linear_r2["x"] == Spread(pytest.approx(0.85), pytest.approx(math.sqrt(0.005)), 2)
    assert summary.linear_r2["still"] is None
    assert summary.condition_number == Spread(1234.4, None, 1)
    assert [error.mean for error in summary.rollout_error] == [pytest.approx(0.1), pytest.approx(0.3)]
    planned = summary.success[0]
    assert (planned.n, planned.successes, planned.success) == (20, 15, 0.75)
    # Wilson, z = 1.96: centre (0.75 + z2 / 40) / (1 + z2 / 20), z2 = 3.8415, is 0.7097; half width 0.1778.
    assert (planned.low, planned.high) == (pytest.approx(0.5313, abs=1e-4), pytest.approx(0.8881, abs=1e-4))
    assert planned.by_seed == (0.6, 0.9)
    assert summary.reached == pytest.approx(25 / 40)
    assert (summary.collapsed, summary.collapse) == (1, "1 of 2, at 50")


def test_summaries_stand_by_task_and_then_by_goals_reached() -> None:
    rows = [
        row("ema", reached=2),
        row("sigreg", reached=9),
        replace(row("vicreg", reached=10), task="push_t"),
        row("barlow", reached=9),
    ]
    assert [(s.task, s.objective) for s in summarise(rows)] == [
        ("two_room", "sigreg"),
        ("two_room", "barlow"),
        ("two_room", "ema"),
        ("push_t", "vicreg"),
    ]


def test_rows_that_cannot_be_pooled_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two rows are sigreg on two_room with the same seed; seeds are \[3, 3\]"):
        summarise([row(seed=3), row(seed=3)])
    fewer = (success("ahead", "latent_l2", 5),)
    for other in (row(steps=99), row(success=fewer), row(settings={"weight": 0.2}), row(change="slower")):
        with pytest.raises(ValueError, match="rows of sigreg on two_room differ in steps, settings, goal sets"):
            summarise([row(), replace(other, seed=1)])


def test_the_table_of_one_seed() -> None:
    text = table([row("ema", change="slower", collapsed_at=40, condition_number=2.5e7), row(reached=9)])
    assert text.startswith("two_room: 100 steps, seed 0, most goals reached first.") and "±" not in text
    lines = text.splitlines()
    assert lines[4].startswith("| sigreg | 90 (60-98) | 50 (24-76) | never | 20.0 / 40.0 | 1,234 | 1.000 | 0.500 |")
    assert lines[4].endswith("| 0.200 | 0.700 | 0.300 | 0.200 |")
    assert "| at 40 | 20.0 / 40.0 | 2.5e+07 |" in lines[5]
    assert "| objective | x | y | still |" in text and "| ema | 0.900 / 1.000 | 0.200 / 0.700 | - / - |" in text
    assert text.endswith("- ema: slower")
    assert table([]) == "no rows"


def test_the_table_shows_the_worst_factor_as_the_training_goes_on() -> None:
    """The lowest of the factors of a point, then the mean over seeds; points without an MLP probe have no column."""

    def measured(step: int, x: float, y: float) -> CurvePoint:
        return replace(point(step), mlp_r2={"x": x, "y": y, "still": None})

    curves = [
        (measured(0, 0.5, 0.1), point(50), measured(100, 0.9, 0.6)),
        (measured(0, 0.2, 0.3), measured(100, 0.8, 0.9)),
    ]
    text = table([row(seed=seed, curve=curve) for seed, curve in enumerate(curves)])
    assert "| objective | 0 steps | 100 steps |" in text
    assert "| sigreg | 0.150 ± 0.071 | 0.700 ± 0.141 |" in text
    assert "as the training goes on" not in table([row()])  # whose curve has no MLP probe


def test_the_table_of_several_seeds_says_how_they_were_pooled() -> None:
    text = table([row(seed=0, rank=10.0), row(seed=2, rank=20.0, seconds_per_step=None)])
    assert "seeds 0, 2" in text and "over the goals of all seeds together" in text
    assert "| 80 (58-92) |" in text and "| 15.0 ± 7.1 / 40.0 |" in text


# The page -------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags must close as they were opened, and nothing may be loaded from elsewhere."""

    VOID = ("meta", "input", "br", "rect", "line", "circle", "polyline")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {name for name, _ in attrs} & {"src", "href", "srcset"}
        assert tag not in ("script", "link")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def panel(html: str, title: str) -> str:
    (found,) = re.findall(rf'<svg class="chart"[^>]*aria-label="{re.escape(title)}">.*?</svg>', html)
    return str(found)


def test_r2_rises_by_tenths_of_the_unexplained_variance() -> None:
    axis = R2Axis.over("R2", np.array([0.2, 0.9985, -7.0]))
    assert axis.ticks == pytest.approx((0, 0.5, 0.9, 0.99, 0.999))
    assert [axis.place(r2) for r2 in (0, 0.9, 0.99, 0.999)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert axis.place(-3.0) == 0 and axis.place(0.99999) == axis.place(1.0) == pytest.approx(1)
    assert R2Axis.over("R2", np.array([0.99])).high == pytest.approx(0.99)
    assert R2Axis.over("R2", np.array([-1.0])).high == pytest.approx(0.9)
    assert R2Axis.over("R2", np.array([1.0])).ticks[-1] == pytest.approx(0.99999)


def test_curves_are_means_over_the_seeds_that_have_a_point() -> None:
    rows = [row(curve=(point(0, linear=0.2), point(5, linear=0.4))), row(curve=(point(0, linear=0.6),))]
    line = mean_curve(rows, lambda p: p.linear_r2["x"], "s0")
    assert (line.x, line.y) == ([0, 5], pytest.approx([0.4, 0.4]))
    assert mean_curve(rows, lambda p: p.linear_r2["still"], "s0").x == []


def test_rings_mark_the_point_where_each_seed_collapsed() -> None:
    fallen = row(curve=(point(0, 1.0), point(50, 0.04), point(100, 0.01)), collapsed_at=50)
    rings = collapses([fallen, row()], lambda p: p.std_mean, "s3")
    assert (rings.x, rings.y, rings.joined) == ([50], [0.04], False) and rings.style == "s3 ring"


def test_the_page_stands_alone_and_shows_every_measure(tmp_path: Path) -> None:
    names = ["sigreg", "vicreg", "barlow", "whitening", "rdmreg", "ema", "simsiam", "a<b"]
    curve = (point(0, mlp=0.5), point(50, 0.02), point(100, 0.02, mlp=0.7))
    rows = [row(name, seed, reached=8 - i, curve=curve) for i, name in enumerate(names) for seed in (0, 1)]
    rows[-2:] = [replace(rows[-2], change="slower"), replace(rows[-1], collapsed_at=50, change="slower")]
    html = write_report(rows, tmp_path / "r.html", {"two_room": "task: two_room & more"}).read_text()
    Page(html)
    assert "a<b" not in html and "task: two_room &amp; more" in html
    for title in ("effective rank by step", "prediction error by step", "rollout error by horizon"):
        assert panel(html, title).count("<polyline") == len(names)
    assert panel(html, "standard deviation by step").count("ring") == 1
    assert panel(html, "R2 of x by step, linear probe").count("<polyline") == len(names)
    assert panel(html, "R2 of x by step, MLP probe").count("<circle") == 2 * len(names)
    assert "R2 of still by step" not in html  # it never varies
    assert panel(html, "milliseconds per training step").count(">200</text>") == len(names)
    assert "16 of 20" in html and "seeds 80, 80 %" in html and "1 of 2, at 50" in html and "slower" in html
    styles = re.findall(r'<polyline class="line (s\d) (\w*) ?(o\d+)"', panel(html, "effective rank by step"))
    assert len(set(styles)) == len({style[:2] for style in styles}) == len(names)  # told apart by colour and stroke
    for i in range(len(names)):
        assert f'id="on-o{i}"' in html and f"#on-o{i}:not(:checked)) .o{i} {{ display: none; }}" in html


def test_rows_without_curves_are_reported_without_them(tmp_path: Path) -> None:
    html = write_report([row(curve=(), seconds_per_step=None)], tmp_path / "r.html").read_text()
    Page(html)
    assert "so there are no curves" in html and "by step" not in html and "rollout error by horizon" in html
    with pytest.raises(ValueError, match="there is no row to report"):
        write_report([], tmp_path / "none.html")
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
