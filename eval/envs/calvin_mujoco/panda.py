"""A Franka Panda with long fingers: exact kinematics, our own primitives for looks and contact.

Joint origins and limits are those of the CALVIN robot. The shapes are capsules, cylinders and frusta chosen to look like the real arm in
the two cameras; only wrist, hand and fingers take part in contacts.
"""

import math

import mujoco
import numpy as np

from eval.calvin.rotations import quaternion_from_euler
from eval.calvin.situation import FINGER_MAX
from eval.envs.calvin_mujoco.cameras import GRIPPER_POSITION, GRIPPER_RIGHT, GRIPPER_UP
from eval.envs.calvin_mujoco.contacts import CONTACT_GROUP, SOLREF
from eval.envs.calvin_mujoco.meshes import MeshBuilder, disc, oval
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
WHITE = (1.0, 1.0, 1.0, 1.0)
DARK = (0.50, 0.50, 0.54, 1.0)


def add_panda(spec: mujoco.MjSpec) -> None:
    """Adds the arm, hand, fingers, TCP site and gripper camera frame to the world body."""
    base = spec.worldbody.add_body(name="panda_link0", pos=list(BASE_POSITION))
    foot = oval("z", 0.0, (-0.154, 0.0716), (-0.0945, 0.0945), power=2.6)
    MeshBuilder().loft([foot, disc("z", 0.14, (0.0, 0.0), 0.0557)]).add_to(spec, base, "link0", material="plain", rgba=WHITE)
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


def _add_hand(spec: mujoco.MjSpec, flange_parent: mujoco.MjsBody) -> None:
    hand = flange_parent.add_body(name="panda_hand", pos=[0, 0, 0.107], quat=quaternion_from_euler(0.0, 0.0, -math.pi / 4))
    hand.explicitinertial, hand.gravcomp = True, 1.0
    hand.mass, hand.ipos = LINK_WEIGHT * (0.81 + 0.2), [-0.02, 0, 0.03]
    hand.inertia = [LINK_WEIGHT * moment for moment in (0.004, 0.003, 0.003)]
    _hand_shapes(spec, hand)
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
    # the pads' collision hulls stand out: a 0.04 block stops the original's gripper at a width of 0.0407
    _contact(finger, f"{name}_pad", mujoco.mjtGeom.mjGEOM_BOX, pos=[0.0, sign * 0.00405, 0.0707], size=[0.0105, 0.0044, 0.0257])
    _contact(finger, f"{name}_root", mujoco.mjtGeom.mjGEOM_BOX, pos=[0.0, sign * 0.0135, 0.0225], size=[0.0105, 0.0096, 0.0225])


# The longer finger from its root to its tip: convex (y, z) sections, counter-clockwise, and their ranges along x
_FINGER = (
    (((0.0027, 0.0), (0.0285, 0.0), (0.0285, 0.0035), (0.0027, 0.0035)), (-0.0097, 0.0114)),
    (((0.0125, 0.0035), (0.0265, 0.0035), (0.0265, 0.0190), (0.0125, 0.0190)), (-0.0097, 0.0112)),
    (((0.0185, 0.0190), (0.0265, 0.0190), (0.0155, 0.0370), (0.0090, 0.0365)), (-0.0090, 0.0104)),
    (((0.0035, 0.0365), (0.0152, 0.0365), (0.0147, 0.0530), (0.0035, 0.0530)), (-0.0091, 0.0105)),
    (((0.0036, 0.0530), (0.0114, 0.0530), (0.0090, 0.0700), (0.0077, 0.0800), (0.0058, 0.0900), (0.0042, 0.0961)), (-0.0084, 0.0100)),
)
