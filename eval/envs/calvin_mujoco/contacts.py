"""Contact pairs with their friction, and current contacts.

The original multiplies the friction coefficients of two touching bodies, MuJoCo would take the larger one: every pair that may touch is
therefore listed explicitly, with the product. Parts of the table never touch each other, nor does the robot touch itself (links of one
body in the original). As in the original, contacts are reported up to a separation of REPORTED.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import NamedTuple

import mujoco
import numpy as np

CONTACT_GROUP = 3  # of shapes that take part in contacts and are not drawn
# Up to this separation contacts are reported [m]; in the original a block 0.5 mm above the table counts as touching it, one at 1 mm does
# not, and two blocks count only when they do touch.
REPORTED, REPORTED_BETWEEN_BLOCKS = 0.00055, 0.00002
FINGER_MARGIN = (
    0.0014  # m by which the fingers' hulls stand out, so that a 0.04 block stops them at a width of 0.040 (the original: 0.0407)
)
# As stiff as a step of 1/240 s allows, a time constant of twice the step, and slow to give up what has sunk in (the second number): 8 % per
# step, as the original's fingers do. At 1, a quarter per step, it throws things apart.
SOLREF = [2.0 / 240.0, 1.75]
SOLIMP = [0.95, 0.99, 0.001, 0.5, 2.0]
GRIP_SOLIMP = [0.96, 0.995, 0.0005, 0.5, 2.0]
# Resistance to turning about the contact's normal [m], the original's spinning friction: coefficients of one times friction of the other
PAD_TORSION, FINGER_TORSION = 0.0017, 0.071


class Touchable(NamedTuple):
    """The (body, link) of a shape as predicates name it, and its friction coefficient."""

    body: str
    link: str
    friction: float


BODIES: dict[str, Touchable] = {
    "world": Touchable("floor", "", 1.0),
    "base_link": Touchable("table", "base_link", 0.5),
    "plank_link": Touchable("table", "plank_link", 0.5),
    "slide_link": Touchable("table", "slide_link", 0.5),
    "drawer_link": Touchable("table", "drawer_link", 0.5),
    "switch_link": Touchable("table", "switch_link", 0.5),
    "button_link": Touchable("table", "button_link", 0.5),
    "panda_link7": Touchable("robot", "link7", 0.5),
    "panda_hand": Touchable("robot", "hand", 0.5),
    "panda_finger1": Touchable("robot", "finger1", 1.0),
    "panda_finger2": Touchable("robot", "finger2", 1.0),
    "block_red": Touchable("red", "block", 0.7),
    "block_blue": Touchable("blue", "block", 0.7),
    "block_pink": Touchable("pink", "block", 0.7),
}
FIXED = ("floor", "table", "robot")  # everything else is a block


def add_contact_pairs(spec: mujoco.MjSpec) -> None:
    """Adds every pair of shapes that may touch; all bodies must be in the spec already."""
    shapes = [(geom.name, BODIES[geom.parent.name]) for geom in spec.geoms if geom.group == CONTACT_GROUP]
    for (name1, one), (name2, two) in itertools.combinations(shapes, 2):
        if one.body == two.body or {one.body, two.body} == {"floor", "table"}:
            continue
        blocks = [t.body not in FIXED for t in (one, two)]
        finger = any(t.link.startswith("finger") for t in (one, two))
        grip = finger and any(blocks)
        friction = one.friction * two.friction
        torsion = PAD_TORSION if any(name.endswith("_pad") for name in (name1, name2)) else FINGER_TORSION
        spec.add_pair(
            geomname1=name1,
            geomname2=name2,
            condim=4 if grip else 3,
            friction=[friction, friction, torsion, 0.0001, 0.0001],
            solref=SOLREF,
            solreffriction=SOLREF,
            solimp=GRIP_SOLIMP if grip else SOLIMP,
            margin=FINGER_MARGIN if finger else 0.0,
            gap=REPORTED_BETWEEN_BLOCKS if all(blocks) else REPORTED,
        )


Touch = tuple[str, str]  # (body, link)


class Touches:
    """The current contacts of one simulation.

    MuJoCo does not list contacts among sleeping bodies. While something sleeps, contacts are therefore computed in a second simulation,
    which gets the positions and never steps, so that nothing sleeps in it.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self._model, self._data, self._wakeful = model, data, mujoco.MjData(model)
        self._positions, self._wakeful_positions = data.qpos, self._wakeful.qpos

    def now(self) -> Mapping[str, frozenset[Touch]]:
        """Body -> the (body, link) it touches in the state evaluated last; for the robot, the table and every block."""
        data = self._data
        if data.ntree_awake < self._model.ntree:
            data = self._wakeful
            np.copyto(self._wakeful_positions, self._positions)
            mujoco.mj_kinematics(self._model, data)
            mujoco.mj_collision(self._model, data)
        return _contact_sets(self._model, data.contact.geom.tobytes())


@functools.lru_cache(maxsize=64)
def _owners(model: mujoco.MjModel) -> list[Touchable]:
    """The owner of every geom of a compiled model; for geoms that touch nothing, any."""
    return [BODIES.get(model.body(int(body)).name, BODIES["world"]) for body in model.geom_bodyid]


@functools.lru_cache(maxsize=4096)
def _contact_sets(model: mujoco.MjModel, geoms: bytes) -> Mapping[str, frozenset[Touch]]:
    """What touches what when these pairs of geoms [n 2] int32 touch. From one control step to the next they are mostly the same."""
    owners = _owners(model)
    found: dict[str, set[Touch]] = {}
    for one, two in np.frombuffer(geoms, np.int32).reshape(-1, 2).tolist():
        a, b = owners[one], owners[two]
        found.setdefault(a.body, set()).add(b[:2])
        found.setdefault(b.body, set()).add(a[:2])
    return {body: frozenset(touches) for body, touches in found.items()}
