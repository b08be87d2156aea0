"""The play table: static body, drawer, sliding door, switch, button and lights, for any of the four scenes.

Every link has one visual mesh per material and invisible boxes for contact; `contacts` says what they touch.
"""

import math

import mujoco
import numpy as np

from eval.calvin.rotations import quaternion_from_euler
from eval.calvin.scenes import BUTTON_MAX, DRAWER_FLOOR, DRAWER_MAX, SHELF_TOP, SWITCH_MAX, WOODS, Scene
from eval.envs.calvin_mujoco.contacts import CONTACT_GROUP, SOLREF
from eval.envs.calvin_mujoco.meshes import MeshBuilder, Range, disc
from eval.envs.calvin_mujoco.motors import add_motor

JOINT_FRICTION = 4.0  # N, Coulomb: the original holds these joints with a velocity motor of target 0 and at most 4 N
BUTTON_MASS = 0.1538  # kg
GRAY = (0.40, 0.40, 0.40, 1.0)
ROUND = 0.008  # m, how much the corners of handles are cut
SLOPE = math.radians(60.0)  # the cabinet's inclined front
FRICTION_SOLIMP = [0.9999, 0.9999, 0.001, 0.5, 2.0]


def _contact_box(body: mujoco.MjsBody, name: str, x: Range, y: Range, z: Range) -> None:
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        group=CONTACT_GROUP,
        contype=0,
        conaffinity=0,
        mass=0.0,
        pos=[(a + b) / 2 for a, b in (x, y, z)],
        size=[(b - a) / 2 for a, b in (x, y, z)],
    )


def _contact_cylinder(body: mujoco.MjsBody, name: str, start: tuple[float, ...], end: tuple[float, ...], radius: float) -> None:
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        fromto=[*start, *end],
        size=[radius, 0.0, 0.0],
        group=CONTACT_GROUP,
        contype=0,
        conaffinity=0,
        mass=0.0,
    )


def _contact_prism(spec: mujoco.MjSpec, body: mujoco.MjsBody, name: str, section: list[tuple[float, float]], x: Range) -> None:
    mesh = spec.add_mesh(name=name)
    mesh.uservert = [c for end in x for p in section for c in (end, *p)]
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_MESH,
        meshname=name,
        group=CONTACT_GROUP,
        contype=0,
        conaffinity=0,
        mass=0.0,
    )


def _link(parent: mujoco.MjsBody, name: str, pos: list[float], tilt: float, mass: float, centre: list[float]) -> mujoco.MjsBody:
    body = parent.add_body(name=name, pos=pos, quat=quaternion_from_euler(tilt, 0.0, 0.0))
    body.explicitinertial = True
    body.mass, body.ipos, body.inertia = mass, centre, [0.01 * mass] * 3
    return body


def _slide(body: mujoco.MjsBody, name: str, axis: list[float], travel: float, friction: float) -> None:
    """A prismatic joint; `axis` is in the link's frame."""
    body.add_joint(
        name=name,
        type=mujoco.mjtJoint.mjJNT_SLIDE,
        axis=axis,
        range=[0.0, travel],
        limited=True,
        frictionloss=friction,
        solref_friction=SOLREF,
        solimp_friction=FRICTION_SOLIMP,
        solref_limit=SOLREF,
        solimp_limit=[0.99, 0.999, 0.001, 0.5, 2.0],
    )


def add_button(spec: mujoco.MjSpec, scene: Scene) -> None:
    """The push button and the motor that returns it. Added before the other links: motors act on the leading joints."""
    body = _link(spec.worldbody, "button_link", [scene.button_x, -0.12, 0.46], math.pi / 2, BUTTON_MASS, [0.0, 0.012, 0.0])
    _slide(body, "base__button", [0.0, -1.0, 0.0], BUTTON_MAX, 0.0)
    add_motor(spec, "base__button", BUTTON_MASS, (-JOINT_FRICTION, JOINT_FRICTION), load=9.8 * BUTTON_MASS)
    MeshBuilder().tube((0, 0, 0), (0, 0.024, 0), 0.032, slices=16).add_to(spec, body, "button", material="plain", rgba=(0.0, 0.0, 0.0, 1))
    _contact_cylinder(body, "button_contact", (0, 0, 0), (0, 0.024, 0), 0.032)


def add_table(spec: mujoco.MjSpec, scene: Scene) -> None:
    """Everything of the table except the button."""
    _add_base(spec, scene)
    _add_door(spec, scene)
    _add_drawer(spec, scene)
    _add_switch(spec, scene)
    _add_lights(spec, scene)


def _tone(part: float) -> tuple[float, ...]:
    return (part, part, part, 1.0)


def _ordered(one: float, other: float) -> Range:
    return min(one, other), max(one, other)


