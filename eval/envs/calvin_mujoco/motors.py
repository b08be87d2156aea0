"""The motors of arm and fingers, as constraints; the button's as an actuator of MuJoCo.

The original drives every joint with a *velocity constraint*: in each physics step the joint's velocity becomes clip(24 (q* - q), +-v_max),
whatever gravity, inertia and contacts demand, as long as that takes no more than a given force. MuJoCo's nearest relative is dry friction:
a constraint of bounded force that holds two coordinates' velocities together, solved with the contacts. So every motor has a *drive*, a
joint of its own without shape and too heavy to be slowed down, whose velocity is set before each physics step (`controller.py`), and a
tendon with friction between joint and drive. The gears that keep both fingers at the same opening are such a tendon as well.
"""

import mujoco

PHYSICS_STEP = 1.0 / 240.0
MOTOR_GAIN = 0.1 / PHYSICS_STEP  # 1/s
ARM_TORQUE, ARM_SPEED = 200.0, 2.0  # Nm, rad/s
CLOSING_FORCE, OPENING_FORCE, FINGER_SPEED = 200.0, 2.0, 1.0  # N, N, m/s
GEAR_FORCE = 50.0  # N
# The friction's impedance, of 1: higher is stiffer, and takes the solver more iterations than it has.
STIFFNESS, FINGER_STIFFNESS, GEAR_STIFFNESS = 0.995, 0.97, 0.99
DRIVE_INERTIA = 1e3  # kg or kg m^2


def add_drive(spec: mujoco.MjSpec, joint: str, kind: mujoco.mjtJoint, force: float, stiffness: float = STIFFNESS) -> None:
    """The motor `{joint}_motor` of a joint, of at most `force` [N or Nm]. It follows the velocity of the joint `{joint}_drive`."""
    body = spec.worldbody.add_body(name=f"{joint}_drive")
    body.explicitinertial, body.mass, body.inertia, body.gravcomp = True, 1.0, [1.0, 1.0, 1.0], 1.0
    body.add_joint(name=f"{joint}_drive", type=kind, axis=[0, 0, 1], armature=DRIVE_INERTIA)
    add_coupling(spec, f"{joint}_motor", joint, f"{joint}_drive", force, stiffness)


def add_coupling(spec: mujoco.MjSpec, name: str, one: str, other: str, force: float, stiffness: float) -> None:
    """Friction that gives two joints the same velocity within one physics step, with at most `force`."""
    tendon = spec.add_tendon(
        name=name,
        frictionloss=force,
        solref_friction=[-1.0, -1.0 / PHYSICS_STEP],  # negative: stiffness, which friction has not, and damping
        solimp_friction=[stiffness, stiffness, 0.001, 0.5, 2.0],
    )
    tendon.wrap_joint(one, 1.0)
    tendon.wrap_joint(other, -1.0)


def add_motor(spec: mujoco.MjSpec, joint: str, inertia: float, bound: tuple[float, float], load: float = 0.0) -> None:
    """A motor that gives `inertia` [kg] the commanded velocity within one physics step against a constant `load` [N], as long as the force
    is within `bound` [N].
    """
    damping = inertia / PHYSICS_STEP
    actuator = spec.add_actuator(name=f"{joint}_motor", trntype=mujoco.mjtTrn.mjTRN_JOINT, target=joint)
    actuator.gaintype, actuator.biastype = mujoco.mjtGain.mjGAIN_FIXED, mujoco.mjtBias.mjBIAS_AFFINE
    actuator.gainprm[0] = MOTOR_GAIN * damping
    actuator.biasprm[:3] = [-load, -MOTOR_GAIN * damping, -damping]
    actuator.forcelimited, actuator.forcerange = True, list(bound)
