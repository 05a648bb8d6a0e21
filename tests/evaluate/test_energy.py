"""Joules from counters that start again, are parts of one another, or may not be read."""

from pathlib import Path

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


def test_a_gpu_counts_in_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nvml:
        asked = ""

        def nvmlInit(self) -> None: ...

        def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
            self.asked = uuid
            return "handle"

        def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
            assert handle == "handle"
            return 12_500

    class Properties:
        uuid = "1234"

    nvml = Nvml()
    monkeypatch.setitem(__import__("sys").modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    (counter,) = energy.gpu_counters(torch.device("cuda:0"))
    assert counter() == 12.5 and nvml.asked == "GPU-1234"
    assert list(energy.gpu_counters(torch.device("cpu"))) == []
