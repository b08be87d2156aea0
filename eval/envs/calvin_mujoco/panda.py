"""A Franka Panda with long fingers: exact kinematics, our own primitives for looks and contact.

Joint origins and limits are those of the CALVIN robot. The shapes are capsules, cylinders and frusta chosen to look like the real arm in
the two cameras; only wrist, hand and fingers take part in contacts.
"""

import math

import mujoco
import numpy as np

from eval.calvin.rotations import quaternion_from_euler
from eval.calvin.situation import FINGER_MAX
from eval.envs.calvin_mujoco.contacts import CONTACT_GROUP, SOLREF
from eval.envs.calvin_mujoco.meshes import MeshBuilder
from eval.envs.calvin_mujoco.motors import (
    ARM_DAMPING,
    ARMATURE,
    FINGER_ARMATURE,
    FINGER_MASS,
    LINK_WEIGHT,
    add_arm_motor,
    add_finger_motor,
)

BASE_POSITION = (-0.34, -0.46, 0.24)
ARM_JOINTS = 7
# xyz [m] and roll [rad] of each joint in its parent's frame
JOINT_ORIGINS = (
    ((0.0, 0.0, 0.333), 0.0),
    ((0.0, 0.0, 0.0), -math.pi / 2),
    ((0.0, -0.316, 0.0), math.pi / 2),
    ((0.0825, 0.0, 0.0), math.pi / 2),
    ((-0.0825, 0.384, 0.0), -math.pi / 2),
    ((0.0, 0.0, 0.0), math.pi / 2),
    ((0.088, 0.0, 0.0), math.pi / 2),
)
SOFT_LIMITS = np.array(
    [[-2.8973, 2.8973], [-1.7628, 1.7628], [-2.8973, 2.8973], [-3.0718, -0.0698], [-2.8973, 2.8973], [-0.0175, 3.7525], [-2.8973, 2.8973]]
)
HARD_LIMITS = np.array(
    [[-2.9671, 2.9671], [-1.8326, 1.8326], [-2.9671, 2.9671], [-3.1416, 0.0], [-2.9671, 2.9671], [-0.0873, 3.8223], [-2.9671, 2.9671]]
)
LINK_MASSES = (2.7, 2.73, 2.04, 2.08, 3.0, 1.3, 0.2)
NEUTRAL_JOINTS = np.array([-1.21779206, 1.03987646, 2.11978261, -2.34205014, -0.87015947, 1.64119353, 0.55344866])
WHITE = (0.97, 0.97, 0.98, 1.0)
DARK = (0.42, 0.42, 0.45, 1.0)
FINGER_GRAY = (0.98, 0.98, 0.98, 1.0)


def add_panda(spec: mujoco.MjSpec) -> None:
    """Adds the arm, hand, fingers, TCP site and gripper camera frame to the world body."""
    base = spec.worldbody.add_body(name="panda_link0", pos=list(BASE_POSITION))
    MeshBuilder().tube((-0.05, 0, 0.055), (0.02, 0, 0.06), 0.075, round_ends=3).tube((0, 0, 0.0), (0, 0, 0.19), 0.105, 0.065).add_to(
        spec, base, "link0", material="plain", rgba=WHITE
    )
    body = base
    for i, (origin, roll) in enumerate(JOINT_ORIGINS):
        body = body.add_body(name=f"panda_link{i + 1}", pos=list(origin), quat=quaternion_from_euler(roll, 0.0, 0.0))
        body.explicitinertial, body.gravcomp = True, 1.0
        mass = LINK_WEIGHT * LINK_MASSES[i]
        body.mass, body.ipos, body.inertia = mass, list(_CENTRES[i]), [0.006 * mass + LINK_WEIGHT * 0.002] * 3
        body.add_joint(
            name=f"panda_joint{i + 1}",
            type=mujoco.mjtJoint.mjJNT_HINGE,
            axis=[0, 0, 1],
            range=HARD_LIMITS[i].tolist(),
            limited=True,
            damping=ARM_DAMPING,
            armature=ARMATURE[i],
        )
        add_arm_motor(spec, f"panda_joint{i + 1}")
        for name, mesh, rgba in _link_meshes(i + 1):
            mesh.add_to(spec, body, name, material="plain", rgba=rgba)
    _contact(body, "link7_contact", mujoco.mjtGeom.mjGEOM_CAPSULE, fromto=[0, 0, 0.02, 0, 0, 0.09], size=[0.045, 0, 0])
    _add_hand(spec, body)


