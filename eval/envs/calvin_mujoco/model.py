"""Assembles and compiles one scene; compiled scenes are cached."""

import dataclasses
import functools
import math
from typing import Literal

import mujoco
import numpy as np

from eval.calvin.scenes import WOODS, Scene, get_scene
from eval.envs.calvin_mujoco.blocks import STANDARD_ORDER, add_blocks
from eval.envs.calvin_mujoco.cameras import add_cameras
from eval.envs.calvin_mujoco.contacts import CONTACT_GROUP, add_contact_pairs
from eval.envs.calvin_mujoco.limits import MAX_IMAGE, QUALITIES
from eval.envs.calvin_mujoco.meshes import MeshBuilder, disc
from eval.envs.calvin_mujoco.motors import PHYSICS_STEP
from eval.envs.calvin_mujoco.panda import ARM_JOINTS, FINGER_JOINTS, add_panda, add_panda_motors
from eval.envs.calvin_mujoco.table import add_button, add_table
from eval.envs.calvin_mujoco.textures import checker_texture, wood_texture

Quality = Literal["no_shadows", "faithful"]
SUBSTEPS = 8
ROBOT_JOINTS = (*(f"panda_joint{number}" for number in range(1, ARM_JOINTS + 1)), *FINGER_JOINTS)
TABLE_JOINTS = ("base__button", "base__slide", "base__drawer", "base__switch")
LEADING_JOINTS = (*ROBOT_JOINTS, *TABLE_JOINTS, *(f"{joint}_drive" for joint in ROBOT_JOINTS))  # one coordinate each
# The original's light comes from far away, from SUN. A surface whose normal has the cosine c to it shows this part of its colour:
# 1/2 + (1 + c)/4 (LIT + (1 - LIT) v), where v is 1 in the light and 0 in shadow or on the far side. Without shadows
# v is c.
SUN = np.array([-5.0, -40.0, 200.0]) / np.linalg.norm([-5.0, -40.0, 200.0])
LIT = 0.7


@dataclasses.dataclass(frozen=True, eq=False)
class SceneModel:
    """A compiled scene and where its parts are."""

    scene: Scene
    quality: Quality
    model: mujoco.MjModel
    drives: int  # first dof of the motors' drives: arm 7, fingers 2
    slide: int  # qpos and dof index of each table joint (all joints before the blocks' have one dof)
    drawer: int
    button: int
    switch: int
    tcp: int
    led_geom: int
    bulb_geom: int
    blocks: dict[str, int]  # colour -> body; empty in a scene without blocks


@functools.lru_cache(maxsize=16)
def compile_scene(name: str, quality: str = "no_shadows", blocks: bool = True) -> SceneModel:
    """The compiled scene `name`; the same object for the same arguments. Environments share it and must not change it."""
    if quality not in QUALITIES:
        hint = " ('fast' is called 'no_shadows' since environment version 5)" if quality == "fast" else ""
        raise ValueError(f"quality must be {' or '.join(map(repr, QUALITIES))}, not {quality!r}{hint}")
    scene = get_scene(name)
    model = build_spec(scene, quality, blocks).compile()
    model.stat.extent = 1.0  # clip planes and the shadow's reach are multiples of it
    model.stat.center[:] = (0.0, 0.0, 0.4)
    index = {model.joint(i).name: model.joint(i).qposadr[0] for i in range(model.njnt)}
    names = [model.joint(i).name for i in range(len(LEADING_JOINTS))]
    if tuple(names) != LEADING_JOINTS:
        raise RuntimeError(f"the leading joints must be {', '.join(LEADING_JOINTS)}, not {', '.join(names)}")
    bodies = {colour: model.body(f"block_{colour}").id for colour in STANDARD_ORDER} if blocks else {}
    if list(bodies.values()) != list(range(model.nbody - len(bodies), model.nbody)):
        raise RuntimeError("the blocks must be the last bodies, in standard order")
    return SceneModel(
        scene,
        quality,
        model,
        int(index["panda_joint1_drive"]),
        int(index["base__slide"]),
        int(index["base__drawer"]),
        int(index["base__button"]),
        int(index["base__switch"]),
        model.site("tcp").id,
        model.geom("led").id,
        model.geom("bulb").id,
        bodies,
    )


