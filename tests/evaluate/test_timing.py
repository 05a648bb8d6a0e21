"""Where a measurement was taken: the load of the machine, and the line under a table."""

import os
from types import SimpleNamespace

import pytest

from lewm.evaluate.timing import load_average, where_measured


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
