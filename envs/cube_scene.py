"""The picture of the cube task: boxes and capsules instead of OGBench's 185,000 mesh faces, at a tenth of the cost."""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.camera import Camera, load_mujoco
from envs.cube_physics import physics

mujoco: Any = load_mujoco()

Array = NDArray[np.float64]

FLOOR, TABLE, BLOCK = (0.90, 0.89, 0.86, 1.0), (0.76, 0.80, 0.84, 1.0), (0.84, 0.24, 0.19, 1.0)
ARM, PADS = (0.42, 0.50, 0.64, 1.0), (0.95, 0.60, 0.10, 1.0)
GRIPPER = (0.20, 0.22, 0.30, 0.4)  # one sees through it, or a block it holds would be hidden
LOOK_AT = np.array([0.41, 0.0, 0.20])  # m; with the width below, all of the gripper's workspace is in the picture
ELEVATION, AWAY, HALF_WIDTH = np.deg2rad(50.0), 1.8, 0.36  # of the camera: rad above the table, m, m seen each way


class Scene:
    """A model of one plain shape per solid geom of the physics, moved to wherever the physics has that geom.

    A mesh is drawn as its bounding box. Table: where blocks are drawn and put down.
    """

    def __init__(self, physics_model: Any, size: int) -> None:
        solid_G = physics_model.geom_contype > 0
        solid_G[physics_model.geom("floor").id] = False
        self.drawn = np.flatnonzero(solid_G)
        self.model = _build(physics_model, self.drawn)
        self._data = mujoco.MjData(self.model)
        self.camera = Camera(self.model, size, "front")

    def picture(self, place_G3: Array, rotation_G9: Array) -> NDArray[np.uint8]:
        """Pixels (Y, X, 3) with the physics' geoms at the given places."""
        data = self._data
        for shape, geom in enumerate(self.drawn):
            data.mocap_pos[shape] = place_G3[geom]
            mujoco.mju_mat2Quat(data.mocap_quat[shape], rotation_G9[geom])
        mujoco.mj_kinematics(self.model, data)
        mujoco.mj_camlight(self.model, data)
        return self.camera.picture(data)


@functools.cache
def scene(size: int) -> Scene:
    """The one of this process for a picture size, so that many tasks side by side share one OpenGL context."""
    return Scene(physics().model, size)


def _build(physics_model: Any, drawn: NDArray[np.int64]) -> Any:
    spec = mujoco.MjSpec()
    _set_up(spec.visual)
    world, box = spec.worldbody, mujoco.mjtGeom.mjGEOM_BOX
    world.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, dir=[0.2, 0.3, -1.0], diffuse=[0.4] * 3, specular=[0.0] * 3
    )
    world.add_geom(type=box, pos=[0.0, 0.0, -0.05], size=[2.0, 2.0, 0.05], rgba=FLOOR)
    world.add_geom(type=box, pos=[0.425, 0.0, 0.0], size=[0.145, 0.32, 0.001], rgba=TABLE)
    for geom in drawn:
        body = world.add_body(name=str(geom), mocap=True)
        kind, rgba = int(physics_model.geom_type[geom]), _colour(physics_model, geom)
        if kind == mujoco.mjtGeom.mjGEOM_MESH:
            centre, half_size = np.split(physics_model.geom_aabb[geom], 2)
            body.add_geom(type=box, pos=centre, size=half_size, rgba=rgba)
        else:
            body.add_geom(type=mujoco.mjtGeom(kind), size=physics_model.geom_size[geom], rgba=rgba)
    backwards = np.array([np.cos(ELEVATION), 0.0, np.sin(ELEVATION)])
    right, up = np.array([0.0, 1.0, 0.0]), np.array([-np.sin(ELEVATION), 0.0, np.cos(ELEVATION)])
    turn = np.empty(4)
    mujoco.mju_mat2Quat(turn, np.column_stack([right, up, backwards]).ravel())
    fovy = 2.0 * np.rad2deg(np.arctan(HALF_WIDTH / AWAY))
    world.add_camera(name="front", pos=LOOK_AT + AWAY * backwards, quat=turn, fovy=fovy)
    return spec.compile()


def _set_up(visual: Any) -> None:
    visual.quality.offsamples = visual.quality.shadowsize = 0
    visual.quality.numslices, visual.quality.numstacks, visual.quality.numquads = 12, 8, 1  # of round things
    visual.global_.offwidth = visual.global_.offheight = 1024
    visual.headlight.ambient, visual.headlight.diffuse, visual.headlight.specular = [0.4] * 3, [0.3] * 3, [0.0] * 3


def _colour(physics_model: Any, geom: int) -> tuple[float, float, float, float]:
    body = physics_model.body(physics_model.geom_bodyid[geom]).name
    if body == "object_0":
        return BLOCK
    if body.endswith("_pad"):
        return PADS
    return GRIPPER if body.startswith("ur5e/robotiq") else ARM