def _add_base(spec: mujoco.MjSpec, scene: Scene) -> None:
    base = spec.worldbody.add_body(name="base_link")
    c0, c1 = scene.cavity
    d0, d1 = scene.drawer_x - 0.20, scene.drawer_x + 0.20
    boxes: dict[str, tuple[Range, Range, Range]] = {
        "top": ((-0.44, 0.44), (-0.18, 0.18), (0.40, 0.44)),
        "carcass_left": ((-0.42, d0), (-0.16, 0.16), (0.30, 0.40)),
        "carcass_right": ((d1, 0.42), (-0.16, 0.16), (0.30, 0.40)),
        "cabinet_back": ((c0, c1), (0.16, 0.18), (0.44, 0.6478)),
    }
    out_of_reach: dict[str, tuple[Range, Range, Range]] = {  # legs, and what the drawer always covers: nothing can touch them
        "carcass_back": ((d0, d1), (0.06, 0.16), (0.30, 0.40)),
        "carcass_floor": ((d0, d1), (-0.16, 0.06), (0.30, 0.32)),
    }
    out_of_reach |= {
        f"leg_{i}{j}": (_ordered(0.40 * i, 0.44 * i), _ordered(0.148 * j, 0.18 * j), (0.0, 0.40)) for i in (-1, 1) for j in (-1, 1)
    }
    wedge = [(0.02, 0.44), (0.18, 0.44), (0.18, 0.6478), (0.14, 0.6478)]
    roof = [(0.1285, 0.6278), (0.16, 0.6278), (0.16, 0.6478), (0.14, 0.6478)]
    wood, top = MeshBuilder(), MeshBuilder()
    for name, ranges in boxes.items():
        (top if name == "top" else wood).box(*ranges)
        _contact_box(base, f"base_{name}", *ranges)
    for ranges in out_of_reach.values():
        wood.box(*ranges)
    for name, x in (("left", (-0.44, c0)), ("right", (c1, 0.44))):
        wood.prism(wedge, x)
        _contact_prism(spec, base, f"base_cabinet_{name}", wedge, x)
    wood.prism(roof, (c0, c1))
    _contact_box(base, "base_roof", (c0, c1), (0.13, 0.16), (0.6278, 0.6478))
    p = scene.plank_x  # its top is flush with the work surface: drawn a hair above; its collision hull stands out by 1 mm
    plank = spec.worldbody.add_body(name="plank_link")
    wood.box((p - 0.26, p + 0.26), (0.02, 0.16), (0.435, 0.4402))
    _contact_box(plank, "plank", (p - 0.26, p + 0.26), (0.02, 0.16), (0.42, SHELF_TOP))
    # the button stands out of its rim even when pressed: a full disc does
    wood.loft([disc("z", z, (scene.button_x, -0.12), r) for z, r in ((0.44, 0.04), (0.46, 0.04), (0.46, 0.03), (0.44, 0.03))], closed=True)
    _contact_cylinder(base, "base_rim", (scene.button_x, -0.12, 0.44), (scene.button_x, -0.12, 0.46), 0.04)
    wood.add_to(spec, base, "base_wood", material="wood", rgba=_tone(WOODS[scene.wood].sides))
    top.add_to(spec, base, "work_surface", material="wood", rgba=_tone(WOODS[scene.wood].top))
    grooves = MeshBuilder()
    for side in (-0.05, 0.05):  # the switch's two slots, as dark inlays
        x0, x1 = scene.switch_x + side - 0.005, scene.switch_x + side + 0.005
        lift = 0.0015
        corners = [
            (x0, 0.057 - 0.866 * lift, 0.488 + 0.5 * lift + 0.0162),
            (x1, 0.057 - 0.866 * lift, 0.488 + 0.5 * lift + 0.0162),
            (x1, 0.117 - 0.866 * lift, 0.608 + 0.5 * lift),
            (x0, 0.117 - 0.866 * lift, 0.608 + 0.5 * lift),
        ]
        grooves.polygon(np.array(corners))
    grooves.add_to(spec, base, "base_grooves", material="wood", rgba=_tone(0.8))


def _add_door(spec: mujoco.MjSpec, scene: Scene) -> None:
    body = _link(spec.worldbody, "slide_link", [scene.slide_x, 0.075, 0.53526], SLOPE, 1.5435, [0.14, 0.0, 0.02])
    _slide(body, "base__slide", [-1.0, 0.0, 0.0], scene.slide_max, JOINT_FRICTION)
    panel = ((0.0, 0.28), (-0.11, 0.11), (0.0, 0.02))
    MeshBuilder().box(*panel).add_to(spec, body, "slide_panel", material="panel", rgba=_tone(WOODS[scene.panel_wood].door))
    _contact_box(body, "slide_panel_contact", *panel)
    handle = {
        "post_low": ((0.12, 0.16), (-0.08, -0.06), (0.02, 0.06)),
        "post_high": ((0.12, 0.16), (0.06, 0.08), (0.02, 0.06)),
        "bar": ((0.12, 0.16), (-0.08, 0.08), (0.06, 0.08)),
    }
    _add_handle(spec, body, "slide", handle, "yz")


