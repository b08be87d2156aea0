"""A Franka Panda with long fingers: exact kinematics, our own primitives for looks and contact.

Joint origins and limits are those of the CALVIN robot. The shapes are capsules, cylinders and frusta chosen to look like the real arm in
the two cameras; only wrist, hand and fingers take part in contacts.
"""

import math
from typing import Any

import mujoco
import numpy as np

from eval.calvin.rotations import quaternion_from_euler
from eval.calvin.situation import FINGER_MAX
from eval.envs.calvin_mujoco.cameras import GRIPPER_POSITION, GRIPPER_RIGHT, GRIPPER_UP
from eval.envs.calvin_mujoco.contacts import CONTACT_GROUP, SOLREF
from eval.envs.calvin_mujoco.meshes import MeshBuilder, disc, oval
from eval.envs.calvin_mujoco.motors import (
    ARM_TORQUE,
    CLOSING_FORCE,
    FINGER_STIFFNESS,
    GEAR_FORCE,
    GEAR_STIFFNESS,
    add_coupling,
    add_drive,
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
FINGER_JOINTS = ("panda_finger1_joint", "panda_finger2_joint")
FINGER_MASS = 0.1001
NEUTRAL_JOINTS = np.array([-1.21779206, 1.03987646, 2.11978261, -2.34205014, -0.87015947, 1.64119353, 0.55344866])
WHITE = (1.0, 1.0, 1.0, 1.0)
DARK = (0.50, 0.50, 0.54, 1.0)


def add_kinematics(spec: mujoco.MjSpec) -> tuple[mujoco.MjsBody, list[mujoco.MjsBody], mujoco.MjsBody]:
    """Adds the chain of bodies to the world, with the arm's joints and the TCP site, without masses, motors, fingers and shapes.

    Returns: base, the seven links, hand.
    """
    base = spec.worldbody.add_body(name="panda_link0", pos=list(BASE_POSITION))
    body, links = base, []
    for number, (origin, roll) in enumerate(JOINT_ORIGINS, 1):
        body = body.add_body(name=f"panda_link{number}", pos=list(origin), quat=quaternion_from_euler(roll, 0.0, 0.0))
        body.add_joint(name=f"panda_joint{number}", type=mujoco.mjtJoint.mjJNT_HINGE, axis=[0, 0, 1])
        links.append(body)
    hand = body.add_body(name="panda_hand", pos=[0, 0, 0.107], quat=quaternion_from_euler(0.0, 0.0, -math.pi / 4))
    hand.add_site(name="tcp", pos=[0, 0, 0.14])
    return base, links, hand


def add_panda(spec: mujoco.MjSpec) -> None:
    """Adds the arm, hand, fingers, TCP site and gripper camera frame to the world body."""
    base, links, hand = add_kinematics(spec)
    foot = oval("z", 0.0, (-0.154, 0.0716), (-0.0945, 0.0945), power=2.6)
    MeshBuilder().loft([foot, disc("z", 0.14, (0.0, 0.0), 0.0557)]).add_to(spec, base, "link0", material="plain", rgba=WHITE)
    for i, body in enumerate(links):
        body.explicitinertial, body.gravcomp = True, 1.0
        mass = LINK_MASSES[i]
        body.mass, body.ipos, body.inertia = mass, list(_CENTRES[i]), [0.006 * mass + 0.002] * 3
        joint = body.joints[0]
        joint.range, joint.limited = HARD_LIMITS[i].tolist(), True
        for name, mesh, rgba in _link_meshes(i + 1):
            mesh.add_to(spec, body, name, material="plain", rgba=rgba)
    _contact(links[-1], "link7_contact", mujoco.mjtGeom.mjGEOM_CAPSULE, fromto=[0, 0, 0.02, 0, 0, 0.09], size=[0.045, 0, 0])
    _add_hand(spec, hand)


def add_panda_motors(spec: mujoco.MjSpec) -> None:
    """Adds the motors of arm and fingers, and the fingers' gears. Added after the table: its joints precede the drives."""
    for number in range(1, ARM_JOINTS + 1):
        add_drive(spec, f"panda_joint{number}", mujoco.mjtJoint.mjJNT_HINGE, ARM_TORQUE)
    for joint in FINGER_JOINTS:
        add_drive(spec, joint, mujoco.mjtJoint.mjJNT_SLIDE, CLOSING_FORCE, FINGER_STIFFNESS)
    add_coupling(spec, "panda_gears", *FINGER_JOINTS, GEAR_FORCE, GEAR_STIFFNESS)


def _contact(body: mujoco.MjsBody, name: str, kind: mujoco.mjtGeom, **shape: Any) -> None:
    body.add_geom(name=name, type=kind, group=CONTACT_GROUP, contype=0, conaffinity=0, mass=0.0, **shape)


_CENTRES = ((0, 0.02, -0.07), (0, -0.07, 0.02), (0.03, 0.03, -0.06), (-0.03, 0.05, 0.02), (0, 0.03, -0.12), (0.05, 0, 0), (0, 0, 0.07))


def _link_meshes(link: int) -> list[tuple[str, MeshBuilder, tuple[float, ...]]]:
    """White body and dark trim of one arm link, in its own frame (z is the joint's axis)."""
    white, dark = MeshBuilder(), MeshBuilder()
    if link == 1:
        white.loft([oval("z", z, (-0.055, 0.055), (low, high)) for z, low, high in _ELBOW])
        white.loft([disc("y", y, (0.0, 0.0), radius) for y, radius in _DOME])
    elif link == 2:  # the same, turned
        white.loft([oval("y", y, (-high, -low), (-0.055, 0.055)) for y, low, high in _ELBOW])
        white.loft([disc("z", -z, (0.0, 0.0), radius) for z, radius in reversed(_DOME)])
    elif link == 3:
        white.loft([oval("z", z, x, (-y, y)) for z, x, y in _ELBOW_3])
        white.tube((0.02, 0.0, -0.045), (0.0825, 0.025, 0.0), 0.048, 0.05)
        white.loft([disc("y", y, (0.0, 0.0825), r) for y, r in ((0.0005, 0.055), (0.06, 0.0515))])
        white.loft([disc("y", y, (0.0, 0.0825), r) for y, r in _CAP])
        dark.loft([disc("y", y, (0.0, 0.0825), r) for y, r in _COLLAR])
    elif link == 4:
        white.loft([disc("z", z, (0.0, 0.0), r) for z, r in ((0.0005, 0.055), (0.06, 0.0515))])
        white.loft([oval("y", y, (-z, z), x) for y, x, z in _ELBOW_4])
        white.loft([disc("z", z, (0.0, 0.0), r) for z, r in _CAP])
        dark.loft([disc("z", z, (0.0, 0.0), r) for z, r in _COLLAR])
    elif link == 5:
        white.loft([oval("z", z, (-w, w), y, power=p) for z, w, y, p in _FOREARM])
        white.loft([disc("y", y, (0.0, 0.0), 0.0479) for y in (0.0158, 0.09)])
        white.loft([oval("z", z, (-w, w), y, power=p) for z, w, y, p in _FOREARM_FACE])
        dark.loft([oval("z", z, (-w, w), y, power=p) for z, w, y, p in _FOREARM_COVER])
    elif link == 6:
        white.loft([oval("x", x, y, z, power=p) for x, y, z, p in _WRIST_NECK])
        tip = oval("y", 0.0717, (-0.036, 0.036), (0.05, 0.124), power=2.2)
        tip[:, 1] -= 0.2 * (tip[:, 0] - 0.088)  # the buttons face the arm
        white.loft([*(disc("y", y, (0.0, 0.0882), r) for y, r in _WRIST), tip])
        face = tip.mean(0) + np.array([0.0, 0.004, 0.0])
        dark.loft([tip, face + 0.95 * (tip - tip.mean(0))])
        dark.loft([oval("z", z, x, (-y, y), power=2.3, lean=0.06) for z, x, y in _WRIST_COVER])
        white.loft(
            [oval("z", z, x, (-y, y), power=2.4) for z, x, y in ((0.055, (-0.022, 0.051), 0.0255), (0.0564, (-0.018, 0.047), 0.023))]
        )
        dark.loft([disc("z", z, (0.0, 0.0), 0.0163) for z in (0.056, 0.0568)])
    else:
        white.loft(_flange_rings())
    meshes = [(f"link{link}", white, WHITE)]
    if link in (3, 4, 5, 6):
        meshes.append((f"link{link}_trim", dark, DARK))
    return meshes


# Links 1 and 2 are elbows: a pipe (height, its range in the plane of the elbow) that ends in a drum with a dome (height, radius)
_ELBOW = ((-0.192, -0.055, 0.055), (-0.15, -0.056, 0.055), (-0.1, -0.0646, 0.0371), (-0.07, -0.0816, -0.002), (-0.04, -0.112, -0.0005))
_DOME = ((-0.1294, 0.008), (-0.125, 0.0225), (-0.115, 0.036), (-0.1, 0.0482), (-0.08, 0.0535), (-0.06, 0.055), (-0.0005, 0.055))
# Links 3 and 4: pipes (height, range along x, half width), and the dark collar and white cap at the end of their drums (height, radius)
_ELBOW_3 = (
    (-0.121, (-0.055, 0.055), 0.055),
    (-0.09, (-0.0535, 0.0552), 0.0535),
    (-0.06, (-0.0496, 0.0672), 0.0496),
    (-0.03, (-0.03, 0.1), 0.041),
)
_ELBOW_4 = (
    (0.0, (-0.095, 0.03), 0.034),
    (0.03, (-0.1232, 0.02), 0.0407),
    (0.06, (-0.1321, -0.0153), 0.0496),
    (0.09, (-0.136, -0.0273), 0.0535),
    (0.124, (-0.1375, -0.0275), 0.055),
)
_COLLAR = ((0.058, 0.0525), (0.07, 0.0517), (0.08, 0.0497), (0.09, 0.0468), (0.1, 0.0378))
_CAP = ((0.1, 0.0346), (0.107, 0.024), (0.111, 0.011))

# Outlines of the white body of link 5 from its joint 5 end to the wrist, of the white face of its cover, and of the cover itself:
# z, half width along x, range along y, power (see `oval`)
_FOREARM = (
    (-0.259, 0.055, (-0.055, 0.055), 2.0),
    (-0.23, 0.0536, (-0.0535, 0.0605), 2.0),
    (-0.21, 0.0507, (-0.0502, 0.0722), 2.2),
    (-0.19, 0.0462, (-0.036, 0.0864), 2.4),
    (-0.17, 0.0391, (-0.0015, 0.0924), 2.5),
    (-0.15, 0.0336, (0.0447, 0.0955), 2.8),
    (-0.13, 0.0310, (0.0620, 0.0990), 3.0),
    (-0.09, 0.0308, (0.0702, 0.1050), 3.0),
    (-0.055, 0.0315, (0.0754, 0.1100), 3.0),
    (-0.03, 0.0390, (0.060, 0.1000), 2.5),
)
_FOREARM_FACE = (
    (-0.185, 0.013, (0.070, 0.0886), 2.5),
    (-0.13, 0.016, (0.080, 0.1022), 2.5),
    (-0.07, 0.0175, (0.090, 0.1122), 2.5),
    (-0.05, 0.021, (0.090, 0.1168), 2.5),
    (-0.02, 0.030, (0.090, 0.1266), 2.5),
    (0.0, 0.032, (0.090, 0.1300), 2.5),
    (0.02, 0.029, (0.090, 0.1283), 2.5),
    (0.033, 0.016, (0.090, 0.1225), 2.5),
)
_FOREARM_COVER = (
    (-0.213, 0.008, (0.070, 0.0750), 2.5),
    (-0.2, 0.0259, (0.0734, 0.0847), 2.5),
    (-0.17, 0.0313, (0.0787, 0.0934), 2.8),
    (-0.13, 0.0312, (0.0858, 0.1014), 3.0),
    (-0.07, 0.0313, (0.0960, 0.1110), 3.0),
    (-0.05, 0.0330, (0.0963, 0.1150), 3.0),
    (-0.03, 0.0411, (0.0911, 0.1200), 3.0),
    (0.0, 0.0504, (0.0816, 0.1260), 3.0),
    (0.03, 0.0419, (0.0717, 0.1247), 2.6),
    (0.045, 0.0250, (0.0720, 0.1100), 2.4),
    (0.052, 0.0080, (0.0720, 0.0920), 2.2),
)
# Link 6 from joint 6 (along z at the origin) to joint 7 (along y at x = 0.088): x, ranges along y and z, power; y and radius of the
# cylinder; z, range along x, half width along y of the dark cover
_WRIST_NECK = (
    (-0.0478, (-0.008, 0.008), (-0.0148, 0.030), 3.0),
    (-0.04, (-0.0262, 0.0262), (-0.0148, 0.0344), 5.0),
    (-0.02, (-0.0434, 0.0434), (-0.0148, 0.0375), 6.0),
    (0.0, (-0.0478, 0.0505), (-0.0148, 0.039), 6.0),
    (0.02, (-0.0455, 0.0585), (-0.0148, 0.0405), 5.0),
    (0.04, (-0.0420, 0.0692), (-0.0175, 0.0420), 4.0),
    (0.05, (-0.0450, 0.0763), (-0.0226, 0.0430), 3.5),
    (0.06, (-0.0512, 0.0770), (-0.0340, 0.0430), 3.5),
    (0.07, (-0.0512, 0.0740), (-0.0390, 0.0410), 3.0),
)
_WRIST = ((-0.0512, 0.044), (-0.045, 0.0433), (-0.03, 0.0401), (-0.01, 0.0434), (0.01, 0.0438), (0.04, 0.0417), (0.055, 0.0396))
_WRIST_COVER = (
    (0.0330, (-0.0478, 0.0620), 0.0436),
    (0.0400, (-0.0440, 0.0640), 0.0415),
    (0.0450, (-0.0370, 0.0620), 0.0380),
    (0.0500, (-0.0290, 0.0575), 0.0330),
    (0.0548, (-0.0215, 0.0500), 0.0280),
)


def _flange_rings() -> list[np.ndarray]:
    """Link 7: a flat drum whose side stands out towards the hand's +y, the diagonal of x and y here."""
    angles = 2 * np.pi * (np.arange(24) + 0.5) / 24
    direction = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    along, side = direction @ [0.5**0.5, 0.5**0.5], np.abs(direction @ [0.5**0.5, -(0.5**0.5)])

    def ring(z: float, radius: float, reach: float) -> np.ndarray:
        box = np.minimum(reach / np.maximum(along, 1e-6), 0.95 * radius / np.maximum(side, 1e-6))  # distance to a box's outline
        distance = np.where(along > 0, np.maximum(radius, box), radius)
        return np.concatenate([direction * distance[:, None], np.full((24, 1), z)], axis=1)

    return [ring(0.052, 0.044, 0.0), ring(0.08, 0.044, 0.087), ring(0.095, 0.044, 0.085), ring(0.1068, 0.033, 0.0)]


def _add_hand(spec: mujoco.MjSpec, hand: mujoco.MjsBody) -> None:
    hand.explicitinertial, hand.gravcomp = True, 1.0
    hand.mass, hand.ipos, hand.inertia = 0.81 + 0.2, [-0.02, 0, 0.03], [0.004, 0.003, 0.003]  # with the camera
    _hand_shapes(spec, hand)
    _contact(hand, "hand_upper_contact", mujoco.mjtGeom.mjGEOM_BOX, pos=[0, -0.002, 0.008], size=[0.0316, 0.102, 0.034])
    _contact(hand, "hand_lower_contact", mujoco.mjtGeom.mjGEOM_BOX, pos=[0, -0.002, 0.054], size=[0.018, 0.095, 0.012])
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
            solref_limit=[SOLREF[0], 4.0],  # what closed fingers sink into their stop must not throw them open
            solimp_limit=[0.99, 0.999, 0.001, 0.5, 2.0],
        )
        _finger_shapes(spec, finger, name, sign)


