"""Goals needed to tell two rates apart: textbook numbers, and the exact power by counting every outcome."""

import json
import math
from pathlib import Path

import pytest

from lewm import cli
from lewm.evaluate.power import (
    agreement_range,
    independent_agreement,
    mcnemar_power,
    paired_goals,
    power_rows,
    rates_at,
    table,
    unpaired_goals,
)
from lewm.evaluate.statistics import mcnemar


@pytest.mark.parametrize(
    "low, high, power, n",
    [(0.6, 0.8, 0.8, 82), (0.1, 0.2, 0.8, 199), (0.8, 0.9, 0.8, 199), (0.5, 0.6, 0.8, 388), (0.5, 0.6, 0.9, 519)],
)
def test_unpaired(low: float, high: float, power: float, n: int) -> None:
    """Two-sided 5 %, without continuity correction, as the textbooks' tables have them."""
    assert unpaired_goals(low, high, power) == n


def counted_power(n: int, win: float, lose: float, alpha: float) -> float:
    """Every number of goals won and lost, with its probability, and the test itself."""
    power = 0.0
    for w in range(n + 1):
        for lost in range(n + 1 - w):
            p = mcnemar([True] * w + [False] * lost, [False] * w + [True] * lost)
            ways = math.comb(n, w) * math.comb(n - w, lost)
            power += (p < alpha) * ways * win**w * lose**lost * (1 - win - lose) ** (n - w - lost)
    return power


@pytest.mark.parametrize("n, low, high, agreement", [(14, 0.4, 0.8, 0.5), (11, 0.3, 0.9, 0.4), (9, 0.1, 0.9, 0.2)])
def test_the_power_of_mcnemar_is_counted_exactly(n: int, low: float, high: float, agreement: float) -> None:
    win, lose = (1 - agreement + high - low) / 2, (1 - agreement - high + low) / 2
    for alpha in (0.05, 0.2):
        expected = counted_power(n, win, lose, alpha)
        assert mcnemar_power(n, low, high, agreement, alpha) == pytest.approx(expected, abs=1e-8)


def test_a_worse_method_that_never_wins_needs_six_goals_to_differ_on() -> None:
    """Five wins of five are p = 0.0625, six of six 0.031: power is the chance of at least six in n."""
    n = paired_goals(0.8, 0.9, 0.9)
    at_least_six = [1 - sum(math.comb(m, k) * 0.1**k * 0.9 ** (m - k) for k in range(6)) for m in (n - 1, n)]
    assert at_least_six[0] < 0.8 <= at_least_six[1] and n == 78


@pytest.mark.parametrize(
    "low, high, agreement", [(0.8, 0.9, 0.82), (0.5, 0.7, 0.6), (0.1, 0.9, 0.2), (0.97, 0.99, 0.97)]
)
def test_paired_goals_are_the_fewest(low: float, high: float, agreement: float) -> None:
    n = paired_goals(low, high, agreement)
    assert mcnemar_power(n - 1, low, high, agreement) < 0.8 <= mcnemar_power(n, low, high, agreement)


def test_agreement_spares_goals() -> None:
    least, most = agreement_range(0.8, 0.9)
    assert (least, most) == pytest.approx((0.7, 0.9))
    assert independent_agreement(0.8, 0.9) == pytest.approx(0.74)
    needed = [paired_goals(0.8, 0.9, agreement) for agreement in (least, 0.74, 0.82, most)]
    assert needed == sorted(needed, reverse=True) and needed[1] == 215 and needed[2] == 151
    assert paired_goals(0.8, 0.9, 0.82, power=0.9) > needed[2] > paired_goals(0.8, 0.9, 0.82, alpha=0.1)


def test_the_table() -> None:
    rows = power_rows([(0.9, 0.8)])
    assert [(r.low, r.high, r.what, r.paired, r.unpaired) for r in rows] == [
        (0.8, 0.9, "independent", 215, 199),
        (0.8, 0.9, "half-way", 151, 199),
        (0.8, 0.9, "most possible", 78, 199),
    ]
    (given,) = power_rows([(0.8, 0.9)], agreement=0.85)
    assert (given.what, given.agreement) == ("given", 0.85)
    assert len(power_rows([(0.9, 1.0)])) == 1  # all agreements are one where the better method never fails
    text = table(rows, 0.8, 0.05).splitlines()
    assert text[0] == "goals needed for 80 % power, two-sided at 5 %" and len(text) == 6
    assert text[2].split() == ["80", "%", "and", "90", "%", "74.0", "%", "independent", "215", "199"]
    assert rates_at(0.05) == [(0.55, 0.6), (0.65, 0.7), (0.75, 0.8), (0.85, 0.9), (0.9, 0.95), (0.95, 1.0)]
    assert rates_at(0.7) == [(0.0, 0.7), (0.1, 0.8), (0.2, 0.9), (0.25, 0.95), (0.3, 1.0)]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the rates are 0\.5 and 0\.5; they must differ"):
        unpaired_goals(0.5, 0.5)
    with pytest.raises(
        ValueError, match=r"agreement is 0\.95; two methods with rates 0\.8 and 0\.9 agree on 0\.7 to 0\.9"
    ):
        paired_goals(0.8, 0.9, 0.95)
    with pytest.raises(ValueError, match=r"power is 80 and alpha 0\.05; power must lie in 0\.5\.\.1"):
        paired_goals(0.8, 0.9, 0.85, power=80)
    with pytest.raises(ValueError, match=r"--difference is 5; it must lie between 0 and 1"):
        rates_at(5)
    with pytest.raises(ValueError, match=r"takes about \d+ goals, more than the 100000 this looks at"):
        paired_goals(0.5, 0.501, 0.5)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["power", "--rates", "0.8", "0.9", "--json", str(tmp_path / "rows.json")])
    out = capsys.readouterr().out
    assert "half-way" in out and "151" in out and out == table(power_rows([(0.8, 0.9)]), 0.8, 0.05) + "\n"
    assert [row["paired"] for row in json.loads((tmp_path / "rows.json").read_text())] == [215, 151, 78]
    cli.main(["power", "--difference", "0.1", "--agreement", "0.9", "--power", "0.9", "--alpha", "0.01"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "goals needed for 90 % power, two-sided at 1 %" and len(lines) == 2 + 6 + 1
    cli.main(["power", "--rates", "0.8", "0.9", "--n", "78"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("found with 78, paired") and lines[4].endswith(" 80 %")  # as many as it takes
    chances = [row.chance for row in power_rows([(0.8, 0.9)], n=50)]
    assert chances == pytest.approx([mcnemar_power(50, 0.8, 0.9, agreement) for agreement in (0.74, 0.82, 0.9)])
    for words, expected in (
        (["--rates", "0.8", "0.9", "--n", "0"], "--n is 0; it must lie in 1..100000 goals"),
        (["--rates", "0.8", "0.8"], "the rates are 0.8 and 0.8; they must differ"),
        (["--difference", "0.1", "--agreement", "0.99"], "agreement is 0.99; two methods with rates 0.5 and 0.6 agree"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["power", *words])
        err = capsys.readouterr().err
        assert expected in err and err.count("\n") == 1
