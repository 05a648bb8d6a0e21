"""Work shared among processes: all of it is done, errors come through, a killed worker is said."""

import os
from pathlib import Path

import pytest

from lewm.processes import Processes


def square(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def fail(number: int) -> int:
    raise ValueError(f"{number} is no number")


def die(folder: Path, number: int) -> int:
    if number == 1:
        os._exit(9)
    (folder / str(number)).touch()
    return number


def test_every_job_is_done_once_by_the_same_processes() -> None:
    with Processes(2) as pool:
        found = [list(pool.run(square, [(i,) for i in range(first, first + 5)], "")) for first in (0, 5)]
    assert [sorted(value for value, _ in part) for part in found] == [[0, 1, 4, 9, 16], [25, 36, 49, 64, 81]]
    workers = {pid for part in found for _, pid in part}
    assert os.getpid() not in workers and len(workers) <= 2


def test_one_process_is_this_one() -> None:
    with Processes(1) as pool:
        assert list(pool.run(square, [(3,), (2,)], "")) == [(9, os.getpid()), (4, os.getpid())]


def test_an_error_comes_through() -> None:
    with pytest.raises(ValueError, match="7 is no number"), Processes(2) as pool:
        list(pool.run(fail, [(7,)], ""))


def test_a_killed_worker_is_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a worker died: run it again"), Processes(2) as pool:
        list(pool.run(die, [(tmp_path, i) for i in range(2)], "a worker died: run it again"))
