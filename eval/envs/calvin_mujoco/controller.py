"""From Cartesian actions to the motors: a persistent target pose, inverse kinematics once per action, velocities in every physics step."""

import copy

import mujoco
import numpy as np
from jaxtyping import Float

from eval.calvin.rotations import euler_from_matrix, quaternion_from_euler
from eval.calvin.situation import FINGER_MAX, POSITION_SCALE, ROTATION_SCALE
from eval.envs.calvin_mujoco.inverse_kinematics import InverseKinematics
from eval.envs.calvin_mujoco.model import SUBSTEPS, SceneModel
from eval.envs.calvin_mujoco.motors import ARM_SPEED, CLOSING_FORCE, FINGER_SPEED, MOTOR_GAIN, OPENING_FORCE
from eval.envs.calvin_mujoco.panda import ARM_JOINTS, FINGER_JOINTS

SPEEDS = np.array([ARM_SPEED] * ARM_JOINTS + [FINGER_SPEED] * len(FINGER_JOINTS))


class Controller:
    """Moves one robot. Invariant between calls: `data` has been evaluated at its current state (`mj_step1`)."""

    def __init__(self, compiled: SceneModel, data: mujoco.MjData) -> None:
        # its own copy: the force of the fingers' motors depends on the command, and is part of the model
        self.model, self.data = copy.copy(compiled.model), data
        self.target_position = np.zeros(3)
        self.target_euler = np.zeros(3)
        self.gripper_command = 1.0
        # views: MuJoCo does not move these arrays, and looking them up costs more than using them
        self._joints, self._drives = data.qpos[: len(SPEEDS)], data.qvel[compiled.drives : compiled.drives + len(SPEEDS)]
        self._site_position, self._site_matrix = data.site_xpos[compiled.tcp], data.site_xmat[compiled.tcp].reshape(3, 3)
        self._tcp_position, self._tcp_matrix = np.zeros(3), np.eye(3)
        first, second = (self.model.tendon(f"{joint}_motor").id for joint in FINGER_JOINTS)
        self._finger_forces = self.model.tendon_frictionloss[first : second + 1]
        self._goal = np.zeros(len(SPEEDS))
        self._inverse_kinematics = InverseKinematics()

    # --- state

    def tcp_position(self) -> Float[np.ndarray, "3"]:
        """Measured tool centre point [m], world frame."""
        return self._tcp_position.copy()

    def tcp_matrix(self) -> Float[np.ndarray, "3 3"]:
        """Measured orientation of the tool frame."""
        return self._tcp_matrix.copy()

    def synchronise(self) -> None:
        """After a reset: the target becomes the measured pose, and every motor holds where its joint is."""
        self._measure()
        self.target_position = self.tcp_position()
        self.target_euler = euler_from_matrix(self.tcp_matrix())
        self._goal[:] = self._joints
        self._finger_forces[:] = CLOSING_FORCE

    # --- motion

    def apply(self, action: Float[np.ndarray, "7"], absolute: bool = False) -> None:
        """One action: moves the target pose, solves for joints, runs one control step of physics.

        Args:
          action: relative: changes of position [0.02 m] and Euler angles [0.05 rad], added to the stored target; absolute: the target's
            position [m] and Euler angles [rad] themselves. Last entry: the gripper, > 0 opens.
        """
        if absolute:
            self.target_position, self.target_euler = np.array(action[:3]), np.array(action[3:6])
        else:
            self.target_position = self.target_position + POSITION_SCALE * action[:3]
            self.target_euler = self.target_euler + ROTATION_SCALE * action[3:6]
        self.command_gripper(1.0 if action[6] > 0 else -1.0)
        quaternion = np.array(quaternion_from_euler(*self.target_euler.tolist()))
        self._goal[:ARM_JOINTS] = self._inverse_kinematics.solve(self._joints[:ARM_JOINTS], self.target_position, quaternion)
        self.physics(SUBSTEPS)

    def command_gripper(self, command: float) -> None:
        """Opens (+1) or closes (-1) from the next physics step on."""
        self.gripper_command = command
        self._goal[ARM_JOINTS:], force = (FINGER_MAX, OPENING_FORCE) if command > 0 else (0.0, CLOSING_FORCE)
        if self._finger_forces[0] != force:
            self._finger_forces[:] = force
            mujoco.mj_step1(self.model, self.data)  # the constraints of the next physics step are made here

    def physics(self, substeps: int) -> None:
        """Runs `substeps` steps of 1/240 s with the motors on."""
        for substep in range(substeps):
            self._drive()
            if substep:
                mujoco.mj_step1(self.model, self.data)
            else:  # only the drives' velocities are new
                mujoco.mj_fwdVelocity(self.model, self.data)
            mujoco.mj_step2(self.model, self.data)
        self._measure()
        mujoco.mj_step1(self.model, self.data)

    def place(self, position: Float[np.ndarray, "3"], euler: Float[np.ndarray, "3"], repetitions: int = 10) -> None:
        """Puts the arm (no physics) at joints that reach a pose, coming from its current joints."""
        quaternion = np.array(quaternion_from_euler(*euler))
        for _ in range(repetitions):
            self.data.qpos[:ARM_JOINTS] = self._inverse_kinematics.solve(self._joints[:ARM_JOINTS], position, quaternion)

    def _drive(self) -> None:
        """Sets the drives' velocities for the next physics step."""
        velocities = self._drives
        np.subtract(self._goal, self._joints, out=velocities)
        np.multiply(velocities, MOTOR_GAIN, out=velocities)
        np.minimum(velocities, SPEEDS, out=velocities)
        np.maximum(velocities, -SPEEDS, out=velocities)

    def _measure(self) -> None:
        """The hand's pose as the original reports it: that from which the last physics step started."""
        self._tcp_position[:], self._tcp_matrix[:] = self._site_position, self._site_matrix
