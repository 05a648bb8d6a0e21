"""Joules from counters that start again, are parts of one another, or may not be read."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lewm.evaluate import energy
from lewm.evaluate.energy import EnergyMeter, package_counters


def zone(powercap: Path, name: str, microjoules: int, most: int = 1_000_000) -> Path:
    folder = powercap / name
    folder.mkdir()
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    return folder / "energy_uj"


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", 100_000), zone(tmp_path, "intel-rapl:1", 200_000)
    zone(tmp_path, "intel-rapl:0:0", 50_000)  # the cores of package 0
    meter = EnergyMeter(tuple(package_counters(tmp_path)))
    assert meter.joules() == pytest.approx(0.3)
    first.write_text("400000\n")
    second.write_text("250000\n")
    assert meter.joules() == pytest.approx(0.65)


def test_a_counter_that_starts_again_does_not_fall(tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", 900_000)
    (counter,) = package_counters(tmp_path)
    readings = [counter()]
    for microjoules in (100_000, 600_000, 50_000):
        file.write_text(f"{microjoules}\n")
        readings.append(counter())
    assert readings == pytest.approx([0.9, 1.1, 1.6, 2.05])


def test_nothing_is_said_where_nothing_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    assert EnergyMeter.of("cpu").joules() is None
    (tmp_path / "intel-rapl:0" / "energy_uj").mkdir(parents=True)  # there, and cannot be read
    assert EnergyMeter.of("cpu").joules() is None


class Nvml:
    """Stands in for the module `pynvml`; `missing` names the call that fails."""

    class NVMLError(Exception): ...

    asked = missing = ""

    def nvmlInit(self) -> None:
        self.fail("nvmlInit")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.fail("nvmlDeviceGetHandleByUUID")
        self.asked = uuid
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self.fail("nvmlDeviceGetTotalEnergyConsumption")
        assert handle == "handle"
        return 12_500

    def fail(self, call: str) -> None:
        if call == self.missing:
            raise self.NVMLError("Driver Not Loaded")


def stand_in(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    return nvml


def test_a_gpu_counts_in_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = stand_in(monkeypatch)
    (counter,) = energy.gpu_counters(torch.device("cuda:0"))
    assert counter() == 12.5 and nvml.asked == "GPU-1234"
    assert list(energy.gpu_counters(torch.device("cpu"))) == []


@pytest.mark.parametrize("missing", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetTotalEnergyConsumption"])
def test_a_gpu_that_cannot_be_asked_counts_nothing(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch).missing = missing
    assert list(energy.gpu_counters(torch.device("cuda:0"))) == []


def test_what_was_used_since_a_reading() -> None:
    readings = iter([3.0, 7.5])
    meter = EnergyMeter((lambda: next(readings),))
    assert meter.since(meter.joules()) == 4.5
    assert EnergyMeter(()).since(None) is None
