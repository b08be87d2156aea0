"""The three coloured blocks: 1 kg boxes whose long side is their x axis; which colour has which size depends on the scene."""

import math

import mujoco
import numpy as np
from jaxtyping import Float

from eval.calvin.rotations import quaternion_from_euler
from eval.calvin.scenes import EDGE, Scene, block_length
from eval.envs.calvin_mujoco.contacts import CONTACT_GROUP
from eval.envs.calvin_mujoco.meshes import MeshBuilder

COLOURS = {"red": (1.0, 0.0, 0.0, 1.0), "blue": (0.0, 0.0, 1.0, 1.0), "pink": (1.0, 0.0, 1.0, 1.0)}
STANDARD_ORDER = ("red", "blue", "pink")  # of scene_obs here; the original's order is the scene's
MASS = 1.0
# Where a block can be without having left the scene [m]: the table with all that hangs over it, and what the hand can carry around it.
WORLD = (-0.75, -0.75, 0.25), (0.75, 0.45, 1.20)


def add_blocks(spec: mujoco.MjSpec, scene: Scene) -> None:
    """Adds red, blue and pink, each with a free joint. Added last: their seven coordinates follow all the single ones."""
    for number, colour in enumerate(STANDARD_ORDER):
        half = (block_length(scene, colour) / 2, EDGE / 2, EDGE / 2)
        body = spec.worldbody.add_body(name=f"block_{colour}", pos=[-0.2 + 0.1 * number, -0.1, 0.46])
        body.add_freejoint(name=f"block_{colour}")
        body.add_geom(
            name=f"block_{colour}_contact",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=list(half),
            group=CONTACT_GROUP,
            contype=0,
            conaffinity=0,
            mass=MASS,
        )
        MeshBuilder().pillow(half).add_to(spec, body, f"block_{colour}", material="plain", rgba=COLOURS[colour], crease=math.pi)


def free_joint_values(pose: Float[np.ndarray, "6"]) -> Float[np.ndarray, "7"]:
    """xyz [m] and fixed-axis Euler angles [rad] -> position and quaternion (wxyz)."""
    return np.concatenate([pose[:3], quaternion_from_euler(*pose[3:6])])


def has_escaped(positions: Float[np.ndarray, "n 3"]) -> bool:
    """Whether a block's centre has left the scene (fallen to the floor, thrown away)."""
    (low_x, low_y, low_z), (high_x, high_y, high_z) = WORLD
    return any(not (low_x <= x <= high_x and low_y <= y <= high_y and low_z <= z <= high_z) for x, y, z in positions.tolist())
