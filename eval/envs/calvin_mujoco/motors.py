"""The motors of arm, fingers and button as MuJoCo's own actuators, so that a control step is one call into MuJoCo.

The original drives every joint with a *velocity constraint*: per physics step the joint's velocity becomes clip(24 (q* - q), +-v_max),
regardless of gravity and inertia, as long as the required force is within a bound. An affine actuator is the same law up to the lag of the
inertia it drives:

    arm:     torque = clip(24 D (q* - q), +-2 D) - D v    velocity at most 2 rad/s, torque at most 2 D = 200 Nm, both as in the original
    others:  force  = clip(m / dt (24 (q* - q) - v))      exactly the original's law for a single inertia m

A velocity constraint hides the inertia of the links. Here it shows, in the lag M / D of the arm and in its coupling between joints: the
arm's own inertia is therefore mostly that of its motors (ARMATURE), and its links weigh a fifth of the original's. Fitted to the step
responses measured in the original (`tests/eval/test_calvin_kinematics.py`), lag included. The arm weighs nothing.
"""

import mujoco

PHYSICS_STEP = 1.0 / 240.0
MOTOR_GAIN = 0.1 / PHYSICS_STEP  # 1/s
ARM_DAMPING = 100.0  # Nm s/rad
ARMATURE = (0.42,) * 6 + (1.6,)  # kg m^2; the last joint is the slowest to follow in the original, too
LINK_WEIGHT = 0.2  # share of the original's masses and inertias
FINGER_MASS = 0.1001  # kg
# Closing fingers press as hard as their inertia is large: 54 N on a block of 0.04 m (the original: up to 200 N, under which a contact with
# a time constant of two steps would sink in visibly). The bound for opening, 2 N in the original, grows alike, so that they open as fast.
FINGER_ARMATURE = 0.4  # kg
FINGER_SHARE = 0.95  # of the velocity error that a finger makes up per step
OPENING_FORCE = 2.0 * (FINGER_MASS + FINGER_ARMATURE) / FINGER_MASS  # N
CLOSING_FORCE = 200.0  # N


def add_arm_motor(spec: mujoco.MjSpec, joint: str) -> None:
    """A motor for an arm joint, whose damping must be ARM_DAMPING."""
    bound = 2.0 * ARM_DAMPING
    _add_actuator(spec, joint, MOTOR_GAIN * ARM_DAMPING, 0.0, (-bound, bound))


def add_finger_motor(spec: mujoco.MjSpec, joint: str) -> None:
    """A motor for a finger, whose armature must be FINGER_ARMATURE."""
    add_motor(spec, joint, FINGER_SHARE * (FINGER_MASS + FINGER_ARMATURE), (-CLOSING_FORCE, OPENING_FORCE))


def add_motor(spec: mujoco.MjSpec, joint: str, inertia: float, bound: tuple[float, float], load: float = 0.0) -> None:
    """A motor that gives `inertia` [kg] the commanded velocity within one physics step against a constant `load` [N], as long as the force
    is within `bound` [N].
    """
    damping = inertia / PHYSICS_STEP
    _add_actuator(spec, joint, MOTOR_GAIN * damping, damping, bound, -load)


def _add_actuator(
    spec: mujoco.MjSpec, joint: str, stiffness: float, damping: float, bound: tuple[float, float], offset: float = 0.0
) -> None:
    actuator = spec.add_actuator(name=f"{joint}_motor", trntype=mujoco.mjtTrn.mjTRN_JOINT, target=joint)
    actuator.gaintype, actuator.biastype = mujoco.mjtGain.mjGAIN_FIXED, mujoco.mjtBias.mjBIAS_AFFINE
    actuator.gainprm[0] = stiffness
    actuator.biasprm[:3] = [offset, -stiffness, -damping]
    actuator.forcelimited, actuator.forcerange = True, list(bound)
