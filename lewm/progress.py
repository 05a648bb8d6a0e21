"""One progress line per stage: rate, numbers of interest, time left. Live on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType


def clock(seconds: float) -> str:
    """Seconds as `1:02:03` or `02:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute:02d}:{second:02d}"


class Stage:
    """Counts `total` units of work: `with Stage("train", 2000, "steps") as stage: stage.update(1, loss=0.3)`."""

    def __init__(self, name: str, total: int, unit: str, quiet: bool = False, interval: float | None = None) -> None:
        self.name, self.total, self.unit, self.quiet = name, total, unit, quiet
        self.live = sys.stderr.isatty()
        self.interval = interval if interval is not None else (0.2 if self.live else 15.0)
        self.done = self.first = 0
        self.notes: dict[str, float | str] = {}

    def __enter__(self) -> "Stage":
        self.started = self.printed = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._print(final=kind is None)

    def skip_to(self, done: int) -> None:
        """Work that an earlier run did: counts as done, not towards the rate."""
        self.done = self.first = done

    def update(self, count: int = 1, **notes: float | str) -> None:
        """Report `count` more units and the latest numbers of interest."""
        self.done += count
        self.notes.update(notes)
        if time.monotonic() - self.printed >= self.interval:
            self._print()

    def _print(self, final: bool = False) -> None:
        if self.quiet:
            return
        now = time.monotonic()
        self.printed = now
        rate = (self.done - self.first) / max(now - self.started, 1e-9)
        left = "" if final or rate == 0 else f"  {clock((self.total - self.done) / rate)} left"
        notes = "".join(f"  {k} {v:.4g}" if isinstance(v, float) else f"  {k} {v}" for k, v in self.notes.items())
        text = (
            f"{self.name:<32} {self.done}/{self.total} {self.unit}  {rate:.1f}/s{notes}"
            f"  {clock(now - self.started)} taken{left}"
        )
        end = "\n" if final or not self.live else ""
        print(f"\r\x1b[2K{text}" if self.live else text, end=end, file=sys.stderr, flush=True)
