"""`lewm doctor`: what works on this machine, and how to mend what does not."""

import ctypes.util
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    check: str
    status: Literal["ok", "missing", "broken"]
    """missing: an optional part is not there. broken: lewm cannot do its job."""
    detail: str
    mend: str = ""


EXTRAS = {
    "frozen": ("transformers",),
    "import": ("h5py", "hdf5plugin", "pyarrow", "zarr", "minari"),
    "power": ("pynvml",),
    "tasks": ("ogbench", "gymnasium_robotics", "dm_control", "shimmy"),
    "test": ("pytest", "hypothesis"),
    "dev": ("ruff", "mypy"),
}
"""Every extra of the package and the modules that it installs."""


def check_python() -> Finding:
    """The interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "ok", version)


def check_torch() -> Finding:
    """torch and its devices."""
    try:
        import torch
    except ImportError as error:
        return Finding("torch", "broken", str(error), "pip install 'torch>=2.8'")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("torch", "ok", f"{torch.__version__}, CUDA {torch.version.cuda}: {', '.join(names)}")
    return Finding("torch", "ok", f"{torch.__version__}, CPU only")


def check_threads() -> Finding:
    """Cores and torch's threads."""
    try:
        import torch
    except ImportError as error:
        return Finding("threads", "broken", str(error), "mend torch first")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads, waiting = torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY", "unset")
    return Finding("threads", "ok", f"{cores} cores, {threads} torch threads, OMP_WAIT_POLICY {waiting}")


def check_compiler() -> Finding:
    """torch.compile on a CPU needs a C++ compiler; nothing else does."""
    from shutil import which

    found = which("g++") or which("clang++")
    if found:
        return Finding("C++ compiler", "ok", found)
    return Finding("C++ compiler", "missing", "train.compile cannot be used", "apt-get install g++")


def check_physics() -> Finding:
    """MuJoCo steps."""
    code = (
        "import envs, mujoco; e = envs.make('reacher'); e.reset(seed=0); e.advance([0.1, 0.1]); "
        "print(mujoco.__version__)"
    )
    return _try("MuJoCo physics", code, "pip install 'mujoco>=3.3,!=4.0.0'", "broken")


def check_painter() -> Finding:
    """Pictures without GL."""
    code = "import envs; e = envs.make('two_room'); e.reset(seed=0); print(e.render().shape)"
    return _try("painter (no GL)", code, "reinstall numpy and opencv-python-headless", "broken")


def check_camera() -> Finding:
    """Pictures by MuJoCo's own renderer, in a process of its own: GL failures can take the process down."""
    backend = os.environ.get("MUJOCO_GL", "egl if libEGL is found")
    code = "import envs; e = envs.make('reacher', renderer='camera'); e.reset(seed=0); print(e.render().shape)"
    found = _try("camera (OpenGL)", code, "apt-get install -y libegl1 libgl1-mesa-dri libopengl0", "missing")
    egl = ctypes.util.find_library("EGL") or "no libEGL"
    return Finding(found.check, found.status, f"{found.detail}; MUJOCO_GL {backend}; {egl}", found.mend)


def check_extras() -> Finding:
    """Optional packages."""
    absent = sorted(extra for extra, modules in EXTRAS.items() if not all(map(importlib.util.find_spec, modules)))
    if absent:
        return Finding(
            "extras", "missing", f"not installed: {', '.join(absent)}", f"pip install 'lewm[{','.join(absent)}]'"
        )
    return Finding("extras", "ok", ", ".join(sorted(EXTRAS)))


def check_video() -> Finding:
    """The H.264 encoder behind `lewm plan`."""
    code = "import av; av.codec.Codec('libx264', 'w'); print('libx264')"
    return _try("video encoder", code, "pip install --force-reinstall av", "missing")


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_torch,
    check_threads,
    check_compiler,
    check_physics,
    check_painter,
    check_camera,
    check_video,
    check_extras,
)


def _try(name: str, code: str, mend: str, otherwise: Literal["missing", "broken"]) -> Finding:
    """Run a line of Python in a fresh process; its last line of output is the detail."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return Finding(name, otherwise, "no answer in 120 s", mend)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no output"]
    return Finding(name, "ok", lines[-1]) if done.returncode == 0 else Finding(name, otherwise, lines[-1], mend)


def examine() -> list[Finding]:
    """Run every check."""
    return [check() for check in CHECKS]


def table(findings: list[Finding]) -> str:
    """The findings as text, each with its mend where there is one."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<8} {finding.check:<16} {finding.detail}")
        if finding.status != "ok":
            lines.append(f"{'':<8} {'':<16} -> {finding.mend}")
    return "\n".join(lines)
