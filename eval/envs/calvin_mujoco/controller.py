"""From Cartesian actions to the targets of the motors: a persistent target pose and one damped least squares step per action."""

import math

import mujoco
import numpy as np
from jaxtyping import Float

from eval.calvin.rotations import euler_from_matrix, matrix_from_euler, rotation_vector
from eval.calvin.situation import FINGER_MAX, POSITION_SCALE, ROTATION_SCALE
from eval.envs.calvin_mujoco.model import MOTOR_DOFS, SUBSTEPS, SceneModel
from eval.envs.calvin_mujoco.panda import ARM_JOINTS, NEUTRAL_JOINTS, SOFT_LIMITS

# The original's iterative solver stops short of the target and closes the gap over the next steps; so do these shares of the error.
POSITION_SHARE, ROTATION_SHARE = 0.88, 0.95
SINGULAR, DAMPING = 0.10, 0.01  # singular values below the first are damped, by up to the second
SINGULAR_SQUARES = SINGULAR**2 * np.eye(6)
MAX_ERROR = 0.15  # [m]: larger position errors are clipped to this for one step
NULL_SPACE_GAIN = 0.1
LOWEST, HIGHEST = SOFT_LIMITS.T.copy()


class Controller:
    """Moves one robot. Invariant between calls: `data` has been evaluated at its current state (`mj_step1`)."""

    def __init__(self, compiled: SceneModel, data: mujoco.MjData) -> None:
        self.compiled, self.model, self.data = compiled, compiled.model, data
        self.target_position = np.zeros(3)
        self.target_euler = np.zeros(3)
        self.gripper_command = 1.0
        # views: MuJoCo does not move these arrays, and looking them up costs more than using them
        self._goal, self._joints = data.ctrl, data.qpos[:ARM_JOINTS]
        self._tcp_position, self._tcp_matrix = data.site_xpos[compiled.tcp], data.site_xmat[compiled.tcp].reshape(3, 3)
        jacobian = np.zeros((6, self.model.nv))
        self._jacobian, self._jacobian_position, self._jacobian_rotation = jacobian[:, :ARM_JOINTS], jacobian[:3], jacobian[3:]

    # --- state

    def tcp_position(self) -> Float[np.ndarray, "3"]:
        """Measured tool centre point [m], world frame."""
        return self._tcp_position.copy()

    def tcp_matrix(self) -> Float[np.ndarray, "3 3"]:
        """Measured orientation of the tool frame."""
        return self._tcp_matrix.copy()

    def synchronise(self) -> None:
        """After a reset: the target becomes the measured pose, and every motor holds where its joint is."""
        self.target_position = self.tcp_position()
        self.target_euler = euler_from_matrix(self.tcp_matrix())
        self._goal[:] = self.data.qpos[:MOTOR_DOFS]
        self._goal[-1] = 0.0

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
        self._goal[:ARM_JOINTS] = self.inverse_kinematics(self.target_position, matrix_from_euler(self.target_euler))
        self.physics(SUBSTEPS)

    def command_gripper(self, command: float) -> None:
        """Opens (+1) or closes (-1) from the next physics step on."""
        self.gripper_command = command
        self._goal[ARM_JOINTS : ARM_JOINTS + 2] = FINGER_MAX if command > 0 else 0.0

    def inverse_kinematics(self, position: Float[np.ndarray, "3"], rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "7"]:
        """One damped least squares step from the current joints towards a pose, null space towards the rest pose, clipped to the soft
        limits.
        """
        q, tcp = self._joints, self._tcp_matrix
        mujoco.mj_jacSite(self.model, self.data, self._jacobian_position, self._jacobian_rotation, self.compiled.tcp)
        jacobian = self._jacobian.copy()  # contiguous: small products are faster
        away = (position - self._tcp_position).tolist()
        share = POSITION_SHARE * min(1.0, MAX_ERROR / max(math.hypot(*away), 1e-9))
        error = np.array([share * x for x in away] + [ROTATION_SHARE * x for x in rotation_vector(rotation.dot(tcp.T))])
        rest = NULL_SPACE_GAIN * (NEUTRAL_JOINTS - q)
        # dq = rest + J^T (J J^T + damping)^-1 (error - J rest): the rest term acts only where it does not move the hand
        dq = rest + _damped_solution(jacobian.dot(jacobian.T), error - jacobian.dot(rest)).dot(jacobian)
        return np.minimum(np.maximum(q + dq, LOWEST), HIGHEST)

    def physics(self, substeps: int) -> None:
        """Runs `substeps` steps of 1/240 s with the motors on."""
        # step2 + whole steps + step1: as many steps, and the state is evaluated at the end
        mujoco.mj_step2(self.model, self.data)
        if substeps > 1:
            mujoco.mj_step(self.model, self.data, substeps - 1)
        mujoco.mj_step1(self.model, self.data)

    def place(self, position: Float[np.ndarray, "3"], rotation: Float[np.ndarray, "3 3"], iterations: int = 40) -> None:
        """Puts the arm (no physics) at the joints that reach a pose, coming from its current joints."""
        for _ in range(iterations):
            self.data.qpos[:ARM_JOINTS] = self.inverse_kinematics(position, rotation)
            mujoco.mj_kinematics(self.model, self.data)
            mujoco.mj_comPos(self.model, self.data)


def _damped_solution(normal: Float[np.ndarray, "6 6"], error: Float[np.ndarray, "6"]) -> Float[np.ndarray, "6"]:
    """Solves (J J^T + damping) x = error. Directions in which the arm is nearly singular (stretched out) are damped, or a target out of
    reach would make it thrash.
    """
    if mujoco.mju_cholFactor(normal - SINGULAR_SQUARES, 1e-12) == 6:  # positive definite: no singular value is below SINGULAR
        solution = np.empty(6)
        mujoco.mju_cholFactor(normal, 1e-12)
        mujoco.mju_cholSolve(solution, normal, error)
        return solution
    squares, directions = np.linalg.eigh(normal)
    squares = squares + DAMPING * np.maximum(0.0, 1.0 - squares / SINGULAR**2) ** 2
    return directions @ ((directions.T @ error) / (squares + 1e-9))
