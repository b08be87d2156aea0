"""The dataset registry: what features.json does not say, such as the roles of the cameras and the meaning of the action.

One row per dataset; to add a dataset, add a row. CALVIN's rows are defined here, those of Open X-Embodiment are derived from
`data_pipelines.openx.table`, which composes actions and states of several columns into one common layout.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from data_pipelines.errors import DataError
from data_pipelines.openx.conventions import ACTION_WIDTH, PROPRIO_WIDTH, ActionEncoding, Gripper, Proprio
from data_pipelines.openx.standardise import Composition
from data_pipelines.openx.table import OPENX, OpenXDataset
from data_pipelines.rlds.filters import EpisodeFilter
from data_pipelines.rlds.schema import ALL_INSTRUCTIONS, LANGUAGE_INSTRUCTION
from data_pipelines.rlds.windows import CLIP_SAMPLING
from data_pipelines.transforms import NORMALIZATIONS
from vpp_jax.common.errors import nearest


@dataclass(frozen=True)
class DatasetSpec:
    """One row.

    Attributes:
      cameras: view name -> step feature. Views are named by role (primary, secondary, wrist), so that datasets can be mixed.
      clip_views: view -> probability that a video clip shows it.
      policy_views: views of a policy whose configuration names none.
      action_key, action_width: the label; `normalization` is applied to the dimensions where `normalized` is True (empty: all).
      proprio_key, proprio_width: robot state, normalised by mean and standard deviation; "" and 0 if there is none.
      action_parts, proprio_parts: if given, the action or state is composed of several columns, and the key is a description of them.
      quantiles: the two quantiles that normalization 'quantile' maps to -1 and 1.
      bgr_cameras: cameras whose images are stored in BGR order.
      unsupported, unverified: 'cameras', 'instruction', 'action', 'gripper', 'proprio' or 'control_hz' -> why it cannot be used, or what
        is not documented about it.
      instruction_keys: instruction features; the first one in features.json is used.
      clip_sampling: 'strided' (robot episodes) or 'whole' (the clip spans the episode).
      first_step: earlier steps are excluded from policy examples and statistics.
      episode_filter: which episodes are used; None: all.
      units: of position and rotation in an action; "" if not documented.
      control_hz: rate of the actions; None if unknown.
      action_mode: 'relative' (to the current pose) or 'absolute'.
      signed_dimensions: action dimensions that the robot expects as +1 or -1 (grippers): the policy's output is replaced by its sign.
    """

    name: str
    cameras: dict[str, str]
    clip_views: dict[str, float]
    policy_views: tuple[str, ...]
    action_key: str
    action_width: int
    normalization: str
    control_hz: float | None
    normalized: tuple[bool, ...] = ()
    proprio_key: str = ""
    proprio_width: int = 0
    instruction_keys: tuple[str, ...] = ("language_instruction",)
    clip_sampling: str = "strided"
    first_step: int = 0
    episode_filter: EpisodeFilter | None = None
    action_mode: str = "relative"
    signed_dimensions: tuple[int, ...] = ()
    units: tuple[str, str] = ("", "")
    quantiles: tuple[float, float] = (0.01, 0.99)
    action_parts: Composition | None = None
    proprio_parts: Composition | None = None
    bgr_cameras: tuple[str, ...] = ()
    unsupported: Mapping[str, str] = field(default_factory=dict)
    unverified: Mapping[str, str] = field(default_factory=dict)
    notes: str = field(default="", compare=False)

    def __post_init__(self):
        if self.normalization not in NORMALIZATIONS or self.clip_sampling not in CLIP_SAMPLING:
            raise ValueError(f"{self.name}: normalization '{self.normalization}' or clip_sampling '{self.clip_sampling}' is unknown")
        if not 0 <= self.quantiles[0] < self.quantiles[1] <= 1:
            raise DataError(f"{self.name}: quantiles are {self.quantiles}, expected a lower and a higher one in [0, 1]")
        unknown = (set(self.clip_views) | set(self.policy_views)) - set(self.cameras)
        if unknown or (self.normalized and len(self.normalized) != self.action_width):
            raise ValueError(
                f"{self.name}: views {sorted(unknown)} are not cameras, or `normalized` does not have {self.action_width} entries"
            )

    def camera(self, view: str, available: tuple[str, ...], where: str) -> str:
        """Step feature of `view`: a role of this row, or the name of a camera. DataError if the dataset does not have it."""
        known = self.cameras.get(view) or next((name for name in available if view in (name, name.rsplit("/", 1)[-1])), None)
        if known is None or known not in available:
            missing = f"camera '{known}' is not in features.json" if known else f"view '{view}' is unknown"
            raise DataError(
                f"{where}: {missing} (has cameras {', '.join(available) or 'none'}; views of {self.name}: "
                f"{', '.join(f'{role}={key}' for role, key in self.cameras.items())}). Set `views` to some of these."
            )
        return known

    def why_unusable(self, columns: Collection[str], allow_unverified: bool = False) -> str:
        """Why `columns` of this row (keys of `unsupported`) cannot be used, or "" if they can."""
        marked = {} if allow_unverified else {name: f"not verified: {why}" for name, why in self.unverified.items()}
        return "; ".join(f"{name}: {why}" for name, why in {**marked, **self.unsupported}.items() if name in columns)


def _openx_spec(row: OpenXDataset) -> DatasetSpec:
    """The row as a DatasetSpec. End-effector deltas are normalised to mean 0 and standard deviation 1, the gripper is not, as in Octo."""
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
    return DatasetSpec(
        name=row.name,
        cameras=cameras,
        clip_views={view: 1.0} if view else {},
        policy_views=(view,) if view else (),
        action_key=str(row.composition or "action"),
        action_width=ACTION_WIDTH,
        action_parts=row.composition,
        normalization="mean_std",
        normalized=(True,) * (ACTION_WIDTH - 1) + (False,),
        control_hz=row.control_hz,
        proprio_key=str(row.proprio_composition),
        proprio_width=PROPRIO_WIDTH,
        proprio_parts=row.proprio_composition,
        instruction_keys=(row.instruction,),
        clip_sampling=row.clip_sampling,
        first_step=row.first_step,
        episode_filter=row.episode_filter,
        bgr_cameras=tuple(f"observation/{key}" for key in row.bgr_cameras),
        unsupported=unsupported,
        unverified=row.unverified,
        notes=row.notes,
    )


# Columns of a row that stage video and stage policy need.
CLIP_COLUMNS = ("cameras", "instruction")
POLICY_COLUMNS = (*CLIP_COLUMNS, "action", "gripper", "proprio", "control_hz")

_CALVIN = DatasetSpec(
    name="calvin_mujoco",
    cameras={"primary": "observation/rgb_static", "wrist": "observation/rgb_gripper"},
    clip_views={"primary": 0.75, "wrist": 0.25},
    policy_views=("primary", "wrist"),
    action_key="action",
    action_width=7,
    normalization="none",
    control_hz=30.0,
    proprio_key="observation/robot_obs",
    proprio_width=15,
    signed_dimensions=(6,),
    units=("2 cm", "0.05 rad"),
    notes="action: relative xyz/0.02 m, euler/0.05 rad, gripper +-1; already in [-1, 1], so it is not normalised",
)

REGISTRY: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        _CALVIN,
        replace(
            _CALVIN,
            name="calvin",
            instruction_keys=(ALL_INSTRUCTIONS, LANGUAGE_INSTRUCTION),
            notes="the recorded dataset as converted by `vpp data build calvin`; rel_actions as stored, already in [-1, 1]",
        ),
        DatasetSpec(
            name="human_video",
            cameras={"primary": "observation/image"},
            clip_views={"primary": 1.0},
            policy_views=("primary",),
            action_key="",
            action_width=0,
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


def dataset_spec(name: str) -> DatasetSpec:
    """The row `name`; DataError with the nearest name otherwise."""
    if name not in REGISTRY:
        hint = nearest(name, REGISTRY) or "; data_pipelines/openx/table.py lists its rows"
        raise DataError(f"dataset '{name}' is not in the registry of {len(REGISTRY)} datasets{hint}")
    return REGISTRY[name]
