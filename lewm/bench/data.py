"""`lewm bench data`: windows per second from every store of one recording, the same windows from each, in turns."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch

from lewm.bench.data_stores import STORES, Kind, Picks, Read
from lewm.data.collect import CollectConfig, collect
from lewm.data.store import Store
from lewm.data.windows import Batch, Windows, WindowSpec, batch_indices
from lewm.evaluate.timing import hardware, load_average, torch_threads, where_measured
from lewm.progress import Stage

SPEC = WindowSpec(length=4, frame_skip=5)
"""The window that peers publish speeds for: 4 frames, 5 steps apart."""
TASK, POLICY = "push_t", "expert"
"""What is recorded for the comparison."""
CLOSE = 16.0
"""Largest mean difference, in grey levels, of a lossy picture that still shows the same."""


@dataclass(frozen=True)
class Amount:
    """How much is recorded and read."""

    sizes: tuple[int, ...] = (64, 224)
    """Heights and widths of the pictures in pixels."""
    episodes: int = 100
    """Enough that the 521 chunks which HDF5 keeps in memory are few of all."""
    steps: int = 100
    rounds: int = 5
    """How often the stores take turns."""
    seconds: float = 0.5
    """Time that a store reads for in its turn, at least one batch."""
    batch: int = 64
    """Windows per batch."""

    def __post_init__(self) -> None:
        for name in ("episodes", "rounds", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if not self.sizes:
            raise ValueError("sizes is empty: name at least one picture size")


FULL = Amount()
QUICK = Amount(sizes=(64,), episodes=6, steps=40, rounds=2, seconds=0.05, batch=16)


@dataclass(frozen=True)
class DataRow:
    """One store at one picture size."""

    store: str
    codec: str
    resident: str
    """Where pictures are read from: disk (warm page cache), ram, gpu."""
    size: int
    """Height and width of a picture in pixels."""
    windows_per_s: float | None
    """Median over rounds; None where it could not be measured."""
    bytes_per_frame: float | None
    """Of all its files."""
    slower: float | None
    """windows_per_s of our raw store on disk over its own."""
    pixel_error: float | None
    """Mean difference to the raw pictures, in grey levels."""
    note: str
    """Why there are no numbers."""
    frames: int
    """Frames T per window."""
    frame_skip: int
    batch: int
    rounds: int
    threads: int
    device: str
    hardware: str
    load: float | None
    """Load average of the last minute when the size was begun: what else the machine was doing; None if unknown."""
    torch: str


def bench_data(amount: Amount, threads: int, device: torch.device, kinds: Sequence[Kind] = STORES) -> list[DataRow]:
    """Every store at every size. Raises ValueError when one gives other windows than the first."""
    rows = []
    with torch_threads(threads), Stage("bench data", len(amount.sizes) * len(kinds), "stores") as stage:
        for size in amount.sizes:
            with tempfile.TemporaryDirectory(prefix="lewm-bench-") as scratch:
                config = CollectConfig(amount.episodes, amount.steps, {POLICY: 1.0})
                store = collect(config, TASK, {"size": size}, Path(scratch) / "recorded")
                rows += bench_size(store, size, Path(scratch), amount, device, kinds, stage.update)
    return rows


def bench_size(
    store: Store,
    size: int,
    scratch: Path,
    amount: Amount,
    device: torch.device,
    kinds: Sequence[Kind],
    report: Callable[[], None],
) -> list[DataRow]:
    """Write one recording into every store, check that all give the same windows, and let them take turns.

    `report` is called after each store is written.
    """
    load, windows = load_average(), Windows(store, SPEC, resident="disk")
    readers: dict[Kind, Read] = {}
    notes: dict[Kind, str] = {}
    sizes: dict[Kind, float] = {}
    errors: dict[Kind, float] = {}
    for number, kind in enumerate(kinds):
        path = scratch / f"{number}"
        report()
        try:
            if kind.resident == "gpu" and device.type != "cuda":
                raise ValueError(f"the device is {device}; it needs a CUDA one")
            made = kind.make(store, path)
            readers[kind] = kind.open(made, store, SPEC, device)
        except (ImportError, ValueError) as error:
            notes[kind] = str(error)
            continue
        sizes[kind] = warm(made) / store.num_frames
        errors[kind] = pixel_error(kind, readers[kind], windows, amount.batch)
    speeds = take_turns(readers, windows, amount)
    base = speeds.get(kinds[0])
    return [
        DataRow(
            kind.store,
            kind.codec,
            kind.resident,
            size,
            speeds.get(kind),
            sizes.get(kind),
            base / speeds[kind] if base is not None and kind in speeds else None,
            errors.get(kind),
            notes.get(kind, ""),
            SPEC.length,
            SPEC.frame_skip,
            amount.batch,
            amount.rounds,
            torch.get_num_threads(),
            device.type,
            hardware(),
            load,
            torch.__version__,
        )
        for kind in kinds
    ]


def take_turns(readers: dict[Kind, Read], windows: Windows, amount: Amount) -> dict[Kind, float]:
    """Windows per second of every reader, median over rounds; in a round all begin at the same windows."""
    speeds: dict[Kind, list[float]] = {kind: [] for kind in readers}
    for turn in range(amount.rounds):
        for kind, read in readers.items():
            begin, done = time.perf_counter(), 0
            for picks in batches(windows, turn, amount.batch):
                read(picks)
                done += len(picks.index_B)
                taken = time.perf_counter() - begin
                if taken >= amount.seconds:
                    break
            speeds[kind].append(done / taken)
    return {kind: float(np.median(each)) for kind, each in speeds.items()}


def batches(windows: Windows, seed: int, batch: int) -> Iterator[Picks]:
    """Windows in the order in which training would read them, without end."""
    for step in count():
        index_B = batch_indices(seed, step, len(windows), batch)
        yield Picks(index_B, *windows.locate(index_B))


def warm(path: Path) -> int:
    """Read every byte once, so that the page cache holds it; returns how many there are."""
    files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
    total = 0
    for file in files:
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                total += len(block)
    return total


def pixel_error(kind: Kind, read: Read, windows: Windows, batch: int) -> float:
    """Mean difference of one batch to that of the native store; ValueError when it is not the same windows."""
    picks = next(batches(windows, 0, batch))
    pixels, actions = as_clips(read(picks))
    expected, expected_actions = as_clips(windows.batch(picks.index_B))
    if pixels.shape != expected.shape or not np.array_equal(actions, expected_actions):
        raise ValueError(f"{kind.store} {kind.codec} gave other windows than the native store")
    error = float(np.abs(pixels.astype(np.int16) - expected).mean())
    if error > (CLOSE if kind.lossy else 0):
        raise ValueError(f"{kind.store} {kind.codec}: pictures differ by {error:.2f} grey levels on average")
    return error


def as_clips(read: object) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (B, T, Y, X, C) and actions (B, T - 1, A) of whatever a reader gave."""
    if isinstance(read, Batch):
        return read.pixels_BTCYX.movedim(2, -1).cpu().numpy(), read.action_BTA.cpu().numpy()
    assert isinstance(read, tuple)
    pixels, actions = read
    return pixels, actions


def table(rows: Sequence[DataRow]) -> str:
    """The rows as aligned text."""
    lines = [
        f"{'store':<8} {'codec':<6} {'resident':<8} {'size':>4} {'windows/s':>10} {'slower':>8} {'bytes/frame':>12}"
        f" {'pixel error':>12}"
    ]
    for r in rows:
        start = f"{r.store:<8} {r.codec:<6} {r.resident:<8} {r.size:>4}"
        if r.windows_per_s is None or r.slower is None or r.bytes_per_frame is None:
            lines.append(f"{start} {'-':>10}   {r.note}")
            continue
        lines.append(
            f"{start} {r.windows_per_s:>10.1f} {r.slower:>7.1f}x {r.bytes_per_frame:>12.0f} {r.pixel_error:>12.2f}"
        )
    first = rows[0]
    lines += [
        "",
        f"{first.frames} frames per window, {first.frame_skip} steps apart, with their actions; batches of "
        f"{first.batch} in one process, median of {first.rounds} rounds; page cache warm",
        "slower: native raw on disk over this one; hdf5: stable-worldmodel's way, 20 rows for 4 frames;",
        "lance: only the rows needed; lerobot: seek, then decode the span",
        where_measured(first),
    ]
    return "\n".join(lines)
