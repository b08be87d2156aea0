"""The dataset registry: one description per known dataset.

CALVIN's rows are defined here, those of Open X-Embodiment are derived from `data_pipelines.openx.table`, which composes actions and states
of several columns into one common layout. A dataset of one's own needs no row: a file describes it (`data_pipelines.openx.robots`).
"""

from dataclasses import replace

from data_pipelines.errors import DataError
from data_pipelines.openx.conventions import ACTION_WIDTH, PROPRIO_WIDTH, ActionEncoding, Gripper, Proprio
from data_pipelines.openx.robot_spec import RobotSpec
from data_pipelines.openx.table import OPENX, OpenXDataset
from data_pipelines.rlds.schema import ALL_INSTRUCTIONS, LANGUAGE_INSTRUCTION
from vpp_jax.common.errors import nearest


def _openx_spec(row: OpenXDataset) -> RobotSpec:
    """The row as a RobotSpec. End-effector deltas are normalised to mean 0 and standard deviation 1, the gripper is not, as in Octo."""
    cameras = {role: f"observation/{key}" for role, key in row.cameras.items()}
    view = next(iter(cameras), "")
    unsupported = {}
    if not cameras:
        unsupported["cameras"] = row.notes
    if row.action is not ActionEncoding.EEF_DELTA:
        unsupported["action"] = f"not an end-effector delta: {row.action.value}"
    if row.gripper_convention is Gripper.UNKNOWN:
        unsupported["gripper"] = "not documented"
    if row.proprio in (Proprio.UNKNOWN, Proprio.JOINT_BIMANUAL):
        unsupported["proprio"] = f"not in the common layout: {row.proprio.value}"
    if row.control_hz is None:
        unsupported["control_hz"] = "not documented"
    return RobotSpec(
        name=row.name,
        cameras=cameras,
        clip_views={view: 1.0} if view else {},
        policy_views=(view,) if view else (),
        action=str(row.composition or "action"),
        action_width=ACTION_WIDTH,
        normalization="mean_std",
        normalized=(True,) * (ACTION_WIDTH - 1) + (False,),
        control_hz=row.control_hz,
        proprio=str(row.proprio_composition),
        proprio_width=PROPRIO_WIDTH,
        instruction_keys=(row.instruction,),
        clip_sampling=row.clip_sampling,
        first_step=row.first_step,
        episode_filter=row.episode_filter,
        bgr_cameras=tuple(f"observation/{key}" for key in row.bgr_cameras),
        unsupported=unsupported,
        unverified=dict(row.unverified),
        notes=row.notes,
    )


# Columns of a row that stage video and stage policy need.
CLIP_COLUMNS = ("cameras", "instruction")
POLICY_COLUMNS = (*CLIP_COLUMNS, "action", "gripper", "proprio", "control_hz")

_CALVIN = RobotSpec(
    name="calvin_mujoco",
    cameras={"primary": "observation/rgb_static", "wrist": "observation/rgb_gripper"},
    clip_views={"primary": 0.75, "wrist": 0.25},
    policy_views=("primary", "wrist"),
    action="action",
    action_width=7,
    normalization="none",
    control_hz=30.0,
    proprio="observation/robot_obs",
    proprio_width=15,
    signed_dimensions=(6,),
    units=("2 cm", "0.05 rad"),
    notes="action: relative xyz/0.02 m, euler/0.05 rad, gripper +-1; already in [-1, 1], so it is not normalised",
)

REGISTRY: dict[str, RobotSpec] = {
    spec.name: spec
    for spec in (
        _CALVIN,
        replace(
            _CALVIN,
            name="calvin",
            instruction_keys=(ALL_INSTRUCTIONS, LANGUAGE_INSTRUCTION),
            notes="the recorded dataset as converted by `vpp data build calvin`; rel_actions as stored, already in [-1, 1]",
        ),
        RobotSpec(
            name="human_video",
            cameras={"primary": "observation/image"},
            clip_views={"primary": 1.0},
            policy_views=("primary",),
            action="",
            normalization="none",
            control_hz=None,
            clip_sampling="whole",
            unsupported=dict.fromkeys(("action", "gripper", "control_hz"), "videos have no actions"),
            instruction_keys=(ALL_INSTRUCTIONS, LANGUAGE_INSTRUCTION),
            notes="captioned videos as converted by `vpp data build human_video`",
        ),
        *map(_openx_spec, OPENX.values()),
    )
}


def dataset_spec(name: str) -> RobotSpec:
    """The row `name`; DataError with the nearest name otherwise."""
    if name not in REGISTRY:
        hint = nearest(name, REGISTRY) or "; data_pipelines/openx/table.py lists its rows"
        raise DataError(f"dataset '{name}' is not in the registry of {len(REGISTRY)} datasets{hint}")
    return REGISTRY[name]
