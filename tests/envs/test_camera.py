"""MuJoCo's camera: the painter's view, many cameras side by side, and clear errors where there is no OpenGL."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest

import envs
from envs.camera import explain

USE = "import envs; env = envs.make('reacher', renderer='camera'); env.reset(seed=0)"


@pytest.mark.gl
@pytest.mark.parametrize("size", [32, 64, 512])
def test_camera_sees_what_the_painter_paints(size: int) -> None:
    painter, camera = envs.make("reacher", size=size), envs.make("reacher", size=size, renderer="camera")
    rng = np.random.default_rng(0)
    for _ in range(5):
        state = np.concatenate([rng.uniform(-2.7, 2.7, 2), np.zeros(2)])
        painted, seen = painter.goal_image(state), camera.goal_image(state)
        assert seen.shape == painted.shape and seen.dtype == np.uint8 and seen.flags.c_contiguous
        assert np.abs(painted.astype(int) - seen).mean() < 1.0
        shifted = np.roll(painted, max(1, size // 64), axis=1)
        assert np.abs(shifted.astype(int) - seen).mean() > 1.5 * np.abs(painted.astype(int) - seen).mean()
    camera.close()


@pytest.mark.gl
def test_cameras_do_not_disturb_each_other() -> None:
    small, large = envs.make("reacher", renderer="camera"), envs.make("reacher", renderer="camera", size=128)
    before, _ = small.reset(seed=0)
    large.reset(seed=1)
    assert np.array_equal(small.render(), before)
    large.close()
    assert np.array_equal(small.render(), before)
    forgotten = envs.make("reacher", renderer="camera", size=96)
    forgotten.reset(seed=2)
    small.render()
    del forgotten
    gc.collect()
    assert np.array_equal(small.render(), before)
    small.close()
    assert np.array_equal(small.render(), before)  # opens again
    small.close()


@pytest.mark.gl
def test_camera_keeps_the_contract() -> None:
    env = envs.make("reacher", renderer="camera")
    pixels, info = env.reset(seed=0)
    assert env.observation_space.contains(pixels)
    other = env.goal_image(env.home_state)
    assert not np.array_equal(other, pixels)
    assert np.array_equal(env.render(), pixels) and np.array_equal(env.state, info["state"])
    assert env.settings == {"size": 64, "renderer": "camera"}
    assert env.renderer_fingerprint() == envs.make("reacher", renderer="camera").renderer_fingerprint()
    assert env.renderer_fingerprint() != envs.make("reacher").renderer_fingerprint()
    env.close()


@pytest.mark.gl
def test_a_forgotten_camera_exits_quietly() -> None:
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_opengl_physics_works_and_the_camera_says_how_to_mend() -> None:
    code = (
        "import envs; env = envs.make('reacher'); env.reset(seed=0); env.step([0, 0]); print('physics works')\n"
        "try: envs.make('reacher', renderer='camera').reset(seed=0)\n"
        "except RuntimeError as error: print(error)"
    )
    environment = os.environ | {"MUJOCO_GL": "disable"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    physics, message = done.stdout.splitlines()
    assert physics == "physics works"
    assert message.startswith("MuJoCo cannot draw: MUJOCO_GL=disable means that this process has no OpenGL; install")
    assert message.endswith("or use renderer='painter'.")


def test_an_unknown_backend_is_named() -> None:
    code = "import envs\ntry: envs.make('reacher')\nexcept RuntimeError as error: print(error)"
    environment = os.environ | {"MUJOCO_GL": "bogus"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("MuJoCo cannot draw: MUJOCO_GL=bogus is not a backend MuJoCo knows")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (AttributeError("'NoneType' object has no attribute 'eglQueryString'"), "needs libEGL"),
        (ImportError("Cannot initialize a EGL device display. This likely means"), "finds libEGL but no driver"),
        (AttributeError("'NoneType' object has no attribute 'glGetError'"), "needs libOSMesa"),
        (RuntimeError("an OpenGL platform library has not been loaded into this process"), "needs a display"),
        (RuntimeError("something new"), "failed (RuntimeError: something new)"),
    ],
)
def test_errors_are_explained(error: Exception, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert explain(error).startswith(f"MuJoCo cannot draw: MUJOCO_GL=egl {why}")
