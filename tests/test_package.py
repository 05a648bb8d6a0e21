"""The package's front door: lazy names, foreign neighbours, progress lines, a doctor that survives what it finds."""

import io
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lewm
from lewm import doctor, progress
from lewm.progress import Stage, clock

ROOT = Path(lewm.__file__).parent.parent


def python(code: str, path: Path = ROOT, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter with the checkout behind `path` on sys.path."""
    begin = f"import sys; sys.path[:0] = [{str(path)!r}, {str(ROOT)!r}]\n"
    return subprocess.run([sys.executable, "-c", begin + code, *arguments], capture_output=True, text=True, cwd=path)


def test_public_names_are_there() -> None:
    from lewm.checkpoint import Checkpoint, load
    from lewm.planning.agent import Agent
    from lewm.planning.costs import CostConfig
    from lewm.world_model import WorldModel

    assert [lewm.Agent, lewm.Checkpoint, lewm.CostConfig, lewm.WorldModel, lewm.load] == [
        Agent,
        Checkpoint,
        CostConfig,
        WorldModel,
        load,
    ]
    assert sorted(lewm.__all__) == sorted(lewm._PUBLIC)
    with pytest.raises(AttributeError, match="module 'lewm' has no attribute 'Agnet'"):
        _ = lewm.Agnet
    assert lewm.__version__


def test_importing_lewm_imports_nothing_heavy() -> None:
    done = python(
        "import lewm; print([m for m in ('torch', 'mujoco', 'numpy', 'cv2', 'pydantic') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("name", ["envs", "planners"])
@pytest.mark.parametrize("form", ["package", "module", "folder"])
def test_a_foreign_neighbour_is_named_in_one_sentence(name: str, form: str, tmp_path: Path) -> None:
    if form == "module":
        (tmp_path / f"{name}.py").write_text("")
    else:
        (tmp_path / name).mkdir()
        if form == "package":
            (tmp_path / name / "__init__.py").write_text("")
    done = python("import lewm", tmp_path)
    if form == "folder":  # a folder without __init__.py does not hide a real package
        assert done.returncode == 0, done.stderr
        return
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith(f"ImportError: lewm needs its own package '{name}' from {ROOT}, but Python finds {tmp_path}")
    assert last.endswith("uninstall or rename the other one, or run from another folder")


@pytest.mark.parametrize(
    "seconds, text", [(0, "00:00"), (59.4, "00:59"), (59.6, "01:00"), (3599.7, "1:00:00"), (7322, "2:02:02")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_progress_counts_only_the_work_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Stage("train", 100, "steps", interval=5) as stage:
        stage.skip_to(50)
        now[0] = 102
        stage.update(5)
        now[0] = 110
        stage.update(5, loss=0.25, best="a.pt")
    lines = sys.stderr.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].split() == [
        "train",
        "60/100",
        "steps",
        "1.0/s",
        "loss",
        "0.25",
        "best",
        "a.pt",
        "00:10",
        "taken",
        "00:40",
        "left",
    ]
    assert lines[1].endswith("00:10 taken")


def test_progress_is_silent_when_asked_and_speaks_of_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Stage("train", 3, "steps", quiet=True, interval=0) as stage:
        stage.update(3)
    assert sys.stderr.getvalue() == ""
    with pytest.raises(KeyError), Stage("train", 3, "steps") as stage:
        stage.update(1)
        raise KeyError
    assert sys.stderr.getvalue().startswith("train ")


def test_a_terminal_gets_one_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", screen)
    with Stage("train", 3, "steps", interval=0) as stage:
        stage.update(1)
        stage.update(2)
    text = screen.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n") and text.count("\r\x1b[2K") == 3


def test_the_doctor_finds_this_machine_fit() -> None:
    quick = [check() for check in doctor.CHECKS if check.__name__ not in ("check_camera", "check_video")]
    assert [f.check for f in quick if f.status == "broken"] == []
    text = doctor.table(quick)
    assert all(f.check in text for f in quick)


def test_whatever_is_not_ok_says_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "executable", "/bin/false")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(doctor, "EXTRAS", {"dev": ("no_such_module",)})
    findings = [check() for check in doctor.CHECKS]
    bad = {f.check: f for f in findings if f.status != "ok"}
    assert {
        "C++ compiler",
        "MuJoCo physics",
        "painter (no GL)",
        "camera (OpenGL)",
        "video encoder",
        "extras",
    } <= bad.keys()
    assert all(f.mend for f in bad.values())
    assert bad["extras"].mend == "pip install 'lewm[dev]'"
    assert [bad[name].status for name in ("MuJoCo physics", "camera (OpenGL)")] == ["broken", "missing"]
    assert doctor.table(findings).count(" -> ") == len(bad)


def test_the_doctor_looks_for_every_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert doctor.EXTRAS.keys() == extras.keys() and all(doctor.EXTRAS.values())
    monkeypatch.setattr(doctor, "EXTRAS", {"tasks": ("json", "no_such_module"), "test": ("json",)})
    assert doctor.check_extras().detail == "not installed: tasks"


def test_a_broken_torch_is_a_finding_and_not_the_end_of_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_torch, doctor.check_threads, doctor.check_python))
    findings = doctor.examine()
    assert findings[0].status == "broken" and "pip install" in findings[0].mend
    assert len(findings) == 3