def _hand_shapes(spec: mujoco.MjSpec, hand: mujoco.MjsBody) -> None:
    white, dark = MeshBuilder(), MeshBuilder()
    white.loft([oval("z", z, (-x, x), (-y, y), power=7.0, slices=24) for z, x, y in _HAND])
    white.loft(
        [
            oval("z", z, (-x, x), (0.027, y), power=7.0)
            for z, x, y in ((-0.007, 0.0270, 0.084), (0.0, 0.0286, 0.0905), (0.004, 0.026, 0.093))
        ]
    )
    white.box((-0.018, 0.018), (-0.096, -0.027), (-0.007, 0.004)).loft([disc("z", z, (0.0, 0.0), 0.0313) for z in (-0.0025, 0.0101)])
    dark.loft([oval("z", z, (-x, x), (-0.072, 0.072), power=20.0) for z, x in ((0.0160, 0.0243), (0.0220, 0.0236))])
    dark.tube((0.0, -0.089, -0.0205), (0.0, -0.0455, -0.0205), 0.0055, slices=8)
    camera, up, forward = np.array(GRIPPER_POSITION), GRIPPER_UP, np.cross(GRIPPER_UP, GRIPPER_RIGHT)
    corners = [camera + 0.04 * i * GRIPPER_RIGHT + 0.005 * j * up for i, j in ((-1, -1), (-1, 1), (1, 1), (1, -1))]
    white.loft([np.array(corners) + 0.0125 * k * forward for k in (-1, 1)])  # the camera looks through it: faces are culled from inside
    white.add_to(spec, hand, "hand", material="plain", rgba=WHITE)
    dark.add_to(spec, hand, "hand_trim", material="plain", rgba=DARK)


