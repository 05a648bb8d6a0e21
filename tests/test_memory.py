"""Freed memory stays in the process, where the C library lets us say so."""

import ctypes
import platform
from types import SimpleNamespace

import pytest

from lewm.memory import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_glibc_takes_both_settings() -> None:
    """It refuses a largest piece above 32 MiB, so a True says that the numbers are ones it knows."""
    assert keep_freed_memory()


@pytest.mark.parametrize("accepts", [True, False])
def test_it_says_what_the_library_answers(accepts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def mallopt(option: int, value: int) -> int:
        asked.append((option, value))
        return int(accepts)

    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    assert keep_freed_memory() == accepts
    assert asked == [(-1, 2**30), (-3, 2**25)][: 1 + accepts]


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert not keep_freed_memory()
