"""The 69 Open X-Embodiment datasets that TFDS or the common training mixtures name, one typed row each, and a second copy of Bridge.

Sources: TFDS 4.9.10 (names, directories, versions, feature catalog), the dataset tables of Octo and OpenVLA (views, compositions), LeRobot
(control rates). No source documents everything; what no source confirms is listed under `unverified`, and using it is an error.

Where the documentation of a gripper contradicts Octo and OpenVLA, which use the raw number, the row follows the documentation:
columbia_cairlab_pusht_real (relative), nyu_rot (0 open), maniskill (-1..1), stanford_mask_vit (-1 open). cmu_play_fusion is composed as
documented; their slice mixes quaternion, gripper and terminate flag. taco_play's state has the gripper width at its documented index 6.
Rotations are used as stored (see `notes`); quaternions, read as x, y, z, w as in Octo, are converted to roll, pitch, yaw.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from data_pipelines.openx.conventions import ACTION_WIDTH, PROPRIO_WIDTH, ActionEncoding, Gripper, Proprio
from data_pipelines.openx.filters import SEVERAL_STEPS, SUCCESS_FLAG, SUCCESS_PATH
from data_pipelines.openx.standardise import Composition
from data_pipelines.rlds.filters import EpisodeFilter

# Columns of a row that `unverified` may name.
MARKS = ("cameras", "action", "gripper", "proprio", "instruction")


@dataclass(frozen=True, kw_only=True)
class OpenXDataset:
    """One row. Names of step features are relative to `observation/` in `cameras`, full names elsewhere.

    Attributes:
      versions: the expected one first, then others with the same layout.
      folder: name of the dataset's directory, if it is not `name`; `aliases`: other names of the same data.
      control_hz: control rate; None if unknown.
      cameras: role -> image feature; empty if the images are placeholders.
      bgr_cameras: images stored in BGR order.
      action: kind of action; `ee_delta_keys` composes its first six numbers, `gripper_key` and `gripper_convention` the seventh.
      proprio: layout of the robot state; `proprio_keys` composes its eight numbers, "" is zeros.
      first_step: earlier steps are excluded from policy examples.
      episode_filter: which episodes are used; None: all.
      unverified: column of this row (one of `MARKS`) -> what is uncertain about it.
    """

    name: str
    versions: tuple[str, ...] = ("0.1.0",)
    control_hz: float | None
    cameras: Mapping[str, str]
    folder: str = ""
    aliases: tuple[str, ...] = ()
    bgr_cameras: tuple[str, ...] = ()
    action: ActionEncoding = ActionEncoding.EEF_DELTA
    ee_delta_keys: str = "action[0:6]"
    gripper_convention: Gripper = Gripper.OPEN
    gripper_key: str = "action[6:7]"
    proprio: Proprio = Proprio.NONE
    proprio_keys: str = ""
    instruction: str = "language_instruction"
    clip_sampling: str = "strided"
    first_step: int = 0
    episode_filter: EpisodeFilter | None = None
    unverified: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""

    def __post_init__(self):
        unknown, action, state = set(self.unverified) - set(MARKS), self.composition, self.proprio_composition
        if unknown or state.width != PROPRIO_WIDTH or (action and action.width != ACTION_WIDTH):
            raise ValueError(
                f"{self.name}: unknown `unverified` columns {sorted(unknown)}, state {state} or action {action} of wrong width"
            )

    @property
    def composition(self) -> Composition | None:
        """Composition of the common action; None if there is none."""
        if self.action is not ActionEncoding.EEF_DELTA or self.gripper_convention is Gripper.UNKNOWN:
            return None
        return Composition.parse(f"{self.ee_delta_keys} + {self.gripper_convention.name.lower()}({self.gripper_key})")

    @property
    def proprio_composition(self) -> Composition:
        return Composition.parse(self.proprio_keys or f"{PROPRIO_WIDTH}*0")


# Column names that Google's first datasets share.
WORLD_MOTION = "action/world_vector[0:3] + action/rotation_delta[0:3]"
CLOSEDNESS = "action/gripper_closedness_action[0:1]"
OBSERVED_INSTRUCTION = "observation/natural_language_instruction"
# the achieved motion of bridge, in place of the commanded one
REACHED = "reached(observation/state[0:3]) + reached_angles(observation/state[3:6])"
POSE_AND_GRIPPER = "observation/state[0:6] + 1*0 + observation/state[6:7]"
JOINTS_AND_GRIPPER = "observation/state[0:8]"
NO_SIGN = {"gripper": "which sign is open is not documented"}
ABSOLUTE = {"action": "documented as a position, so probably absolute; Octo and OpenVLA take it as a delta", **NO_SIGN}
IMAGE = {"primary": "image"}
IMAGE_AND_WRIST = {"primary": "image", "wrist": "wrist_image"}

_ROWS = (
    OpenXDataset(
        name="fractal20220817_data",
        control_hz=3,
        cameras=IMAGE,
        ee_delta_keys=WORLD_MOTION,
        gripper_convention=Gripper.RELATIVE,
        gripper_key=CLOSEDNESS,
        proprio=Proprio.POS_QUAT,
        proprio_keys="observation/base_pose_tool_reached[0:7] + observation/gripper_closed[0:1]",
        instruction=OBSERVED_INSTRUCTION,
        clip_sampling="whole",
        notes="RT-1",
    ),
    OpenXDataset(
        name="kuka",
        control_hz=10,
        cameras=IMAGE,
        ee_delta_keys=WORLD_MOTION,
        gripper_convention=Gripper.RELATIVE,
        gripper_key=CLOSEDNESS,
        proprio=Proprio.POS_QUAT,
        proprio_keys="observation/clip_function_input/base_pose_tool_reached[0:7] + observation/gripper_closed[0:1]",
        instruction=OBSERVED_INSTRUCTION,
        episode_filter=SUCCESS_FLAG,
        notes="state columns are zlib-compressed; the instruction is not informative",
    ),
    OpenXDataset(
        name="bridge",
        folder="bridge_data_v2",
        versions=("0.0.1",),
        control_hz=5,
        cameras={"primary": "image_0", "secondary": "image_1"},
        ee_delta_keys=REACHED,
        gripper_convention=Gripper.CONTINUOUS_OPEN,
        proprio=Proprio.POS_EULER,
        proprio_keys="observation/state[0:6] + 1*0 + observation/state[-1:]",
        clip_sampling="whole",
        first_step=1,
        notes="the old layout bridge/0.1.0 (nested action) is another version; the first action is all zero; many empty instructions",
    ),
    OpenXDataset(
        name="bridge_dataset",
        versions=("1.0.0",),
        aliases=("bridge_orig",),
        control_hz=5,
        cameras={"primary": "image_0", "secondary": "image_1", "tertiary": "image_2", "wrist": "image_3"},
        ee_delta_keys=REACHED,
        gripper_convention=Gripper.CONTINUOUS_OPEN,
        proprio=Proprio.POS_EULER,
        proprio_keys="observation/state[0:6] + 1*0 + observation/state[-1:]",
        clip_sampling="whole",
        first_step=1,
        notes="the project site's copy of bridge, which Octo and OpenVLA train on; its has_image_k flags are unreliable in some copies",
    ),
    OpenXDataset(
        name="taco_play",
        control_hz=15,
        cameras={"primary": "rgb_static", "wrist": "rgb_gripper"},
        ee_delta_keys="action/rel_actions_world[0:6]",
        gripper_convention=Gripper.CLIPPED_OPEN,
        gripper_key="action/rel_actions_world[6:7]",
        proprio=Proprio.POS_EULER,
        proprio_keys="observation/robot_obs[0:6] + 1*0 + observation/robot_obs[6:7]",
        instruction=OBSERVED_INSTRUCTION,
        unverified={"gripper": "the catalog says +1 = close, Octo and OpenVLA take +1 = open"},
        notes="documented as yaw, pitch, roll",
    ),
    OpenXDataset(
        name="jaco_play",
        control_hz=10,
        cameras={"primary": "image", "wrist": "image_wrist"},
        ee_delta_keys="action/world_vector[0:3] + 3*0",
        gripper_convention=Gripper.RELATIVE,
        gripper_key=CLOSEDNESS,
        proprio=Proprio.POS_EULER,
        proprio_keys="observation/end_effector_cartesian_pos[0:6] + 1*0 + observation/end_effector_cartesian_pos[-1:]",
        instruction=OBSERVED_INSTRUCTION,
        unverified={"proprio": "the layout of its 7 numbers is not documented"},
    ),
    OpenXDataset(
        name="berkeley_cable_routing",
        control_hz=10,
        cameras={"primary": "image", "secondary": "top_image", "wrist": "wrist45_image"},
        ee_delta_keys=WORLD_MOTION,
        gripper_convention=Gripper.ABSENT,
        gripper_key="",
        proprio=Proprio.JOINT,
        proprio_keys="observation/robot_state[0:7] + 1*0",
        instruction=OBSERVED_INSTRUCTION,
        notes="velocities; one constant instruction",
    ),
    OpenXDataset(
        name="roboturk",
        control_hz=10,
        cameras={"primary": "front_rgb"},
        ee_delta_keys=WORLD_MOTION,
        gripper_convention=Gripper.CLIPPED_CLOSED,
        gripper_key=CLOSEDNESS,
        instruction=OBSERVED_INSTRUCTION,
    ),
    OpenXDataset(
        name="nyu_door_opening_surprising_effectiveness",
        control_hz=3,
        cameras={"wrist": "image"},
        ee_delta_keys=WORLD_MOTION,
        gripper_convention=Gripper.RELATIVE,
        gripper_key=CLOSEDNESS,
        instruction=OBSERVED_INSTRUCTION,
        notes="velocities",
    ),
    OpenXDataset(
        name="viola",
        control_hz=20,
        cameras={"primary": "agentview_rgb", "wrist": "eye_in_hand_rgb"},
        ee_delta_keys=WORLD_MOTION,
        gripper_convention=Gripper.CLIPPED_CLOSED,
        gripper_key=CLOSEDNESS,
        proprio=Proprio.JOINT,
        proprio_keys="observation/joint_states[0:7] + observation/gripper_states[0:1]",
        instruction=OBSERVED_INSTRUCTION,
    ),
    OpenXDataset(
        name="berkeley_autolab_ur5",
        control_hz=5,
        cameras={"primary": "image", "wrist": "hand_image"},
        bgr_cameras=("hand_image",),
        ee_delta_keys=WORLD_MOTION,
        gripper_convention=Gripper.RELATIVE,
        gripper_key=CLOSEDNESS,
        proprio=Proprio.POS_QUAT,
        proprio_keys="observation/robot_state[6:14]",
        instruction=OBSERVED_INSTRUCTION,
        unverified={"proprio": "that robot_state[6:14] is xyz, quaternion, gripper"},
    ),
    OpenXDataset(
        name="toto",
        control_hz=30,
        cameras=IMAGE,
        ee_delta_keys=WORLD_MOTION,
        gripper_convention=Gripper.OPEN,
        gripper_key="action/open_gripper[0:1]",
        proprio=Proprio.JOINT,
        proprio_keys="observation/state[0:7] + 1*0",
        instruction=OBSERVED_INSTRUCTION,
    ),
    OpenXDataset(
        name="language_table",
        versions=("0.0.1", "0.1.0"),
        control_hz=10,
        cameras={"primary": "rgb"},
        ee_delta_keys="action[0:2] + 4*0",
        gripper_convention=Gripper.ABSENT_OPEN,
        gripper_key="",
        proprio=Proprio.POS_EULER,
        proprio_keys="observation/effector_translation[0:2] + 6*0",
        instruction="observation/instruction",
        notes="the instruction is int32 code points",
    ),
    OpenXDataset(
        name="columbia_cairlab_pusht_real",
        control_hz=10,
        cameras=IMAGE_AND_WRIST,
        ee_delta_keys=WORLD_MOTION,
        gripper_convention=Gripper.RELATIVE,
        gripper_key=CLOSEDNESS,
        proprio=Proprio.POS_EULER,
        proprio_keys="observation/robot_state[0:2] + 6*0",
        instruction=OBSERVED_INSTRUCTION,
    ),
    OpenXDataset(
        name="stanford_kuka_multimodal_dataset_converted_externally_to_rlds",
        control_hz=20,
        cameras=IMAGE,
        ee_delta_keys="action[0:3] + 3*0",
        gripper_key="action[-1:]",
        proprio=Proprio.POS_QUAT,
        proprio_keys="observation/ee_position[0:3] + observation/ee_orientation[0:4] + 1*0",
        unverified=NO_SIGN,
    ),
    OpenXDataset(
        name="nyu_rot_dataset_converted_externally_to_rlds",
        control_hz=3,
        cameras=IMAGE,
        gripper_convention=Gripper.CLOSED,
        proprio=Proprio.POS_EULER,
        proprio_keys=POSE_AND_GRIPPER,
    ),
    OpenXDataset(
        name="stanford_hydra_dataset_converted_externally_to_rlds",
        control_hz=10,
        cameras=IMAGE_AND_WRIST,
        bgr_cameras=("image", "wrist_image"),
        gripper_convention=Gripper.CLOSED,
        proprio=Proprio.POS_EULER,
        proprio_keys="observation/state[0:3] + observation/state[7:10] + 1*0 + observation/state[-3:-2]",
    ),
    OpenXDataset(
        name="austin_buds_dataset_converted_externally_to_rlds",
        control_hz=20,
        cameras=IMAGE_AND_WRIST,
        gripper_convention=Gripper.CLIPPED_CLOSED,
        proprio=Proprio.JOINT,
        proprio_keys=JOINTS_AND_GRIPPER,
    ),
    OpenXDataset(
        name="nyu_franka_play_dataset_converted_externally_to_rlds",
        control_hz=3,
        cameras={"primary": "image", "secondary": "image_additional_view"},
        ee_delta_keys="action[7:13]",
        gripper_convention=Gripper.CLIPPED_OPEN,
        gripper_key="action[13:14]",
        proprio=Proprio.POS_EULER,
        proprio_keys="observation/state[-6:] + 2*0",
    ),
    OpenXDataset(
        name="maniskill_dataset_converted_externally_to_rlds",
        control_hz=20,
        cameras=IMAGE_AND_WRIST,
        gripper_convention=Gripper.SIGNED_OPEN,
        proprio=Proprio.POS_QUAT,
        proprio_keys="observation/tcp_pose[0:7] + observation/state[7:8]",
        notes="rotation is axis-angle; +-1 is 0.1 m or 0.1 rad; quaternion w first",
    ),
    OpenXDataset(
        name="furniture_bench_dataset_converted_externally_to_rlds",
        control_hz=10,
        cameras=IMAGE_AND_WRIST,
        ee_delta_keys="action[0:3] + euler(action[3:7])",
        gripper_convention=Gripper.CLIPPED_CLOSED,
        gripper_key="action[7:8]",
        proprio=Proprio.POS_QUAT,
        proprio_keys="observation/state[0:7] + observation/state[-1:]",
    ),
    OpenXDataset(
        name="cmu_franka_exploration_dataset_converted_externally_to_rlds",
        control_hz=10,
        cameras={"primary": "highres_image"},
        unverified={"gripper": "its convention is not documented"},
        notes="position and orientation: absolute or delta is not documented",
    ),
    OpenXDataset(
        name="ucsd_kitchen_dataset_converted_externally_to_rlds",
        control_hz=2,
        cameras=IMAGE,
        proprio=Proprio.JOINT,
        proprio_keys="observation/state[0:7] + 1*0",
        unverified=ABSOLUTE,
    ),
    OpenXDataset(
        name="ucsd_pick_and_place_dataset_converted_externally_to_rlds",
        control_hz=3,
        cameras=IMAGE,
        ee_delta_keys="action[0:3] + 3*0",
        gripper_key="action[3:4]",
        proprio=Proprio.POS_EULER,
        proprio_keys=POSE_AND_GRIPPER,
        unverified={"gripper": "a torque whose sign is not documented"},
        notes="velocities",
    ),
    OpenXDataset(
        name="austin_sailor_dataset_converted_externally_to_rlds",
        control_hz=20,
        cameras=IMAGE_AND_WRIST,
        gripper_convention=Gripper.CLIPPED_CLOSED,
        proprio=Proprio.POS_QUAT,
        proprio_keys=JOINTS_AND_GRIPPER,
    ),
    OpenXDataset(
        name="austin_sirius_dataset_converted_externally_to_rlds",
        control_hz=20,
        cameras=IMAGE_AND_WRIST,
        gripper_convention=Gripper.CLIPPED_CLOSED,
        proprio=Proprio.POS_QUAT,
        proprio_keys=JOINTS_AND_GRIPPER,
        unverified={"proprio": "Octo and OpenVLA say pose and quaternion, the catalog joints"},
    ),
    OpenXDataset(
        name="bc_z",
        control_hz=10,
        cameras=IMAGE,
        ee_delta_keys="action/future/xyz_residual[0:3] + action/future/axis_angle_residual[0:3]",
        gripper_convention=Gripper.CLOSED,
        gripper_key="action/future/target_close[0:1]",
        proprio=Proprio.POS_EULER,
        proprio_keys="observation/present/xyz[0:3] + observation/present/axis_angle[0:3] + 1*0 + observation/present/sensed_close[0:1]",
        instruction=OBSERVED_INSTRUCTION,
        notes="action columns hold the next 10 steps, the first is used; rotation is axis-angle",
    ),
    OpenXDataset(
        name="usc_cloth_sim_converted_externally_to_rlds",
        control_hz=10,
        cameras=IMAGE,
        ee_delta_keys="action[0:3] + 3*0",
        gripper_convention=Gripper.THRESHOLD_CLOSED,
        gripper_key="action[3:4]",
        notes="action is an xyz goal and a picker; custom composition",
    ),
    OpenXDataset(
        name="utokyo_pr2_opening_fridge_converted_externally_to_rlds",
        control_hz=10,
        cameras=IMAGE,
        proprio=Proprio.POS_EULER,
        proprio_keys=POSE_AND_GRIPPER,
        unverified=ABSOLUTE,
    ),
    OpenXDataset(
        name="utokyo_pr2_tabletop_manipulation_converted_externally_to_rlds",
        control_hz=10,
        cameras=IMAGE,
        proprio=Proprio.POS_EULER,
        proprio_keys=POSE_AND_GRIPPER,
        unverified=ABSOLUTE,
    ),
    OpenXDataset(
        name="utokyo_xarm_pick_and_place_converted_externally_to_rlds",
        control_hz=10,
        cameras={"primary": "image", "secondary": "image2", "wrist": "hand_image"},
        proprio=Proprio.POS_EULER,
        proprio_keys="observation/end_effector_pose[0:6] + 2*0",
        unverified=ABSOLUTE,
    ),
    OpenXDataset(
        name="utokyo_xarm_bimanual_converted_externally_to_rlds",
        control_hz=10,
        cameras=IMAGE,
        ee_delta_keys="action[7:13]",
        gripper_key="action[13:14]",
        proprio=Proprio.POS_EULER,
        proprio_keys="observation/pose_r[0:6] + 2*0",
        unverified=NO_SIGN,
        notes="right arm only",
    ),
    OpenXDataset(
        name="robo_net",
        versions=("1.0.0",),
        control_hz=1,
        cameras={"primary": "image", "secondary": "image1", "tertiary": "image2"},
        ee_delta_keys="action[0:4] + 2*0",
        gripper_key="action[4:5]",
        proprio=Proprio.POS_EULER,
        proprio_keys="observation/state[0:4] + 3*0 + observation/state[-1:]",
        unverified={"gripper": "its convention is not documented"},
        notes="yaw is in the first rotation dimension",
    ),
    OpenXDataset(
        name="berkeley_mvp_converted_externally_to_rlds",
        control_hz=5,
        cameras={"wrist": "hand_image"},
        action=ActionEncoding.JOINT,
        ee_delta_keys="action[0:7]",
        gripper_convention=Gripper.CLOSED,
        gripper_key="action[7:8]",
        proprio=Proprio.POS_QUAT,
        proprio_keys="observation/pose[0:7] + observation/gripper[0:1]",
    ),
    OpenXDataset(
        name="berkeley_rpt_converted_externally_to_rlds",
        control_hz=30,
        cameras={"wrist": "hand_image"},
        action=ActionEncoding.JOINT,
        ee_delta_keys="reached(observation/joint_pos[0:7])",
        gripper_convention=Gripper.CLOSED,
        gripper_key="action[7:8]",
        proprio=Proprio.JOINT,
        proprio_keys="observation/joint_pos[0:7] + observation/gripper[0:1]",
    ),
    OpenXDataset(
        name="kaist_nonprehensile_converted_externally_to_rlds",
        control_hz=10,
        cameras=IMAGE,
        gripper_convention=Gripper.ABSENT,
        gripper_key="",
        proprio=Proprio.POS_QUAT,
        proprio_keys="observation/state[-7:] + 1*0",
        notes="rotation is axis-angle in the global frame",
    ),
    OpenXDataset(
        name="stanford_mask_vit_converted_externally_to_rlds",
        control_hz=None,
        cameras=IMAGE,
        ee_delta_keys="action[0:4] + 2*0",
        gripper_convention=Gripper.SIGNED_CLOSED,
        gripper_key="action[4:5]",
        proprio=Proprio.POS_EULER,
        proprio_keys="observation/end_effector_pose[0:4] + 3*0 + observation/end_effector_pose[4:5]",
        notes="yaw is in the first rotation dimension",
    ),
    OpenXDataset(
        name="tokyo_u_lsmo_converted_externally_to_rlds",
        control_hz=10,
        cameras=IMAGE,
        proprio=Proprio.POS_EULER,
        proprio_keys="observation/state[0:6] + 1*0 + observation/state[-1:]",
        unverified=ABSOLUTE,
    ),
    OpenXDataset(
        name="dlr_sara_pour_converted_externally_to_rlds",
        control_hz=10,
        cameras=IMAGE,
        proprio=Proprio.POS_EULER,
        proprio_keys="observation/state[0:6] + 2*0",
        unverified={"gripper": "its seventh number is not documented"},
        notes="Euler order zxy",
    ),
    OpenXDataset(
        name="dlr_sara_grid_clamp_converted_externally_to_rlds",
        control_hz=10,
        cameras=IMAGE,
        proprio=Proprio.POS_EULER,
        proprio_keys="observation/state[0:6] + 2*0",
        unverified={"gripper": "its seventh number is not documented"},
        notes="Euler order zxy",
    ),
    OpenXDataset(
        name="dlr_edan_shared_control_converted_externally_to_rlds",
        control_hz=5,
        cameras=IMAGE,
        gripper_convention=Gripper.CLOSED,
        proprio=Proprio.POS_EULER,
        proprio_keys=POSE_AND_GRIPPER,
        notes="Euler order zxy",
    ),
    OpenXDataset(
        name="asu_table_top_converted_externally_to_rlds",
        control_hz=12.5,
        cameras=IMAGE,
        proprio=Proprio.POS_EULER,
        proprio_keys="ground_truth_states/EE[0:6] + 1*0 + observation/state[-1:]",
        unverified={"gripper": "its convention is not documented"},
        notes="the catalog speaks of joint velocities",
    ),
    OpenXDataset(
        name="stanford_robocook_converted_externally_to_rlds",
        control_hz=5,
        cameras={"primary": "image_1", "secondary": "image_2"},
        proprio=Proprio.POS_EULER,
        proprio_keys=POSE_AND_GRIPPER,
        notes="velocities, also of the gripper: passed through, not 0..1",
    ),
    OpenXDataset(
        name="imperialcollege_sawyer_wrist_cam",
        control_hz=10,
        cameras=IMAGE_AND_WRIST,
        unverified=NO_SIGN,
        notes="both images are from the wrist camera; end-effector frame, ZYX Euler angles",
    ),
    OpenXDataset(
        name="iamlab_cmu_pickup_insert_converted_externally_to_rlds",
        control_hz=20,
        cameras=IMAGE_AND_WRIST,
        ee_delta_keys="action[0:3] + euler(action[3:7])",
        gripper_key="action[7:8]",
        proprio=Proprio.JOINT,
        proprio_keys=JOINTS_AND_GRIPPER,
        unverified={"action": ABSOLUTE["action"]},
    ),
    OpenXDataset(
        name="uiuc_d3field",
        control_hz=1,
        cameras={"primary": "image_1", "secondary": "image_2"},
        ee_delta_keys="action[0:3] + 3*0",
        gripper_convention=Gripper.ABSENT,
        gripper_key="",
        notes="Octo and OpenVLA exclude it: raw data reported as broken",
    ),
    OpenXDataset(
        name="utaustin_mutex",
        control_hz=20,
        cameras=IMAGE_AND_WRIST,
        bgr_cameras=("image", "wrist_image"),
        gripper_convention=Gripper.CLIPPED_CLOSED,
        proprio=Proprio.JOINT,
        proprio_keys=JOINTS_AND_GRIPPER,
    ),
    OpenXDataset(
        name="berkeley_fanuc_manipulation",
        control_hz=10,
        cameras=IMAGE_AND_WRIST,
        bgr_cameras=("image", "wrist_image"),
        gripper_convention=Gripper.CLOSED,
        gripper_key="observation/state[6:7]",
        proprio=Proprio.JOINT,
        proprio_keys="observation/state[0:6] + 1*0 + observation/state[6:7]",
        unverified={"gripper": "state[6] is documented as open, Octo and OpenVLA take it as closed"},
        notes="no gripper in the action: taken from the state",
    ),
    OpenXDataset(
        name="cmu_playing_with_food",
        versions=("1.0.0",),
        control_hz=10,
        cameras={"primary": "image", "wrist": "finger_vision_1"},
        ee_delta_keys="action[0:3] + euler(action[3:7])",
        gripper_key="action[-1:]",
        proprio=Proprio.OTHER,
        unverified={"gripper": "its convention is not documented"},
        notes="the state is a force, though Octo calls it a pose",
    ),
    OpenXDataset(
        name="cmu_play_fusion",
        control_hz=5,
        cameras=IMAGE,
        ee_delta_keys="action[0:3] + euler(action[3:7])",
        gripper_key="action[7:8]",
        proprio=Proprio.JOINT,
        proprio_keys=JOINTS_AND_GRIPPER,
    ),
    OpenXDataset(
        name="cmu_stretch",
        control_hz=10,
        cameras=IMAGE,
        proprio=Proprio.POS_EULER,
        proprio_keys="observation/state[0:3] + 4*0 + observation/state[-1:]",
        unverified=NO_SIGN,
        notes="documented as position and rotation of the end effector",
    ),
    *(
        OpenXDataset(
            name=f"berkeley_gnm_{name}",
            control_hz=hz,
            cameras=IMAGE,
            action=ActionEncoding.NAVIGATION,
            ee_delta_keys="action[0:2]",
            gripper_convention=Gripper.ABSENT,
            gripper_key="",
            proprio=Proprio.NAVIGATION,
            proprio_keys="observation/state[0:3] + 5*0",
            episode_filter=SEVERAL_STEPS,
            unverified={"instruction": "it may be a constant placeholder"},
        )
        for name, hz in (("recon", 3), ("cory_hall", 5), ("sac_son", 10))
    ),
    OpenXDataset(
        name="utokyo_saytap_converted_externally_to_rlds",
        control_hz=None,
        cameras={},
        action=ActionEncoding.JOINT,
        gripper_convention=Gripper.ABSENT,
        gripper_key="",
        proprio=Proprio.OTHER,
        notes="images are placeholders; 12 joint positions of a quadruped",
    ),
    OpenXDataset(
        name="eth_agent_affordances",
        control_hz=None,
        cameras={},
        gripper_convention=Gripper.ABSENT,
        gripper_key="",
        proprio=Proprio.POS_EULER,
        proprio_keys=POSE_AND_GRIPPER,
        notes="images are black; velocities; custom composition",
    ),
    OpenXDataset(
        name="conq_hose_manipulation",
        versions=("0.0.1",),
        control_hz=30,
        cameras={"primary": "frontleft_fisheye_image", "secondary": "frontright_fisheye_image", "wrist": "hand_color_image"},
        action=ActionEncoding.UNKNOWN,
        gripper_convention=Gripper.UNKNOWN,
        proprio=Proprio.OTHER,
        unverified={"action": "not documented", "gripper": "not documented", "proprio": "66 numbers, not documented"},
    ),
    OpenXDataset(
        name="dobbe",
        versions=("0.0.1",),
        control_hz=3.75,
        cameras={"wrist": "wrist_image"},
        proprio=Proprio.POS_EULER,
        proprio_keys=POSE_AND_GRIPPER,
    ),
    OpenXDataset(
        name="fmb",
        versions=("0.0.1",),
        aliases=("fmb_dataset",),
        control_hz=10,
        cameras={"primary": "image_side_1", "secondary": "image_side_2", "wrist": "image_wrist_1"},
        proprio=Proprio.POS_QUAT,
        proprio_keys="observation/eef_pose[0:7] + observation/state_gripper_pose[0:1]",
        unverified={"gripper": "taken as 1 = open, not documented"},
        notes="an early upload has 1804 of 8611 episodes, same version",
    ),
    OpenXDataset(
        name="io_ai_tech",
        versions=("0.0.1",),
        control_hz=3,
        cameras={name: name for name in ("image", "image_fisheye", "image_left_side", "image_right_side")},
        action=ActionEncoding.UNKNOWN,
        gripper_convention=Gripper.UNKNOWN,
        proprio=Proprio.UNKNOWN,
        unverified={"action": "not documented", "gripper": "not documented", "proprio": "not documented"},
    ),
    OpenXDataset(
        name="mimic_play",
        versions=("0.0.1",),
        control_hz=None,
        cameras={"primary": "image/front_image_1", "secondary": "image/front_image_2", "wrist": "wrist_image/wrist_image"},
        action=ActionEncoding.UNKNOWN,
        gripper_convention=Gripper.UNKNOWN,
        proprio=Proprio.POS_QUAT,
        proprio_keys="observation/state/ee_pose[0:7] + observation/state/gripper_position[0:1]",
        unverified={"action": "not documented", "gripper": "not documented", "proprio": "that ee_pose is xyz and quaternion"},
    ),
    OpenXDataset(
        name="aloha_mobile",
        versions=("0.0.1",),
        control_hz=50,
        cameras={"primary": "cam_high", "wrist": "cam_right_wrist"},
        action=ActionEncoding.JOINT_BIMANUAL,
        gripper_convention=Gripper.UNKNOWN,
        proprio=Proprio.JOINT_BIMANUAL,
        unverified={"gripper": "numbers 7 and 14, convention not documented"},
    ),
    OpenXDataset(
        name="robo_set",
        versions=("0.0.1",),
        aliases=("roboset",),
        control_hz=5,
        cameras={"primary": "image_left", "secondary": "image_right", "wrist": "image_wrist"},
        action=ActionEncoding.JOINT,
        ee_delta_keys="action[0:7]",
        gripper_convention=Gripper.CLIPPED_CLOSED,
        gripper_key="action[7:8]",
        proprio=Proprio.JOINT,
        proprio_keys=JOINTS_AND_GRIPPER,
    ),
    OpenXDataset(
        name="tidybot",
        versions=("0.0.1",),
        control_hz=None,
        cameras=IMAGE,
        action=ActionEncoding.OTHER,
        gripper_convention=Gripper.ABSENT,
        gripper_key="",
        notes="the action is a string",
    ),
    OpenXDataset(
        name="vima_converted_externally_to_rlds",
        versions=("0.0.1",),
        control_hz=None,
        cameras={"primary": "image", "secondary": "frontal_image"},
        action=ActionEncoding.OTHER,
        gripper_convention=Gripper.ABSENT,
        gripper_key="",
        instruction="multimodal_instruction",
        notes="pick-and-place poses; images are raw tensors, which the reader does not treat as images",
    ),
    OpenXDataset(
        name="bridge_data_msr",
        versions=("0.0.1",),
        control_hz=None,
        cameras={"primary": "image_0", "secondary": "image_1"},
        ee_delta_keys=REACHED,
        gripper_convention=Gripper.CONTINUOUS_OPEN,
        proprio=Proprio.POS_EULER,
        proprio_keys=POSE_AND_GRIPPER,
        clip_sampling="whole",
        first_step=1,
        unverified={name: "taken as in bridge, not documented" for name in ("action", "gripper", "proprio")},
    ),
    OpenXDataset(
        name="plex_robosuite",
        versions=("0.0.1",),
        control_hz=20,
        cameras=IMAGE_AND_WRIST,
        gripper_convention=Gripper.CLIPPED_CLOSED,
        proprio=Proprio.UNKNOWN,
        unverified={
            "action": "taken as a delta, not documented",
            "gripper": "taken as in robosuite, not documented",
            "proprio": "32 numbers, not documented",
        },
    ),
    OpenXDataset(
        name="spoc_robot",
        folder="spoc",
        versions=("0.0.1",),
        control_hz=3,
        cameras={"primary": "image", "wrist": "image_manipulation"},
        action=ActionEncoding.OTHER,
        gripper_convention=Gripper.ABSENT,
        gripper_key="",
        proprio=Proprio.OTHER,
        unverified={"action": "nine numbers, discrete or a vector"},
    ),
    OpenXDataset(
        name="robo_ai_u_r5e",
        versions=("0.0.1",),
        control_hz=None,
        cameras=IMAGE,
        action=ActionEncoding.UNKNOWN,
        gripper_convention=Gripper.UNKNOWN,
        proprio=Proprio.UNKNOWN,
        unverified={"action": "not documented", "gripper": "not documented", "proprio": "not documented"},
    ),
    OpenXDataset(
        name="droid",
        versions=("1.0.1", "1.0.0"),
        control_hz=15,
        cameras={"primary": "exterior_image_1_left", "secondary": "exterior_image_2_left", "wrist": "wrist_image_left"},
        ee_delta_keys="action_dict/cartesian_velocity[0:6]",
        gripper_convention=Gripper.CLOSED,
        gripper_key="action_dict/gripper_position[0:1]",
        proprio=Proprio.POS_EULER,
        proprio_keys="observation/cartesian_position[0:6] + 1*0 + observation/gripper_position[0:1]",
        episode_filter=SUCCESS_PATH,
        notes="1.0.0 lacks many instructions",
    ),
)
OPENX: Mapping[str, OpenXDataset] = {row.name: row for row in _ROWS}
