"""Pictures of a foreign MuJoCo environment: our renderer on a copy of its model, from where it looks itself."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.adapter.mujoco_state import MujocoState
from envs.camera import Camera, load_mujoco
from envs.policies import closest

VIEW_KEYS = ("lookat", "distance", "azimuth", "elevation")
CHEAP = {"shadow": False, "reflection": False}
"""What is not drawn unless it is asked for: together they cost 2 to 40 times the rest of a picture."""

View = str | int | Mapping[str, Any] | None


@dataclass(frozen=True)
class Look:
    """What a picture shows."""

    camera: View = None
    """A camera of the model by name or number, a free one as a mapping, or None for the environment's own."""
    flags: Mapping[str, bool] = field(default_factory=dict)
    """MuJoCo's rendering flags to switch."""
    hide: tuple[str, ...] = ()
    """Bodies, geoms and sites that are not drawn."""


class ModelCamera(Camera):
    """Draws states of a MuJoCo environment, at twice the size and averaged down, without multisampling.

    It has a copy of the model and data of its own, so drawing changes nothing that the environment integrates, and
    shows targets and colours as they were when it was made.
    """

    def __init__(self, source: MujocoState, unwrapped: Any, size: int, look: Look) -> None:
        self._api: Any = load_mujoco()
        model = copy.copy(source.model)
        super().__init__(model, size)
        model.vis.quality.offsamples = 0
        self._flags = check_flags(self._api, look.flags)
        if not self._flags["shadow"]:
            model.vis.quality.shadowsize = 0  # 4096 by default, and made even where no shadow is drawn
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, 2 * size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, 2 * size)
        for name in look.hide:
            hide(model, name)
        self._source, self._data = source, source.new_data()
        self._api.mj_copyData(self._data, model, source.data)
        self._look = find_view(self._api, unwrapped, model, source.data, look.camera)

    def draw(self, state_F: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Pixels (Y, X, 3) of a whole state."""
        self._source.pose(self._data, state_F)
        return self.picture(self._data)

    def picture(self, data: Any) -> NDArray[np.uint8]:
        """Pixels (Y, X, 3) of a posed model. Raises RuntimeError, saying how to mend it, where OpenGL does not work."""
        import cv2

        renderer = self._open()
        renderer.update_scene(data, camera=self._look)
        for name, on in self._flags.items():
            renderer.scene.flags[int(getattr(self._api.mjtRndFlag, f"mjRND_{name.upper()}"))] = int(on)
        large = renderer.render()
        return np.ascontiguousarray(cv2.resize(large, (self._size, self._size), interpolation=cv2.INTER_AREA), np.uint8)


def check_flags(api: Any, flags: Mapping[str, bool]) -> dict[str, bool]:
    """The flags that differ from MuJoCo's, with the cheap ones off unless given. Raises ValueError for unknown ones."""
    known = [str(flag.name).removeprefix("mjRND_").lower() for flag in api.mjtRndFlag.__members__.values()]
    known = [name for name in known if not name.startswith("mjn")]
    for name, on in flags.items():
        if name not in known:
            raise ValueError(f"flags names {name!r}{closest(name, known)}; the flags are {', '.join(known)}.")
        if not isinstance(on, bool):
            raise ValueError(f"flags.{name} is {on!r}, but must be true or false.")
    return CHEAP | dict(flags)


def hide(model: Any, name: str) -> None:
    """Make a body, a geom or a site of a model invisible. Raises ValueError for a name it does not have."""
    bodies, geoms, sites = (
        [str(getattr(model, kind)(i).name) for i in range(count)]
        for kind, count in (("body", model.nbody), ("geom", model.ngeom), ("site", model.nsite))
    )
    known = [*bodies, *geoms, *sites]
    if name not in known:
        raise ValueError(f"hide names {name!r}{closest(name, known)}, but the model has no such body, geom or site.")
    body = bodies.index(name) if name in bodies else -1
    for i in range(model.ngeom):
        if geoms[i] == name or int(model.geom_bodyid[i]) == body:
            model.geom_matid[i], model.geom_rgba[i, 3] = -1, 0.0
    for i in range(model.nsite):
        if sites[i] == name or int(model.site_bodyid[i]) == body:
            model.site_matid[i], model.site_rgba[i, 3] = -1, 0.0


def find_view(api: Any, unwrapped: Any, model: Any, data: Any, camera: View) -> Any:
    """What `mujoco.Renderer.update_scene` takes: a camera of the model by number, or a free one.

    Raises ValueError for a camera that the model does not have.
    """
    if isinstance(camera, str):
        names = [str(model.camera(i).name) for i in range(model.ncam)]
        if camera not in names:
            raise ValueError(
                f"camera is {camera!r}{closest(camera, names)}, but the model's cameras are "
                f"{', '.join(names) or 'none'}; a free one is {{'distance': 3, 'azimuth': 90, 'elevation': -45}}."
            )
        return names.index(camera)
    if isinstance(camera, int):
        if not 0 <= camera < model.ncam:
            raise ValueError(f"camera is {camera}, but the model has {model.ncam} cameras: count from 0.")
        return camera
    own = own_view(api, unwrapped, model, data)
    if camera is None:
        return own
    view = own if not isinstance(own, int) else free_view(api, model, data)
    for key, value in camera.items():
        if key not in VIEW_KEYS:
            raise ValueError(f"camera has no {key!r}{closest(key, VIEW_KEYS)}; it has {', '.join(VIEW_KEYS)}.")
        set_view(view, key, value)
    return view


def own_view(api: Any, unwrapped: Any, model: Any, data: Any) -> Any:
    """Where the environment itself looks from, as its suite says it: OGBench's mazes, Gymnasium, else camera 0."""
    if isinstance(getattr(unwrapped, "custom_camera", None), api.MjvCamera):
        return copy.copy(unwrapped.custom_camera)
    holder = getattr(unwrapped, "point_env", getattr(unwrapped, "ant_env", unwrapped))
    renderer = getattr(holder, "mujoco_renderer", None)
    if renderer is None and model.ncam:
        return 0
    if renderer is not None and renderer.camera_id >= 0:
        return int(renderer.camera_id)
    view = free_view(api, model, data)
    for key, value in (getattr(renderer, "default_cam_config", None) or {}).items():
        if key in VIEW_KEYS:
            set_view(view, key, value)
    return view


def free_view(api: Any, model: Any, data: Any) -> Any:
    """Gymnasium's free camera: at the median of the geoms, from the model's extent away."""
    view = api.MjvCamera()
    view.lookat[:] = np.median(data.geom_xpos, axis=0)
    view.distance = model.stat.extent
    return view


def set_view(view: Any, key: str, value: Any) -> None:
    """Set one number, or the three of lookat. Raises ValueError for anything else."""
    numbers = np.asarray(value)
    shape, what = ((3,), "three numbers") if key == "lookat" else ((), "a number")
    if numbers.dtype.kind not in "if" or numbers.shape != shape or not np.isfinite(numbers).all():
        raise ValueError(f"camera.{key} is {value!r}, but must be {what}.")
    if key == "lookat":
        view.lookat[:] = numbers
    else:
        setattr(view, key, float(numbers))