def _contact(body: mujoco.MjsBody, name: str, kind: mujoco.mjtGeom, **shape: list[float]) -> None:
    body.add_geom(name=name, type=kind, group=CONTACT_GROUP, contype=0, conaffinity=0, mass=0.0, **shape)


_CENTRES = ((0, 0.02, -0.07), (0, -0.07, 0.02), (0.03, 0.03, -0.06), (-0.03, 0.05, 0.02), (0, 0.03, -0.12), (0.05, 0, 0), (0, 0, 0.07))


def _link_meshes(link: int) -> list[tuple[str, MeshBuilder, tuple[float, ...]]]:
    """White body and dark trim of one arm link, in its own frame (z is the joint's axis)."""
    white, dark = MeshBuilder(), MeshBuilder()
    if link == 1:
        white.tube((0, 0, -0.145), (0, 0, -0.04), 0.064, 0.066).tube((0, -0.075, 0), (0, 0.0, 0), 0.062, round_ends=2)
        dark.tube((0, 0, -0.150), (0, 0, -0.144), 0.066)
    elif link == 2:
        white.tube((0, 0, -0.02), (0, 0, 0.075), 0.062, round_ends=2).tube((0, -0.02, 0), (0, -0.17, 0.0), 0.062, 0.060)
        dark.tube((0, -0.17, 0), (0, -0.19, 0), 0.0605)
    elif link == 3:
        white.tube((0, 0, -0.125), (0, 0, -0.03), 0.062, 0.058, round_ends=2).tube(
            (0.0825, -0.06, 0), (0.0825, 0.055, 0), 0.055, round_ends=2
        )
        white.tube((0, 0, -0.04), (0.0825, 0, 0), 0.056, 0.05)
    elif link == 4:
        white.tube((0, 0, -0.055), (0, 0, 0.055), 0.055, round_ends=2).tube((0, 0, 0), (-0.0825, 0.10, 0), 0.054, 0.058, round_ends=2)
        dark.tube((-0.0825, 0.10, 0), (-0.0825, 0.128, 0), 0.059)
    elif link == 5:
        white.tube((0, 0, -0.255), (0, 0.03, -0.20), 0.058, 0.055, round_ends=2).tube((0, 0.04, -0.20), (0, 0.078, -0.06), 0.045, 0.035)
        white.tube((0, 0.07, -0.06), (0, 0.03, -0.005), 0.046, round_ends=2)
        white.tube((0, 0.02, 0), (0, 0.075, 0), 0.05, round_ends=2)
    elif link == 6:
        white.tube((0, 0, -0.055), (0, 0, 0.055), 0.055).tube((0, 0, 0), (0.088, 0, 0), 0.052, 0.050, caps=False)
        white.tube((0.088, -0.045, 0), (0.088, 0.072, 0), 0.051)
        dark.tube((0, 0, 0.0552), (0, 0, 0.057), 0.055, inner=0.042).tube((0, 0, 0.0552), (0, 0, 0.057), 0.018, slices=8)
        dark.tube((0.088, 0.0722, 0), (0.088, 0.074, 0), 0.04, inner=0.03, slices=10)
    else:
        white.tube((0, 0, -0.01), (0, 0, 0.085), 0.046, 0.043)
        dark.tube((0, 0, 0.085), (0, 0, 0.107), 0.034)
    meshes = [(f"link{link}", white, WHITE)]
    if link in (1, 2, 4, 6, 7):
        meshes.append((f"link{link}_trim", dark, DARK))
    return meshes