_HAND = (  # z, half widths
    (0.0, 0.0180, 0.0860),
    (0.005, 0.0254, 0.0934),
    (0.02, 0.0234, 0.0973),
    (0.04, 0.0211, 0.0998),
    (0.055, 0.0190, 0.1002),
    (0.062, 0.0176, 0.0980),
    (0.066, 0.0145, 0.0920),
)


def _finger_shapes(spec: mujoco.MjSpec, finger: mujoco.MjsBody, name: str, sign: int) -> None:
    mesh = MeshBuilder()
    for section, x in _FINGER:
        corners = section if sign > 0 else [(-y, z) for y, z in reversed(section)]
        mesh.prism(corners, x if sign > 0 else (-x[1], -x[0]))
    low, high = sorted((sign * 0.0009, sign * 0.0049))
    mesh.box((-0.0083, 0.0102), (low, high), (0.0707, 0.0957))
    mesh.add_to(spec, finger, name, material="plain", rgba=WHITE)
    for part, points in (("pad", _pad()), ("hull", _hull())):
        hull = spec.add_mesh(name=f"{name}_{part}")
        hull.uservert = (points * [sign, sign, 1.0]).ravel().tolist()
        _contact(finger, f"{name}_{part}", mujoco.mjtGeom.mjGEOM_MESH, meshname=f"{name}_{part}")


