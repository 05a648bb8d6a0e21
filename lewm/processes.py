"""Work shared among processes of one's own: results as they come, nobody left behind."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Self, TypeVar

R = TypeVar("R")


class Processes:
    """`count` fresh processes, started when there is work for them; a context that ends them. One is no process."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def run(self, function: Callable[..., R], jobs: Iterable[tuple[Any, ...]], died: str) -> Iterator[R]:
        """function(*job) of every job, as they finish; an error in one of them is raised here.

        died: what is said, in a RuntimeError, where a process was killed.
        """
        if self.count == 1:
            yield from (function(*job) for job in jobs)
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # GL contexts and threads do not survive a fork
            self._pool = ProcessPoolExecutor(self.count, context, _begin)
        futures = [self._pool.submit(function, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(died) from error


def _begin() -> None:
    """A worker whose parent was killed ends too, instead of waiting for work for ever; Ctrl-C ends it in silence."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
