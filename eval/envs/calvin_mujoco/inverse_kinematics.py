"""Bullet's inverse kinematics: joints that bring the tool near a pose, by damped least squares with the null space pulled to rest.

The original calls it once per action, from the measured joints, and its damping is so heavy that a call ends some millimetres short of the
target: where the arm goes depends on the solver as much as on the action. These are its rules (Bullet 3.2.7, `calculateInverseKinematics`
with limits and a rest pose), followed to rounding errors:

    dq = J^T (J J^T + 0.36 I)^-1 (e - J r) + r,    r = 0.001 (rest - q)

with the errors of position [m] and rotation (axis times angle [rad], world frame) in e; twenty times, or up to the change before which the
position error was at most 0.1 mm; no joint changes by more than pi / 4 at once; clipped to the soft limits at the end.
"""

import functools
import math

import mujoco
import numpy as np
from jaxtyping import Float

from eval.envs.calvin_mujoco.panda import ARM_JOINTS, NEUTRAL_JOINTS, SOFT_LIMITS, add_kinematics

ITERATIONS = 20
TOLERANCE = 1e-4  # m
DAMPING = 0.36 * np.eye(6)
REST_GAIN = 0.001
LARGEST_CHANGE = math.pi / 4  # rad
LOWEST, HIGHEST = SOFT_LIMITS.T.copy()


class InverseKinematics:
    """A solver with a simulation of its own, of the bare arm: MuJoCo computes its kinematics in a microsecond."""

    def __init__(self) -> None:
        model = _arm()
        data = mujoco.MjData(model)
        self._model, self._data, self._joints = model, data, data.qpos
        self._position, self._matrix = data.site_xpos[0], data.site_xmat[0]
        self._jacobian = np.zeros((6, ARM_JOINTS))
        self._jacobian_position, self._jacobian_rotation = self._jacobian[:3], self._jacobian[3:]
        self._error = np.zeros(6)
        self._error_position, self._error_rotation = self._error[:3], self._error[3:]
        self._normal, self._solution, self._remaining = np.zeros((6, 6)), np.zeros(6), np.zeros(6)
        self._change, self._rest = np.zeros(ARM_JOINTS), np.zeros(ARM_JOINTS)
        self._quaternion, self._turn = np.zeros(4), np.zeros(4)

    def solve(
        self, joints: Float[np.ndarray, "7"], position: Float[np.ndarray, "3"], quaternion: Float[np.ndarray, "4"]
    ) -> Float[np.ndarray, "7"]:
        """Joints [rad] that bring the tool near a position [m] and unit quaternion (wxyz), world frame. The search starts at `joints`."""
        # every array is reused: twenty iterations of a dozen operations on six numbers each cost what their allocations cost
        q, error, normal, jacobian, rest = self._joints, self._error, self._normal, self._jacobian, self._rest
        q[:] = joints
        for _ in range(ITERATIONS):
            self._kinematics()
            np.subtract(position, self._position, out=self._error_position)
            self._rotation_error(quaternion)
            np.subtract(NEUTRAL_JOINTS, q, out=rest)
            np.multiply(rest, REST_GAIN, out=rest)
            np.dot(jacobian, rest, out=self._remaining)
            np.subtract(error, self._remaining, out=self._remaining)
            mujoco.mju_mulMatMatT(normal, jacobian, jacobian)
            np.add(normal, DAMPING, out=normal)
            mujoco.mju_cholFactor(normal, 0.0)
            mujoco.mju_cholSolve(self._solution, normal, self._remaining)
            np.dot(self._solution, jacobian, out=self._change)
            np.add(self._change, rest, out=self._change)
            largest = max(map(abs, self._change.tolist()))
            if largest > LARGEST_CHANGE:
                np.multiply(self._change, LARGEST_CHANGE / largest, out=self._change)
            np.add(q, self._change, out=q)
            if self._error_position.dot(self._error_position) <= TOLERANCE**2:  # before this change
                break
        return np.minimum(np.maximum(q, LOWEST), HIGHEST)

    def _kinematics(self) -> None:
        model, data = self._model, self._data
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_jacSite(model, data, self._jacobian_position, self._jacobian_rotation, 0)

    def _rotation_error(self, quaternion: Float[np.ndarray, "4"]) -> None:
        """Turn from the current orientation to `quaternion`, axis times angle in the world frame."""
        mujoco.mju_mat2Quat(self._quaternion, self._matrix)
        mujoco.mju_negQuat(self._quaternion, self._quaternion)
        mujoco.mju_mulQuat(self._turn, quaternion, self._quaternion)
        mujoco.mju_quat2Vel(self._error_rotation, self._turn, 1.0)


@functools.cache
def _arm() -> mujoco.MjModel:
    """The seven joints and the tool's site: no shapes, no motors."""
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    _, links, hand = add_kinematics(spec)
    for body in (*links, hand):
        body.explicitinertial, body.mass, body.inertia = True, 1.0, [1.0, 1.0, 1.0]
    return spec.compile()
