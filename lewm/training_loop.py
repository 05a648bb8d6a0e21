"""The loop of every training on recordings: read, update, log, save, probe, and stop cleanly when asked to.

What a step does is a function of (seed, step), so that a killed training continues exactly.
"""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lewm import distributed
from lewm.data.windows import Batch
from lewm.objectives.losses import Losses
from lewm.progress import Stage
from lewm.train_log import StepRecord, TrainLog

STOP_EVERY = 10
"""Steps between two looks at the stop signals when there are several processes."""


class Interrupted(RuntimeError):
    """SIGTERM or SIGINT arrived; a checkpoint was written before this was raised."""


class Pace(Protocol):
    """How long a training is, and how often it does what."""

    @property
    def steps(self) -> int: ...
    @property
    def log_every(self) -> int: ...
    @property
    def probe_every(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...


class Steps(Protocol):
    """State over time of a training."""

    device: torch.device
    step: int

    @property
    def state_path(self) -> Path:
        """The file that a restart continues from."""

    def read_batch(self) -> Batch:
        """What the current step reads."""

    def update(self, batch: Batch) -> tuple[Losses, Tensor]:
        """Take the step; the losses and the gradient norm."""

    def save(self) -> None:
        """Write the state."""


def run_steps(
    name: str,
    trainer: Steps,
    pace: Pace,
    log: TrainLog,
    rate: Callable[[int], float],
    probe: Callable[[], Mapping[str, float]],
    quiet: bool,
) -> None:
    """Take all steps that are left, under a progress line called `name`.

    rate: the learning rate of a step, for the log. probe: looks at the training between steps; what it returns is shown
    in the progress line. Raises Interrupted after a SIGTERM or Ctrl-C (the state is saved first), and TrainingDiverged
    naming the step, the clips and the last good state.
    """
    with stop_signals() as received, Stage(name, pace.steps, "steps", quiet or distributed.rank() > 0) as stage:
        stage.skip_to(trainer.step)
        while trainer.step < pace.steps:
            start = time.perf_counter()
            batch = trainer.read_batch()
            read = time.perf_counter()
            losses, norm = trainer.update(batch)
            log.add(StepRecord(losses, norm, batch.index_B, read - start, time.perf_counter() - read))
            due = trainer.step % pace.checkpoint_every == 0 or trainer.step == pace.steps
            # Processes must agree on where they stop, and asking them costs a synchronisation.
            ask = distributed.world_size() == 1 or trainer.step % STOP_EVERY == 0
            stop = ask and distributed.any_rank(bool(received), trainer.device)
            if stop or due or trainer.step % pace.log_every == 0:
                stage.update(0, **log.flush(trainer.step, rate(trainer.step - 1)))
            if stop or due:
                trainer.save()
            if stop:
                raise Interrupted(f"stopped at step {trainer.step}; {trainer.state_path} is saved: run again to go on")
            if pace.probe_every and trainer.step % pace.probe_every == 0 and trainer.step < pace.steps:
                stage.update(0, **probe())
            stage.update(1)


def step_seed(seed: int, step: int, stream: int = 0) -> int:
    """An independent 63-bit seed for every (seed, step, stream)."""
    return int(np.random.SeedSequence((seed, step, stream)).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying, so that the loop can write a checkpoint first."""
    received: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        received.append(signum)

    try:
        previous = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: signals stay with whoever owns them
        yield received
        return
    try:
        yield received
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