def build_spec(scene: Scene, quality: Quality, blocks: bool = True) -> mujoco.MjSpec:
    """The scene as an editable MuJoCo specification."""
    spec = mujoco.MjSpec()
    spec.modelname = f"calvin_{scene.name}"
    spec.compiler.degree = False
    option = spec.option
    option.timestep, option.gravity = PHYSICS_STEP, [0.0, 0.0, -9.8]
    option.integrator, option.solver = mujoco.mjtIntegrator.mjINT_EULER, mujoco.mjtSolver.mjSOL_NEWTON
    option.iterations, option.ls_iterations, option.tolerance = 30, 20, 1e-9
    option.cone, option.impratio = mujoco.mjtCone.mjCONE_ELLIPTIC, 50.0  # a held block must not creep out of the fingers
    option.enableflags |= mujoco.mjtEnableBit.mjENBL_SLEEP  # what rests costs nothing until something touches it
    # Contacts are solved for undamped joints: integrating the motors' damping implicitly would let them fight, and grasps explode.
    option.disableflags |= mujoco.mjtDisableBit.mjDSBL_EULERDAMP
    option.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET  # a diverged state must be seen, not silently replaced
    _add_looks(spec, scene, quality)
    add_panda(spec)
    add_button(spec, scene)
    add_table(spec, scene)
    add_panda_motors(spec)
    add_cameras(spec)
    if blocks:
        add_blocks(spec, scene)
    add_contact_pairs(spec)
    return spec


def _add_looks(spec: mujoco.MjSpec, scene: Scene, quality: Quality) -> None:
    """Textures, materials, lights, floor, the robot's pedestal, and the render settings of `quality`."""
    visual = spec.visual
    visual.global_.offwidth = visual.global_.offheight = MAX_IMAGE
    visual.quality.offsamples = 0
    visual.quality.shadowsize = 1024 if quality == "faithful" else 0
    visual.map.znear, visual.map.zfar, visual.map.shadowclip = 0.01, 40.0, 1.2
    shade, shadow = LIT / 4, (1 - LIT) / 4
    visual.headlight.ambient = [0.5 + shade] * 3
    visual.headlight.diffuse = visual.headlight.specular = [0.0] * 3
    _add_sun(spec, "sun", SUN, diffuse=shade)
    _add_sun(spec, "far_side", -SUN, diffuse=-shade)  # negative: what it shines on is darker than what no light reaches
    if quality == "faithful":
        _add_sun(spec, "shadow_sun", SUN, diffuse=shadow, ambient=shadow, castshadow=True)
    else:
        _add_sun(spec, "shadow_sun", SUN, diffuse=2 * shadow)
    _texture(spec, "wood", wood_texture(WOODS[scene.wood], seed=1))
    _texture(spec, "panel", wood_texture(WOODS[scene.panel_wood], seed=2))
    _texture(spec, "floor", checker_texture(size=512))
    for name in ("wood", "panel", "floor"):
        material = spec.add_material(name=name, specular=0.0, shininess=0.0, reflectance=0.0)
        textures = material.textures
        textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
        material.textures = textures
    spec.add_material(name="plain", specular=0.0, shininess=0.0, reflectance=0.0)
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT,
        width=8,
        height=48,
        rgb1=[1, 1, 1],
        rgb2=[1, 1, 1],
    )
    corners = np.array([(-15.0, -15.0, 0.0), (15.0, -15.0, 0.0), (15.0, 15.0, 0.0), (-15.0, 15.0, 0.0)])
    MeshBuilder(texture_metres=1.0).polygon(corners).add_to(spec, spec.worldbody, "floor", material="floor")
    spec.worldbody.add_geom(
        name="floor_contact", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[20.0, 20.0, 1.0], group=CONTACT_GROUP, contype=0, conaffinity=0
    )
    outline = [(0.0, 0.13), (0.24, 0.13), (0.24, 0.065)]
    pedestal = MeshBuilder().loft([disc("z", z, (-0.39, -0.46), radius, slices=20) for z, radius in outline])
    pedestal.add_to(spec, spec.worldbody, "pedestal", material="plain", crease=math.pi)


def _add_sun(
    spec: mujoco.MjSpec, name: str, towards: np.ndarray, *, diffuse: float, ambient: float = 0.0, castshadow: bool = False
) -> None:
    spec.worldbody.add_light(
        name=name,
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        dir=(-towards).tolist(),
        pos=(np.array([0.0, -0.1, 0.4]) + 3 * towards).tolist(),
        ambient=[ambient] * 3,
        diffuse=[diffuse] * 3,
        specular=[0.0] * 3,
        castshadow=castshadow,
    )


def _texture(spec: mujoco.MjSpec, name: str, image: np.ndarray) -> None:
    spec.add_texture(
        name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, height=image.shape[0], width=image.shape[1], nchannel=3, data=image.ravel().tolist()
    )
