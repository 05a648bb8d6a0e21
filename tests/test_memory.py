"""Freed memory stays in the process, where the C library lets us say so."""

import subprocess
import sys

import pytest

from lewm.memory import keep_freed_memory

PROBE = """
import resource, sys, torch
from lewm.memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    keep_freed_memory()
def work():
    parts = [torch.ones(1_000_000) for _ in range(4)]
    return sum(part[0] for part in parts)
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Page faults of ten rounds that allocate and free sixteen megabytes."""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults are counted on Linux")
def test_memory_that_was_freed_is_not_faulted_in_again() -> None:
    if not keep_freed_memory():
        pytest.skip("this C library has no mallopt")
    run = [sys.executable, "-c", PROBE]
    found = {word: int(subprocess.check_output([*run, word])) for word in ("leave", "keep")}
    assert found["keep"] < 0.1 * found["leave"], found
