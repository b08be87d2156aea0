"""The two cameras: a far, narrow static one, and a wide one on the hand."""

import math

import mujoco
import numpy as np
from jaxtyping import Float

STATIC_EYE = np.array([2.871459009488717, -2.166602199425597, 2.555159848480571])
STATIC_TARGET = np.array([-0.026242351159453392, -0.0302329882979393, 0.3920000493526459])
STATIC_UP = np.array([0.4041403970338857, 0.22629790978217404, 0.8862616969685161])
STATIC_FOVY = 10.0
GRIPPER_POSITION = (-0.1, 0.0, 0.0)  # in the hand frame
GRIPPER_RIGHT = np.array([-0.0008, 1.0, 0.0])
GRIPPER_UP = np.array([0.96356, 0.00077, -0.2675])
GRIPPER_FOVY = 75.0
CAMERAS = ("rgb_static", "rgb_gripper")
FAR = {"rgb_static": 10.0, "rgb_gripper": 2.0}  # m, the original's far planes: depth images end there


def static_axes() -> Float[np.ndarray, "3 3"]:
    """Rows: right, up, forward of the static camera in the world frame (the image is rolled: right is not horizontal)."""
    forward = STATIC_TARGET - STATIC_EYE
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, STATIC_UP)
    right = right / np.linalg.norm(right)
    return np.stack([right, np.cross(right, forward), forward])


def project_static(points: Float[np.ndarray, "n 3"], size: int = 200) -> Float[np.ndarray, "n 2"]:
    """World points [m] to pixels (u right, v down) of the static camera."""
    right, up, depth = ((np.asarray(points) - STATIC_EYE) @ static_axes().T).T
    focal = 0.5 * size / math.tan(math.radians(STATIC_FOVY) / 2)
    return np.stack([0.5 * size + focal * right / depth, 0.5 * size - focal * up / depth], axis=-1)


def add_cameras(spec: mujoco.MjSpec) -> None:
    """Adds both cameras; the hand must be in the spec already."""
    right, up, _ = static_axes()
    _add(spec.worldbody, "rgb_static", STATIC_EYE, right, up, STATIC_FOVY)
    _add(spec.body("panda_hand"), "rgb_gripper", np.array(GRIPPER_POSITION), GRIPPER_RIGHT, GRIPPER_UP, GRIPPER_FOVY)


def _add(body: mujoco.MjsBody, name: str, position: np.ndarray, right: np.ndarray, up: np.ndarray, fovy: float) -> None:
    """MuJoCo cameras look along -z with x to the right and y up."""
    rotation = np.stack([right / np.linalg.norm(right), up / np.linalg.norm(up), -np.cross(right, up)], axis=1)
    rotation[:, 2] = np.cross(rotation[:, 0], rotation[:, 1])
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, rotation.ravel())
    body.add_camera(name=name, pos=list(position), quat=quaternion.tolist(), fovy=fovy)
