"""`lewm bench data --memory`: a store three times as large as a memory limit is read whole by a process that has it.

The limit is the kernel's on private memory (RLIMIT_DATA): what a process allocates. Pages of a memory map are the page
cache's, which takes them back when others need the memory; they are reported beside it. The same process that loads the
store into RAM instead must fail, or the limit would show nothing.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from lewm.data.meta import PolicyMeta, Provenance, StoreMeta
from lewm.data.store import Store
from lewm.data.windows import Windows, WindowSpec, batch_indices
from lewm.data.writer import Episode, StoreWriter
from lewm.evaluate.timing import hardware, load_average, where_measured
from lewm.progress import Stage

MB = 1e6
SPEC = WindowSpec(length=4, frame_skip=5)
BATCH = 64
FACTOR = 3
"""How many times the limit the store is."""
SIZE, STEPS = 64, 100
"""Pictures of the store in pixels, and actions per episode."""
SAMPLES = 20
"""How often memory is looked at while the windows are read."""


@dataclass(frozen=True)
class Reading:
    """What a child process measured."""

    windows: int
    """Windows read; 0 when the store did not fit."""
    windows_per_s: float
    begin_mb: float
    """Private memory once the store is open and a batch has been read."""
    grown_mb: float
    """Most private memory later on, less begin_mb."""
    mapped_mb: float
    """Most resident pages of files: the store's, which the kernel may drop, and the libraries'."""
    peak_rss_mb: float
    """Most resident memory of all kinds (VmHWM)."""
    ended: str
    """`read whole`, or the error that stopped it."""


@dataclass(frozen=True)
class MemoryRow:
    """One way to read the store under the limit."""

    resident: str
    """disk: from the memory map. ram: everything loaded first."""
    store_mb: float
    limit_mb: float
    """Private memory (10^6 bytes) that the process may add to what it has after its imports."""
    windows: int
    windows_per_s: float
    begin_mb: float
    grown_mb: float
    mapped_mb: float
    peak_rss_mb: float
    ended: str
    threads: int
    device: str
    hardware: str
    load: float | None
    """Load average of the last minute before: what else the machine was doing; None if unknown."""
    torch: str


def bench_memory(limit_mb: int) -> list[MemoryRow]:
    """Write a store of noise, three times the limit, and read it under that limit: from disk, then loaded into RAM.

    The page cache is asked to forget the store before each, so windows_per_s is that of the disk at first.
    Raises ValueError for a limit below 32 MB, which a reader with its batch may need.
    """
    if limit_mb < 32:
        raise ValueError(f"--limit-mb is {limit_mb}, it must be at least 32")
    rows = []
    load = load_average()
    with tempfile.TemporaryDirectory(prefix="lewm-bench-") as scratch, Stage("bench memory", 2, "rows") as stage:
        path = Path(scratch) / "store"
        store_mb = write_noise(path, FACTOR * limit_mb * MB) / MB
        for resident in ("disk", "ram"):
            read = in_child(path, resident, limit_mb)
            rows.append(
                MemoryRow(
                    resident,
                    store_mb,
                    limit_mb,
                    **asdict(read),
                    threads=1,
                    device="cpu",
                    hardware=hardware(),
                    load=load,
                    torch=torch.__version__,
                )
            )
            stage.update()
    return rows


def write_noise(path: Path, size: float) -> int:
    """A store of noise with at least so many bytes of pictures; returns how many it has."""
    meta = StoreMeta(
        task="noise",
        settings={},
        frame=(SIZE, SIZE, 3),
        codec="raw",
        action_dim=2,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        state_names=(),
        angle_names=(),
        control_dt=0.1,
        provenance=Provenance((PolicyMeta("noise", 1.0, 0.0),)),
    )
    bytes_per_episode = (STEPS + 1) * SIZE * SIZE * 3
    count = int(-(-size // bytes_per_episode))
    with StoreWriter(path, meta) as writer:
        writer.write(_noise(count))
    return count * bytes_per_episode


def in_child(path: Path, resident: str, limit_mb: int) -> Reading:
    """Read the store in a process of its own. Raises RuntimeError when that ends without an answer."""
    forget(path)
    code = "from lewm.bench.data_memory import child; child()"
    words = [sys.executable, "-c", code, str(path), resident, str(limit_mb)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the process that reads from {resident} ended with {done.returncode}: {last}")
    return Reading(**json.loads(done.stdout))


def child() -> None:
    """What the process does: take the limit, open, read, print what it measured."""
    path, resident, limit_mb = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    torch.zeros(1).index_select(0, torch.zeros(1, dtype=torch.int64))  # libraries that load at first use
    allowed = int(memory("VmData") * MB + limit_mb * MB)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    assert resident in ("disk", "ram")
    print(json.dumps(asdict(read_whole(path, resident))))  # type: ignore[arg-type]


def read_whole(path: Path, resident: Literal["disk", "ram"]) -> Reading:
    """Read every window of the store once, in random order, and watch this process's memory."""
    try:
        windows = Windows(Store.open(path), SPEC, resident=resident)
    except (MemoryError, RuntimeError) as error:
        return Reading(0, 0.0, memory("RssAnon"), 0.0, memory("RssFile"), memory("VmHWM"), _ended(error))
    windows.batch(batch_indices(0, 0, len(windows), BATCH))
    begin_mb = memory("RssAnon")
    steps, grown, mapped = len(windows) // BATCH, 0.0, 0.0
    begin = time.perf_counter()
    for step in range(steps):
        windows.batch(batch_indices(0, step, len(windows), BATCH))
        if step % max(steps // SAMPLES, 1) == 0 or step == steps - 1:
            grown, mapped = max(grown, memory("RssAnon") - begin_mb), max(mapped, memory("RssFile"))
    taken = time.perf_counter() - begin
    return Reading(steps * BATCH, steps * BATCH / taken, begin_mb, grown, mapped, memory("VmHWM"), "read whole")


def memory(field: str) -> float:
    """One line of /proc/self/status in 10^6 bytes. Raises OSError where there is none."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / MB
    raise OSError(f"/proc/self/status has no {field}: this benchmark needs Linux 4.5 or later")


def forget(path: Path) -> None:
    """Ask the page cache to drop the store's files, which are on disk already."""
    for file in path.rglob("*.npy"):
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def table(rows: Sequence[MemoryRow]) -> str:
    """The rows as aligned text."""
    first = rows[0]
    lines = [
        f"store of {first.store_mb:.0f} MB, {first.limit_mb:.0f} MB of private memory allowed beyond the imports",
        f"{'resident':<8} {'windows':>8} {'windows/s':>10} {'private MB':>11} {'grown MB':>9} {'mapped MB':>10}"
        f" {'peak RSS MB':>12}  ended",
    ]
    for r in rows:
        lines.append(
            f"{r.resident:<8} {r.windows:>8} {r.windows_per_s:>10.1f} {r.begin_mb:>11.0f} {r.grown_mb:>9.1f}"
            f" {r.mapped_mb:>10.0f} {r.peak_rss_mb:>12.0f}  {r.ended}"
        )
    lines += [
        "",
        "private: allocated, torch included; grown: the most while every window was read once; mapped: pages of files,",
        "which the kernel takes back when it needs them; the page cache was asked to forget the store before",
        where_measured(first),
    ]
    return "\n".join(lines)


def _noise(count: int) -> Iterator[Episode]:
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (STEPS + 1, SIZE, SIZE, 3), np.uint8)
        actions = rng.uniform(-1, 1, (STEPS, 2)).astype(np.float32)
        yield Episode(pixels, actions, np.zeros((STEPS + 1, 0), np.float32), seed=number)


def _ended(error: BaseException) -> str:
    """The end of the first line: torch begins it with a place in its source."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return text.rpartition("DefaultCPUAllocator: ")[2]
