"""MuJoCo's own renderer, set up for cheap anti-aliased pictures, and the choice of its OpenGL backend."""

import atexit
import ctypes.util
import importlib
import os
import sys
import weakref
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEND = "install libegl1 and libgl1-mesa-dri and set MUJOCO_GL=egl before starting, or use renderer='painter'"


def load_mujoco() -> ModuleType:
    """Import mujoco with a working OpenGL backend.

    MUJOCO_GL is respected when set. When it is not, EGL is chosen if its library is found; if it then does not start,
    mujoco is imported without OpenGL, so that physics works and only the camera does not.
    """
    chosen_here = "mujoco" not in sys.modules and "MUJOCO_GL" not in os.environ and ctypes.util.find_library("EGL")
    if chosen_here:
        os.environ["MUJOCO_GL"] = "egl"
    try:
        return importlib.import_module("mujoco")
    except (ImportError, AttributeError, RuntimeError) as error:
        backend = os.environ.get("MUJOCO_GL")
        if backend is None or (isinstance(error, ModuleNotFoundError) and error.name == "mujoco"):
            raise
        if chosen_here:
            os.environ["MUJOCO_GL"] = "disable"
            return importlib.import_module("mujoco")
        raise RuntimeError(explain(error)) from error


def explain(error: Exception) -> str:
    """One sentence that says which OpenGL backend failed and how to mend it."""
    backend = os.environ.get("MUJOCO_GL") or "unset"
    text = str(error)
    if "invalid value for environment variable MUJOCO_GL" in text:
        why = "is not a backend MuJoCo knows (egl, osmesa, glfw, disable)"
    elif "eglQueryString" in text:
        why = "needs libEGL, which is not installed"
    elif "EGL device display" in text:
        why = "finds libEGL but no driver behind it"
    elif "glGetError" in text:
        why = "needs libOSMesa, which is not installed"
    elif "GLContext" in text:
        why = "means that this process has no OpenGL"
    elif "OpenGL platform library" in text or "DISPLAY" in text:
        why = "needs a display, and there is none"
    else:
        why = f"failed ({type(error).__name__}: {text})"
    return f"MuJoCo cannot draw: MUJOCO_GL={backend} {why}; {MEND}."


_open_cameras: "weakref.WeakSet[Camera]" = weakref.WeakSet()


def close_cameras() -> None:
    """Free every open context; at exit this must run before the backend shuts down, or freeing them there fails."""
    for camera in list(_open_cameras):
        camera.close()


class Camera:
    """Cameras of a MuJoCo model, drawn at twice the size and averaged down; shadows, reflections and MSAA are off.

    The OpenGL context is made by the first picture and kept until `close`. One Camera belongs to one thread; a process
    that has drawn must not fork.
    """

    def __init__(self, model: Any, size: int, *names: str) -> None:
        self._model, self._size, self._names = model, size, names
        self._built = model.geom_rgba.copy(), model.geom_size.copy()
        self._renderer: Any = None

    def restyle(self, colours: Mapping[str, tuple[int, int, int]], radii: Mapping[str, float]) -> None:
        """Draw the named geoms in other colours (RGB) and with so many times their radius, all others as built.

        Changes the model it was given: give it a copy where physics runs on that one too.
        """
        self._model.geom_rgba[:], self._model.geom_size[:] = self._built
        for name, colour in colours.items():
            self._model.geom(name).rgba[:3] = np.array(colour) / 255
        for name, times in radii.items():
            self._model.geom(name).size[0] *= times

    def picture(self, data: Any) -> NDArray[np.uint8]:
        """Pixels (Y, X, 3 V) of a posed model seen by the V cameras, one camera after the other in the channels.

        Raises RuntimeError, saying how to mend it, where OpenGL does not work.
        """
        views = [self._view(data, name) for name in self._names]
        return views[0] if len(views) == 1 else np.concatenate(views, -1)

    def _view(self, data: Any, name: str) -> NDArray[np.uint8]:
        import cv2

        renderer = self._open()
        renderer.update_scene(data, camera=name)
        for flag in ("mjRND_SHADOW", "mjRND_REFLECTION", "mjRND_SKYBOX", "mjRND_HAZE"):
            renderer.scene.flags[getattr(self._mujoco.mjtRndFlag, flag)] = 0
        large = renderer.render()
        return np.ascontiguousarray(cv2.resize(large, (self._size, self._size), interpolation=cv2.INTER_AREA), np.uint8)

    def driver(self) -> str:
        """The OpenGL renderer's own name. Pictures are only comparable between equal names."""
        self._open()
        from OpenGL import GL  # type: ignore[import-untyped]

        return str(GL.glGetString(GL.GL_RENDERER).decode())

    def close(self) -> None:
        """Free the OpenGL context; the next picture makes a new one."""
        if self._renderer is not None:
            # Drawing makes this context current. MuJoCo frees textures by number in whatever context is current, so
            # closing without it would empty some other camera's pictures.
            self._renderer.render()
            self._renderer.close()
            self._renderer = None
            _open_cameras.discard(self)

    def __del__(self) -> None:
        self.close()

    def _open(self) -> Any:
        if self._renderer is None:
            self._mujoco = load_mujoco()
            try:
                self._renderer = self._mujoco.Renderer(self._model, height=2 * self._size, width=2 * self._size)
            except (ImportError, AttributeError, RuntimeError, self._mujoco.FatalError) as error:
                raise RuntimeError(explain(error)) from error
            if not _open_cameras:
                atexit.register(close_cameras)  # after mujoco's import, hence before its own exit handler
            _open_cameras.add(self)
        return self._renderer
