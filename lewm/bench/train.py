"""`lewm bench train`: milliseconds and memory of a training step, ours beside the same step written plainly.

Both start from the same weights, read the same clips and take turns; see `lewm.bench.plain_training` for what is plain.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lewm.bench.measure import MB, peak_mb, wait
from lewm.bench.plain_training import WAYS, PlainTraining, check_run
from lewm.config import RunConfig
from lewm.config import load as load_config
from lewm.data.store import Store
from lewm.data.windows import Batch
from lewm.evaluate.timing import hardware, load_average, torch_threads, where_measured
from lewm.pipeline import record
from lewm.progress import Stage
from lewm.train import Trainer, step_losses
from lewm.training_loop import step_seed

EPISODES = 12
"""Recorded for the benchmark where no store is given."""
AGREEMENT = 0.01
"""Largest relative difference of gradients with which the two still count as one step."""
PREFETCH = 2
"""Batches each worker of a torch DataLoader reads ahead."""

B = TypeVar("B")


@dataclass(frozen=True)
class Case:
    """One run to measure."""

    config: str
    """Path or name of the run."""
    batch: int | None = None
    """Clips per step; None: the run's own."""
    steps: int = 15
    """Timed steps per round."""
    ways: tuple[str, ...] = tuple(WAYS)
    """Rows of `WAYS`."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"--steps is {self.steps}; time at least one step per round")
        if self.batch is not None and self.batch < 2:
            raise ValueError(f"--batch is {self.batch}; SIGReg needs at least 2 clips")


CASES = (Case("two_room"), Case("two_room_gpu", batch=4, steps=2, ways=("both",)))
"""The small run at its batch, and LeWM's size at one a CPU can take."""


@dataclass(frozen=True)
class Times:
    """Mean milliseconds per step of one round."""

    data_ms: float
    step_ms: float


@dataclass(frozen=True)
class TrainRow:
    """One run, ours beside a plain step; times are medians over rounds of the mean over a round's steps."""

    case: str
    """What is plain: SIGReg, the loader, or both."""
    device: str
    threads: int
    model: str
    parameters: int
    size: int
    """Height and width of a picture in pixels."""
    batch: int
    frames: int
    ours_ms_p50: float
    """Milliseconds per step, reading included."""
    steps_per_s: float
    data_ms: float
    """Of ours_ms_p50: waiting for the batch."""
    step_ms: float
    """Forward, backward, optimiser."""
    peak_mb: float
    """Most memory (10^6 bytes) of a step at once: batch, gradients and what it computes; not weights and optimiser."""
    resident: str
    """Where our recordings lie."""
    peer_ms_p50: float
    peer_data_ms: float
    peer_step_ms: float
    peer_peak_mb: float
    workers: int
    """Processes of the plain loader; 0 where it is ours."""
    ratio: float
    """peer_ms_p50 / ours_ms_p50."""
    memory_ratio: float
    gradient_error: float
    """Norm of the difference of the two gradients of one batch, relative to the plain one's."""
    rounds: int
    steps: int
    hardware: str
    load: float | None
    """Load average of the last minute when the row was begun: what else the machine was doing; None if unknown."""
    torch: str


def time_steps(
    read: Callable[[], B], update: Callable[[B], object], warmup: int, steps: int, device: torch.device
) -> Times:
    """Mean times of `steps` steps after `warmup` that are not timed."""
    for _ in range(warmup):
        update(read())
    wait(device)
    data = whole = 0.0
    for _ in range(steps):
        start = time.perf_counter()
        batch = read()
        data += time.perf_counter() - start
        update(batch)
        wait(device)
        whole += time.perf_counter() - start
    return Times(1000 * data / steps, 1000 * (whole - data) / steps)


def time_plain(plain: PlainTraining, steps: int) -> Times:
    """Mean times of a plain step. The warm-up drains what the workers read before the first step, and the loader ends
    with more to read than is asked of it, so that they work all through the timed steps."""
    ahead = PREFETCH * plain.workers if plain.way.loader else 0
    batches = plain.batches(ahead + 1 + steps + ahead)
    return time_steps(lambda: next(batches), plain.update, ahead + 1, steps, plain.device)


def gradient_error(ours: Trainer, plain: PlainTraining) -> float:
    """How far the two gradients of the next batch are apart, in float32; both models must hold the same weights."""
    config, batch = ours.config, ours.read_batch()
    generator = torch.Generator().manual_seed(step_seed(config.seed, ours.step))
    devices = [ours.device] if ours.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # the second pass draws the same dropout
        loss = step_losses(ours.model, batch, config, ours.objective, generator).total
    got = _gradient(loss, ours.model)
    expected = _gradient(plain.loss(next(plain.batches(1))), plain.model)
    return ((got - expected).norm() / expected.norm()).item()