def _add_hand(spec: mujoco.MjSpec, flange_parent: mujoco.MjsBody) -> None:
    hand = flange_parent.add_body(name="panda_hand", pos=[0, 0, 0.107], quat=quaternion_from_euler(0.0, 0.0, -math.pi / 4))
    hand.explicitinertial, hand.gravcomp = True, 1.0
    hand.mass, hand.ipos = LINK_WEIGHT * (0.81 + 0.2), [-0.02, 0, 0.03]
    hand.inertia = [LINK_WEIGHT * moment for moment in (0.004, 0.003, 0.003)]
    body_mesh = MeshBuilder().tube((0, 0, -0.02), (0, 0, -0.01), 0.034, 0.034)
    body_mesh.frustum((0.030, 0.085), (0.0316, 0.100), (-0.012, 0.022)).frustum((0.0316, 0.100), (0.027, 0.098), (0.022, 0.046))
    body_mesh.frustum((0.027, 0.098), (0.0135, 0.093), (0.046, 0.066))
    body_mesh.box((-0.108, -0.092), (-0.045, 0.045), (-0.0125, 0.0125))  # the camera: seen from inside its faces are culled
    body_mesh.add_to(spec, hand, "hand", material="plain", rgba=WHITE)
    _contact(hand, "hand_upper_contact", mujoco.mjtGeom.mjGEOM_BOX, pos=[0, -0.002, 0.008], size=[0.0316, 0.102, 0.034])
    _contact(hand, "hand_lower_contact", mujoco.mjtGeom.mjGEOM_BOX, pos=[0, -0.002, 0.054], size=[0.018, 0.095, 0.012])
    hand.add_site(name="tcp", pos=[0, 0, 0.14])
    for name, sign in (("finger1", 1), ("finger2", -1)):
        finger = hand.add_body(name=f"panda_{name}", pos=[0, 0, 0.0584])
        finger.explicitinertial, finger.gravcomp = True, 1.0
        finger.mass, finger.ipos, finger.inertia = FINGER_MASS, [0, 0.012 * sign, 0.04], [1e-4, 1e-4, 2e-5]
        finger.add_joint(
            name=f"panda_{name}_joint",
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=[0, sign, 0],
            range=[0.0, FINGER_MAX],
            limited=True,
            solref_limit=SOLREF,
            armature=FINGER_ARMATURE,
        )
        add_finger_motor(spec, f"panda_{name}_joint")
        _finger_shapes(spec, finger, name, sign)
    # the gear constraint of the original: both fingers move alike
    spec.add_equality(
        name="fingers",
        type=mujoco.mjtEq.mjEQ_JOINT,
        objtype=mujoco.mjtObj.mjOBJ_JOINT,
        name1="panda_finger1_joint",
        name2="panda_finger2_joint",
        data=[0.0, 1.0] + [0.0] * (mujoco.mjNEQDATA - 2),
        solref=[0.02, 1.0],
    )


def _finger_shapes(spec: mujoco.MjSpec, finger: mujoco.MjsBody, name: str, sign: int) -> None:
    def section(y0: float, y1: float, z: float) -> np.ndarray:
        low, high = sorted((sign * y0, sign * y1))
        return np.array([(-0.0105, low, z), (0.0105, low, z), (0.0105, high, z), (-0.0105, high, z)])

    levels = (section(0.0039, 0.027, 0.0), section(0.0039, 0.024, 0.035), section(0.0039, 0.0068, 0.0964))
    mesh = MeshBuilder().hexahedron(levels[0], levels[1]).hexahedron(levels[1], levels[2])
    low, high = sorted((sign * 0.0009, sign * 0.0049))
    mesh.box((-0.0083, 0.0102), (low, high), (0.0707, 0.0957))
    mesh.add_to(spec, finger, name, material="plain", rgba=FINGER_GRAY)
    # the pads' collision hulls stand out: a 0.04 block stops the original's gripper at a width of 0.0407
    _contact(finger, f"{name}_pad", mujoco.mjtGeom.mjGEOM_BOX, pos=[0.0, sign * 0.00405, 0.0707], size=[0.0105, 0.0044, 0.0257])
    _contact(finger, f"{name}_root", mujoco.mjtGeom.mjGEOM_BOX, pos=[0.0, sign * 0.0135, 0.0225], size=[0.0105, 0.0096, 0.0225])