def _pad() -> np.ndarray:
    """The pad's shape in contacts, a shallow dome: points [n 3] of its convex hull."""
    angles = (np.arange(16) + 0.5) * np.pi / 8
    points = []
    for y, (x0, x1), (z0, z1), power in _PAD:
        direction = np.stack([np.cos(angles), np.sin(angles)], 1)
        outline = direction * (np.abs(direction) ** power).sum(1, keepdims=True) ** (-1.0 / power)
        x, z = (0.5 * ((high + low) + (high - low) * outline[:, i]) for i, (low, high) in enumerate(((x0, x1), (z0, z1))))
        points.append(np.stack([x, np.full(16, y), z], 1))
    return np.concatenate(points)


def _hull() -> np.ndarray:
    """The finger's shape in contacts: points [n 3] of its convex hull."""
    return np.array([(x, y, z) for z, half, outer in _HULL for x in (-half, half) for y in (0.0039, outer)])


# Outlines of the pad from the top of its dome down: distance from the middle of the hand, ranges along x and z, exponent (2: an oval)
_PAD = (
    (0.0009, (-0.0019, 0.0038), (0.0773, 0.0887), 2.0),
    (0.0014, (-0.0046, 0.0062), (0.0746, 0.0918), 2.0),
    (0.0019, (-0.0062, 0.0081), (0.0728, 0.0936), 2.0),
    (0.0024, (-0.0074, 0.0090), (0.0713, 0.0949), 2.5),
    (0.0029, (-0.0082, 0.0100), (0.0708, 0.0956), 4.0),
    (0.0049, (-0.0083, 0.0102), (0.0707, 0.0957), 4.0),
)
# The finger from its root to its rounded tip: height, half width, outer side
_HULL = (
    (0.0, 0.0105, 0.0270),
    (0.0345, 0.0105, 0.0215),
    (0.0650, 0.0105, 0.0143),
    (0.0906, 0.0088, 0.0082),
    (0.0937, 0.0077, 0.0074),
    (0.0964, 0.0055, 0.0068),
)
# The longer finger from its root to its tip: convex (y, z) sections, counter-clockwise, and their ranges along x
_FINGER = (
    (((0.0027, 0.0), (0.0285, 0.0), (0.0285, 0.0035), (0.0027, 0.0035)), (-0.0097, 0.0114)),
    (((0.0125, 0.0035), (0.0265, 0.0035), (0.0265, 0.0190), (0.0125, 0.0190)), (-0.0097, 0.0112)),
    (((0.0185, 0.0190), (0.0265, 0.0190), (0.0155, 0.0370), (0.0090, 0.0365)), (-0.0090, 0.0104)),
    (((0.0035, 0.0365), (0.0152, 0.0365), (0.0147, 0.0530), (0.0035, 0.0530)), (-0.0091, 0.0105)),
    (((0.0036, 0.0530), (0.0114, 0.0530), (0.0090, 0.0700), (0.0077, 0.0800), (0.0058, 0.0900), (0.0042, 0.0961)), (-0.0084, 0.0100)),
)