def bench_run(
    run: RunConfig, case: Case, store: Store, out: Path, device: torch.device, workers: int, rounds: int
) -> list[TrainRow]:
    """Time one run beside every plain way of its case. Raises ValueError when their gradients disagree."""
    objective = check_run(run.objective, run.train.add_ons)
    config = run.train if case.batch is None else replace(run.train, batch=case.batch)
    load = load_average()
    ours = Trainer(run.model, run.objective, config, store, out, device)
    plains = {name: PlainTraining(ours, objective, WAYS[name], workers) for name in case.ways}
    errors = {name: gradient_error(ours, plain) for name, plain in plains.items()}
    for name, error in errors.items():
        if not error <= AGREEMENT:
            raise ValueError(
                f"the gradients of our step and of the plain one ({name}) differ by {error:.1e} of their norm, more "
                f"than {AGREEMENT:g}: they are not the same step, so their times do not compare"
            )
    our_peak = step_peak_mb(ours.read_batch, ours.update, ours.optimizer, device)
    peaks = {n: step_peak_mb(_reader(plain), plain.update, plain.optimizer, device) for n, plain in plains.items()}
    our_times: list[Times] = []
    times: dict[str, list[Times]] = {name: [] for name in plains}
    for _ in range(rounds):
        our_times.append(time_steps(ours.read_batch, ours.update, 1, case.steps, device))
        for name, plain in plains.items():
            times[name].append(time_plain(plain, case.steps))
    our_ms, data_ms, step_ms = medians(our_times)
    rows = []
    for name, plain in plains.items():
        peer_ms, peer_data_ms, peer_step_ms = medians(times[name])
        rows.append(
            TrainRow(
                case=name,
                device=device.type,
                threads=torch.get_num_threads(),
                model=f"{case.config} (fresh weights)",
                parameters=sum(p.numel() for p in ours.model.parameters()),
                size=ours.model.facts.size,
                batch=config.batch,
                frames=config.frames,
                ours_ms_p50=our_ms,
                steps_per_s=1000 / our_ms,
                data_ms=data_ms,
                step_ms=step_ms,
                peak_mb=our_peak,
                resident=ours.windows.resident,
                peer_ms_p50=peer_ms,
                peer_data_ms=peer_data_ms,
                peer_step_ms=peer_step_ms,
                peer_peak_mb=peaks[name],
                workers=workers if plain.way.loader else 0,
                ratio=peer_ms / our_ms,
                memory_ratio=peaks[name] / our_peak,
                gradient_error=errors[name],
                rounds=rounds,
                steps=case.steps,
                hardware=hardware(),
                load=load,
                torch=torch.__version__,
            )
        )
    return rows


def bench_train(
    cases: Sequence[Case], data: Path | None, threads: int, workers: int, rounds: int, device: torch.device
) -> list[TrainRow]:
    """Every case, on the store at `data` or on recordings made for it; nothing is kept."""
    if rounds < 1:
        raise ValueError(f"--rounds is {rounds}; time at least one round")
    if workers < 0:
        raise ValueError(f"--workers is {workers}; it must be 0 or more processes")
    rows = []
    with torch_threads(threads), Stage("bench train", len(cases), "runs") as stage:
        for case in cases:
            run = load_config(case.config)
            with tempfile.TemporaryDirectory(prefix="lewm-bench-") as scratch:
                store = Store.open(data) if data is not None else _recorded(run, Path(scratch) / "data")
                rows += bench_run(run, case, store, Path(scratch) / "run", device, workers, rounds)
            stage.update()
    return rows


def step_peak_mb(
    read: Callable[[], B], update: Callable[[B], object], optimizer: torch.optim.Optimizer, device: torch.device
) -> float:
    """Most memory a step holds beyond weights and optimiser state: its batch, gradients and what it computes."""
    update(read())  # makes the optimiser state
    optimizer.zero_grad(set_to_none=True)
    batch = read()
    if isinstance(batch, Batch):
        held: tuple[Tensor, ...] = (batch.pixels_BTCYX, batch.action_BTA, batch.state_BTS, batch.index_B)
    else:
        assert isinstance(batch, list | tuple)
        held = tuple(batch)
    return peak_mb(lambda: update(batch), device) + sum(x.nbytes for x in held) / MB


def medians(times: Sequence[Times]) -> tuple[float, float, float]:
    """Medians over rounds: milliseconds per step, of the data, of the step itself."""
    whole = [t.data_ms + t.step_ms for t in times]
    parts = (whole, [t.data_ms for t in times], [t.step_ms for t in times])
    whole_ms, data_ms, step_ms = (float(np.median(part)) for part in parts)
    return whole_ms, data_ms, step_ms


def table(rows: Sequence[TrainRow]) -> str:
    """The rows as aligned text."""
    lines = [
        f"{'model':<28} {'batch':>5} {'plain':<7} {'ours ms':>9} {'(data)':>8} {'steps/s':>8} {'plain ms':>9}"
        f" {'(data)':>8} {'ratio':>6} {'MB':>8} {'plain MB':>9} {'gradients differ':>17}"
    ]
    for r in rows:
        lines.append(
            f"{r.model:<28} {r.batch:>5} {r.case:<7} {r.ours_ms_p50:>9.1f} {r.data_ms:>8.2f} {r.steps_per_s:>8.2f}"
            f" {r.peer_ms_p50:>9.1f} {r.peer_data_ms:>8.2f} {r.ratio:>5.2f}x {r.peak_mb:>8.1f} {r.peer_peak_mb:>9.1f}"
            f" {r.gradient_error:>17.1e}"
        )
    first = rows[0]
    workers = max(r.workers for r in rows)
    lines += [
        "",
        "plain SIGReg: its formula with (T, N, slices, knots) tensors; plain loader: a torch DataLoader with "
        f"{workers} workers that read",
        "every raw frame of a clip from our memory map and normalise picture by picture in float32; (data): waiting "
        "for the batch",
        where_measured(first),
    ]
    return "\n".join(lines)


def _recorded(run: RunConfig, path: Path) -> Store:
    """A few recordings of the run's task, unencoded: decoding would make the plain loader slower still."""
    collect = replace(run.collect, episodes=EPISODES, shard_episodes=EPISODES, codec="raw")
    return record(replace(run, collect=collect), path, processes=1, quiet=True)


def _reader(plain: PlainTraining) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: next(plain.batches(1))


def _gradient(loss: Tensor, model: torch.nn.Module) -> Tensor:
    parts = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])
