"""Two gloo processes that stay up for the whole test run: starting Python and torch anew takes seconds each time."""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

OnTwoRanks = Callable[..., list[Any]]
"""(function, *arguments) -> [function(0, *arguments) on rank 0, function(1, *arguments) on rank 1]."""


def pack(thing: Any) -> bytes:
    """Tensors as bytes: pickled as such they would be files that both processes have to keep open."""
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def unpack(packed: bytes) -> Any:
    return torch.load(io.BytesIO(packed), weights_only=False)


def join(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    patience = timedelta(seconds=120)  # of a rank whose partner failed
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=patience)


def call(function: Callable[..., Any], rank: int, packed: bytes) -> bytes:
    return pack(function(rank, *unpack(packed)))


@contextmanager
def two_processes(folder: Path) -> Iterator[OnTwoRanks]:
    """Start them; they meet in an empty folder. Functions have to be importable: top level, of a test module."""
    context = get_context("spawn")  # a fork would copy torch's threads half way through their work
    # One pool each, because a pool of two might give both halves to the same process.
    ranks = [ProcessPoolExecutor(1, context, join, (rank, folder)) for rank in range(2)]

    def on_two_ranks(function: Callable[..., Any], *arguments: Any) -> list[Any]:
        packed = pack(arguments)
        halves = [pool.submit(call, function, rank, packed) for rank, pool in enumerate(ranks)]
        return [unpack(half.result()) for half in halves]

    try:
        yield on_two_ranks
    finally:
        for pool in ranks:
            pool.submit(dist.destroy_process_group)
        for pool in ranks:
            pool.shutdown()
