"""Joules, where the machine counts them: the processor packages through Linux's powercap, an NVIDIA GPU through NVML.

Both count what the whole device uses, idle power and other programs included, so measure on a quiet machine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
Counter = Callable[[], float]
"""Joules since some moment; never falls."""


@dataclass(frozen=True)
class EnergyMeter:
    """All counters of the devices that compute."""

    counters: tuple[Counter, ...]

    @classmethod
    def of(cls, device: torch.device | str) -> "EnergyMeter":
        """The counters that this machine lets us read: of its processors, and of `device` where that is a GPU."""
        return cls((*package_counters(POWERCAP), *gpu_counters(torch.device(device))))

    def joules(self) -> float | None:
        """Their sum; a difference of two is what was used in between. None where nothing is counted."""
        return sum(counter() for counter in self.counters) if self.counters else None

    def since(self, before: float | None) -> float | None:
        """What was used since `joules` said `before`. Counters move now and then (a GPU's every 0.1 s): wait longer."""
        now = self.joules()
        return None if before is None or now is None else now - before


def package_counters(powercap: Path) -> list[Counter]:
    """One counter per processor package (intel-rapl:0, ...; AMD's are called so too) whose file may be read."""
    found: list[Counter] = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        if zone.name.count(":") == 1 and _readable(zone / "energy_uj"):  # zones with two colons are parts of a package
            found.append(_Package(zone))
    return found


class _Package:
    """Microjoules in a file that starts again from 0 after `max_energy_range_uj`."""

    def __init__(self, zone: Path) -> None:
        self.path = zone / "energy_uj"
        self.range = int((zone / "max_energy_range_uj").read_text())
        self.last, self.passed = int(self.path.read_text()), 0

    def __call__(self) -> float:
        now = int(self.path.read_text())
        if now < self.last:
            self.passed += self.range
        self.last = now
        return (self.passed + now) / 1e6


def gpu_counters(device: torch.device) -> Sequence[Counter]:
    """The counter of a CUDA device; none for the CPU, and where `nvidia-ml-py`, a driver or the counter is missing."""
    if device.type != "cuda":
        return ()
    try:
        import pynvml
    except ImportError:
        return ()
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # GPUs before Volta have none
    except pynvml.NVMLError:
        return ()
    return (lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3,)


def _readable(path: Path) -> bool:
    """Most systems let only root read it."""
    try:
        path.read_text()
    except OSError:
        return False
    return True
