"""The house rules of the design that a machine can check: who imports whom, whose randomness, how long a file is."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lewm
from lewm.config import load, shipped

ROOT = Path(lewm.__file__).parent.parent
PACKAGES = ("planners", "envs", "lewm")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

STAGES = (
    "data",
    "nets",
    "objectives",
    "world_model",
    "probes",
    "train_log",
    "trainer_state",
    "training_loop",
    "pieces",
    "train",
    "heads_training",
    "cost_to_go",
    "proposal",
    "readout",
    "checkpoint",
    "peer_layout",
    "ac_layout",
    "import_model",
    "export_model",
    "peer",
    "peer_worker",
    "planning",
    "sb3",
    "baselines",
    "evaluate",
    "config",
    "pretrain",
    "pipeline",
    "study",
    "compare",
    "bench",
    "pages",
    "commands",
    "cli",
)
"""The story in order: a stage imports only stages before it."""
SHARED = ("schema", "memory", "progress", "distributed", "processes", "tables", "video", "doctor")
"""Helpers that every stage may import; they import no stage."""
THIRD_PARTY = {
    "planners": {"torch"},
    "envs": {
        *("numpy", "gymnasium", "mujoco", "cv2", "OpenGL"),  # OpenGL comes with MuJoCo
        *("ogbench", "gymnasium_robotics", "dm_control", "shimmy", "gym_pusht", "stable_worldmodel"),  # extra [tasks]
    },
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    """Full names of all modules a file imports, anywhere in it; `from lewm import x` counts as lewm.x."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: imports are absolute"
            assert node.module is not None
            yield node.module
            if node.module == "lewm":
                yield from (f"lewm.{alias.name}" for alias in node.names)


def stage(path: Path) -> str:
    return path.relative_to(ROOT / "lewm").parts[0].removesuffix(".py")


@pytest.mark.parametrize("package", THIRD_PARTY)
def test_neighbours_stand_alone(package: str) -> None:
    """planners knows torch only, envs knows no torch; neither knows the other or lewm."""
    allowed = THIRD_PARTY[package] | {package} | set(sys.stdlib_module_names)
    for path in FILES:
        if path.is_relative_to(ROOT / package):
            assert {module.split(".")[0] for module in imports(path)} <= allowed, name(path)


def test_a_stage_imports_only_stages_before_it() -> None:
    for path in FILES:
        if not path.is_relative_to(ROOT / "lewm") or stage(path) in ("__init__", "__main__"):
            continue
        here = stage(path)
        assert here in STAGES + SHARED, f"{name(path)}: give the new stage {here!r} its place in STAGES"
        if here in ("commands", "cli"):
            continue
        before = {here, "__version__", *SHARED, *(STAGES[: STAGES.index(here)] if here in STAGES else ())}
        used = {module.split(".")[1] for module in imports(path) if module.startswith("lewm.")}
        assert used <= before, f"{name(path)} imports {sorted(used - before)}, which come after {here}"


def test_the_stages_are_there() -> None:
    for entry in STAGES + SHARED:
        assert (ROOT / "lewm" / entry).is_dir() or (ROOT / "lewm" / f"{entry}.py").is_file(), entry


DRAWS = {"rand", "randn", "randint", "randperm", "multinomial", "bernoulli", "normal", "poisson"}
IN_PLACE = {"normal_", "uniform_", "exponential_", "bernoulli_", "random_", "cauchy_", "geometric_", "log_normal_"}
SEEDED = {
    "lewm/data/sb3_policy.py": "actions drawn by a foreign policy, from the episode's generator, in a fork",
    "lewm/train.py": "parameters and dropout, from the seed and the step",
    "lewm/cost_to_go.py": "initial weights of the head",
    "lewm/proposal.py": "initial weights of the head",
    "lewm/baselines/offline.py": "initial weights of the networks",
    "lewm/bench/plan.py": "fresh weights",
    "lewm/pretrain/loop.py": "initial weights of encoder and predictor",
}
"""Files that may seed torch's global generator, and what for."""


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the dotted text of what is called."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_draw_has_its_generator(path: Path) -> None:
    for called, node in calls(path):
        where = f"{name(path)}:{node.lineno}: {called}"
        given = {keyword.arg for keyword in node.keywords}
        if re.fullmatch(r"(np|numpy)\.random\.\w+", called):
            constructor = called.rsplit(".", 1)[1] in ("default_rng", "SeedSequence", "Generator", "PCG64", "Philox")
            assert constructor and node.args, f"{where} draws from numpy's global generator or from no seed"
        head, _, function = called.rpartition(".")
        if head == "torch" and function in DRAWS:
            assert "generator" in given, f"{where} draws from torch's global generator"
        if function in IN_PLACE and head != "self" and not head.endswith("init"):
            assert "generator" in given, f"{where} draws from torch's global generator"
        if called in ("torch.manual_seed", "torch.random.manual_seed", "torch.seed", "np.random.seed", "random.seed"):
            assert called == "torch.manual_seed" and name(path) in SEEDED, f"{where} seeds the global generator"
    assert "random" not in set(imports(path)), f"{name(path)} uses the standard library's global generator"


def test_checkpoints_execute_nothing() -> None:
    """No pickle; torch.load only with weights_only."""
    for path in FILES:
        assert not {"pickle", "dill", "joblib", "shelve"} & set(imports(path)), name(path)
        for called, node in calls(path):
            if called == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), name(
                    path
                )
            if called == "np.load":
                assert not any(k.arg == "allow_pickle" and ast.unparse(k.value) == "True" for k in node.keywords), name(
                    path
                )
            if called.startswith("yaml."):
                assert called in ("yaml.safe_load", "yaml.safe_dump"), name(path)
            assert called not in ("eval", "exec"), name(path)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400, f"{name(path)} is too long: split it"
    assert ast.get_docstring(ast.parse(text)), f"{name(path)} needs a sentence that says what it is"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{name(path)}:{node.lineno}: bare except"


@pytest.mark.parametrize("run", sorted(shipped()))
def test_every_shipped_run_loads_and_says_how_to_start_it(run: str) -> None:
    path = shipped()[run]
    assert load(path).task
    header = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        header.append(line)
    commands = [line for line in header if "lewm " in line]
    assert any(run in line for line in commands), f"{path.name}: the first lines must name the command that runs it"
    assert "{" not in "".join(commands)


def test_configs_include_nothing() -> None:
    """One file is one complete run."""
    for path in shipped().values():
        assert "!include" not in path.read_text() and "defaults:" not in path.read_text()
