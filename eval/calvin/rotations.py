"""Small rotation functions: 3x3 matrices, fixed-axis xyz Euler angles (R = Rz Ry Rx, as PyBullet's), wxyz quaternions."""

import math

import numpy as np
from jaxtyping import Float


def matrix_from_euler(euler: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Fixed-axis xyz angles (roll, pitch, yaw) [rad] -> rotation matrix Rz(yaw) Ry(pitch) Rx(roll)."""
    roll, pitch, yaw = map(float, euler)  # Python's own numbers: NumPy's scalars cost several times as much, here and below
    cr, sr, cp, sp, cy, sy = math.cos(roll), math.sin(roll), math.cos(pitch), math.sin(pitch), math.cos(yaw), math.sin(yaw)
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def euler_from_matrix(matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3"]:
    """Inverse of `matrix_from_euler`: roll and yaw in (-pi, pi], pitch in [-pi/2, pi/2]; yaw is 0 at gimbal lock."""
    return np.array(euler_angles(matrix.tolist()))


def euler_angles(rows: list[list[float]]) -> tuple[float, float, float]:
    """The same from and to plain numbers, for where every microsecond counts."""
    (xx, _, _), (yx, yy, yz), (zx, zy, zz) = rows
    horizontal = math.hypot(xx, yx)
    pitch = math.atan2(-zx, horizontal)
    if horizontal < 1e-9:
        return math.atan2(-yz, yy), pitch, 0.0
    return math.atan2(zy, zz), pitch, math.atan2(yx, xx)


def quaternion_from_euler(roll: float, pitch: float, yaw: float) -> list[float]:
    """Unit quaternion (w, x, y, z) of fixed-axis xyz angles [rad]."""
    cr, cp, cy = math.cos(roll / 2), math.cos(pitch / 2), math.cos(yaw / 2)
    sr, sp, sy = math.sin(roll / 2), math.sin(pitch / 2), math.sin(yaw / 2)
    return [cr * cp * cy + sr * sp * sy, sr * cp * cy - cr * sp * sy, cr * sp * cy + sr * cp * sy, cr * cp * sy - sr * sp * cy]


def wrap(angle: np.ndarray | float) -> np.ndarray:
    """Angles [rad] to (-pi, pi]."""
    return np.asarray(-((np.pi - angle) % (2.0 * np.pi) - np.pi))