def _add_drawer(spec: mujoco.MjSpec, scene: Scene) -> None:
    body = _link(spec.worldbody, "drawer_link", [scene.drawer_x, 0.0, 0.32], math.pi / 2, 4.2313, [0.0, 0.03, 0.06])
    _slide(body, "base__drawer", [0.0, 0.0, 1.0], DRAWER_MAX, JOINT_FRICTION)
    boxes: dict[str, tuple[Range, Range, Range]] = {
        "floor": ((-0.20, 0.20), (0.0, 0.02), (-0.06, 0.16)),
        "left": ((-0.20, -0.18), (0.0, 0.08), (-0.06, 0.16)),
        "right": ((0.18, 0.20), (0.0, 0.08), (-0.06, 0.16)),
        "back": ((-0.18, 0.18), (0.0, 0.08), (-0.06, -0.04)),
        "front": ((-0.22, 0.22), (-0.02, 0.08), (0.16, 0.18)),
    }
    wood, top = MeshBuilder(), MeshBuilder()
    for name, ranges in boxes.items():
        (top if name == "top" else wood).box(*ranges)
        x, y, z = ranges
        _contact_box(body, f"drawer_{name}", x, (0.0, DRAWER_FLOOR - 0.32) if name == "floor" else y, z)
    wood.add_to(spec, body, "drawer_wood", material="panel", rgba=_tone(WOODS[scene.panel_wood].drawer))
    handle = {
        "post_left": ((-0.12, -0.096), (0.02, 0.06), (0.18, 0.24)),
        "post_right": ((0.096, 0.12), (0.02, 0.06), (0.18, 0.24)),
        "bar": ((-0.12, 0.12), (0.02, 0.06), (0.24, 0.26)),
    }
    _add_handle(spec, body, "drawer", handle, "xz")


def _add_switch(spec: mujoco.MjSpec, scene: Scene) -> None:
    body = _link(spec.worldbody, "switch_link", [scene.switch_x, 0.06093, 0.49489], math.radians(150.0), 0.2388, [0.0, 0.04, -0.008])
    _slide(body, "base__switch", [0.0, 0.0, -1.0], SWITCH_MAX, JOINT_FRICTION)
    handle = {
        "post_left": ((-0.06, -0.04), (0.0, 0.044), (-0.024, 0.008)),
        "post_right": ((0.04, 0.06), (0.0, 0.044), (-0.024, 0.008)),
        "bar": ((-0.06, 0.06), (0.044, 0.064), (-0.024, 0.008)),
    }
    _add_handle(spec, body, "switch", handle, "xy")


def _add_handle(spec: mujoco.MjSpec, body: mujoco.MjsBody, name: str, boxes: dict[str, tuple[Range, Range, Range]], plane: str) -> None:
    """Two posts and a bar as boxes for contact, and one bent rod in the plane of two axes for the eye."""
    for part, ranges in boxes.items():
        _contact_box(body, f"{name}_{part}", *ranges)
    (along, out), (post, _, bar) = ("xyz".index(axis) for axis in plane), boxes.values()
    across = bar[3 - along - out]
    thickness, (near, far) = post[along][1] - post[along][0], (bar[out][0], bar[out][1])
    end, height = bar[along][1] - thickness / 2, (near + far) / 2
    path = [
        (-end, post[out][0]),
        (-end, height - ROUND),
        (-end + ROUND, height),
        (end - ROUND, height),
        (end, height - ROUND),
        (end, post[out][0]),
    ]
    half = (thickness / 2, 0.5 * (thickness / 2 + (far - near) / 2), (far - near) / 2)
    mesh = MeshBuilder().rod(path, [*half, half[1], half[0]], across, 0.3 * (far - near), (along, out))
    mesh.add_to(spec, body, f"{name}_handle", material="plain", rgba=GRAY)


def _add_lights(spec: mujoco.MjSpec, scene: Scene) -> None:
    base = spec.worldbody.add_body(name="lights")
    MeshBuilder().box((scene.led_x - 0.08, scene.led_x + 0.08), (0.14, 0.18), (0.6478, 0.6638)).add_to(spec, base, "led", material="plain")
    bulb = (scene.bulb_x, 0.16)
    sections = [(0.6478, 0.02), *((0.669 + 0.028 * math.sin(a), 0.028 * math.cos(a)) for a in np.radians([-30, 0, 25, 45, 65, 90]))]
    MeshBuilder().loft([disc("z", z, bulb, r) for z, r in sections]).add_to(spec, base, "bulb", material="plain")
