"""Milliseconds and peak memory of a forward and backward pass."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.profiler import profile

MB = 1e6


@dataclass(frozen=True)
class Step:
    """A loss and the tensors it is differentiated by."""

    loss: Callable[[], Tensor]
    leaves: Sequence[Tensor]

    def run(self) -> None:
        """Forward and backward."""
        self.loss().backward()

    def forget(self) -> None:
        """Drop the gradients, so that every run starts from the same memory."""
        for leaf in self.leaves:
            leaf.grad = None


@dataclass(frozen=True)
class Cost:
    """What one step takes."""

    ms: float
    peak_mb: float


def peak_mb(run: Callable[[], object], device: torch.device) -> float:
    """Most memory that `run` holds at once beyond what was there before, in 10^6 bytes.

    The sum of everything that torch's allocator hands out and takes back, followed in time: exact and the same in every
    run. Scratch space that a BLAS or oneDNN takes from the system itself is not seen. On CUDA torch's own record.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / MB
    # The profiler otherwise announces its start and its end on standard error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(profile_memory=True) as profiled:
        run()
    assert profiled.kineto_results is not None
    changes = [event for event in profiled.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())])
    return float(held.max(initial=0)) / MB


def measure(steps: Sequence[Step], repeats: int, device: torch.device) -> list[Cost]:
    """Peak memory of every step's first run and median time of those after it.

    Timed runs take turns, so that a slow moment of the machine hits every step. The gradients of the last ones stay.
    """
    if device.type == "cuda":  # its libraries keep the workspace of their first call
        for step in steps:
            step.run()
            step.forget()
    peaks = [peak_mb(step.run, device) for step in steps]
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats):
        for step, taken in zip(steps, times):
            step.forget()
            taken.append(_milliseconds(step.run, device))
    return [Cost(float(np.median(taken)), peak) for taken, peak in zip(times, peaks)]


def wait(device: torch.device) -> None:
    """Return when everything launched on the device so far is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _milliseconds(run: Callable[[], None], device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return 1000 * (time.perf_counter() - start)
