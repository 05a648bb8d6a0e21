"""Where a measurement was taken: the load of the machine, the line under a table, the joules of a plan."""

import os
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from lewm.evaluate.energy import EnergyMeter
from lewm.evaluate.manifest import GoalSet, Manifest, Problem
from lewm.evaluate.timing import WARMUP, load_average, machine_of, time_plans, where_measured
from lewm.planning.policy import Start


def test_the_load_is_that_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 2.5, 3.5), raising=False)
    assert load_average() == 1.5


def test_a_system_without_a_load_average_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getloadavg", raising=False)
    assert load_average() is None


@pytest.mark.parametrize(
    ("load", "said"), [(None, ""), (0.0, ", load average 0.0 before"), (2.25, ", load average 2.2 before")]
)
def test_the_line_under_a_table(load: float | None, said: str) -> None:
    row = SimpleNamespace(threads=2, device="cpu", hardware="Some CPU x 4", load=load, torch="2.9.1")
    assert where_measured(row) == f"2 thread(s), cpu, Some CPU x 4{said}, torch 2.9.1"
    assert machine_of(row) == f"cpu, Some CPU x 4{said}, torch 2.9.1"


class Hungry:
    """Uses 5 joules to be told of a goal and `plan` joules to act, beside the warm-up's 1,000."""

    needs_frame = True

    def __init__(self, plan: float) -> None:
        self.plan, self.acts, self.used = plan, 0, 0.0

    def start(self, starts: Sequence[Start]) -> None:
        self.used += 5

    def act(self, pixels: np.ndarray | None, active: np.ndarray) -> np.ndarray:
        self.acts += 1
        self.used += self.plan if self.acts > WARMUP else 1000
        return np.zeros((1, 2))


def joules(policy: Hungry, monkeypatch: pytest.MonkeyPatch, tick: float) -> float | None:
    """Of a plan, by a counter that moves in steps of `tick`."""
    meter = EnergyMeter((lambda: policy.used // tick * tick,) if tick else ())
    monkeypatch.setattr(EnergyMeter, "of", lambda device: meter)
    problem = Problem(0, 0, 0, 1, (0.1, 0.8), (0.2, 0.8), (), 0.1)
    manifest = Manifest("two_room", {"size": 32}, GoalSet("line", budget=12, offset=1), 0, 0, (problem,) * 5)
    timed = time_plans(policy, manifest, plans=40)
    assert timed.plans == 40 and policy.acts == WARMUP + 40
    return timed.joules


def test_the_joules_of_a_plan_leave_out_what_lies_between_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    assert joules(Hungry(2), monkeypatch, tick=1) == 2
    coarse = joules(Hungry(2), monkeypatch, tick=30)
    assert coarse == pytest.approx(2, abs=2 * 30 / 40)
    assert joules(Hungry(0), monkeypatch, tick=30) is not None


def test_joules_are_unknown_where_nothing_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Hungry(2)
    assert joules(policy, monkeypatch, tick=0) is None
    assert policy.used == 5 * (WARMUP + 40) + 1000 * WARMUP + 2 * 40  # and nothing is begun a second time
