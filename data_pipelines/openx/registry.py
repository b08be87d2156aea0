"""What is known about each dataset that its features.json does not say: which camera is which, what an action means.

A table with one row per dataset; adding a dataset is adding a row. CALVIN's rows stand here, those of Open X-Embodiment follow from
`data_pipelines.openx.table`: their actions and states are composed of several columns into one common form.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from data_pipelines.errors import DataError
from data_pipelines.openx.conventions import ACTION_WIDTH, PROPRIO_WIDTH, ActionEncoding, Gripper, Proprio
from data_pipelines.openx.standardise import Composition
from data_pipelines.openx.table import OPENX, OpenXDataset
from data_pipelines.rlds.filters import EpisodeFilter
from data_pipelines.rlds.windows import CLIP_SAMPLING
from data_pipelines.transforms import NORMALIZATIONS
from vpp_jax.common.errors import nearest


@dataclass(frozen=True)
class DatasetSpec:
    """One row.

    Attributes:
      cameras: view name -> step feature. Views are named by role, so that datasets mix: primary, secondary, wrist.
      clip_views: how often a training clip is taken from each view.
      policy_views: views a policy sees when its configuration names none.
      action_key, action_width: the label; `normalization` is applied to the dimensions where `normalized` is True (all when empty).
      proprio_key, proprio_width: robot state, scaled by mean and standard deviation; "" and 0 when there is none.
      action_parts, proprio_parts: where given, the label or the state is composed of several columns, and the key is their text.
      quantiles: what normalization 'quantile' takes to -1 and 1.
      bgr_cameras: cameras whose pictures are stored blue-green-red.
      unsupported, unverified: 'cameras', 'instruction', 'action', 'gripper', 'proprio' or 'control_hz' -> why it cannot be used, or what
        about it no documentation confirms.
      instruction_keys: the first one that features.json has is used.
      clip_sampling: 'strided' (robot episodes) or 'whole' (the clip spans the episode).
      first_step: steps before it are no policy examples and not in the statistics.
      episode_filter: which of its episodes are used; None: all.
      units: of the position and of the rotation in an action; "" where no documentation says.
      control_hz: rate of the actions; None: not known.
      signed_dimensions: commands that are +1 or -1 to the robot (grippers): a policy's output there is replaced by its sign.
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
            raise ValueError(f"{self.name}: views {sorted(unknown)} are no cameras, or `normalized` has not {self.action_width} entries")

    def camera(self, view: str, available: tuple[str, ...], where: str) -> str:
        """Step feature of `view`: a role of this row or directly the name of a camera. DataError when the dataset has it not."""
        known = self.cameras.get(view) or next((name for name in available if view in (name, name.rsplit("/", 1)[-1])), None)
        if known is None or known not in available:
            missing = f"camera '{known}' is not in features.json" if known else f"view '{view}' is unknown"
            raise DataError(
                f"{where}: {missing} (has cameras {', '.join(available) or 'none'}; views of {self.name}: "
                f"{', '.join(f'{role}={key}' for role, key in self.cameras.items())}). Choose `views` among these."
            )
        return known

    def why_unusable(self, columns: Collection[str], allow_unverified: bool = False) -> str:
        """Why `columns` of this row (see `unsupported`) cannot be used, or ""."""
        marked = {} if allow_unverified else {name: f"not verified: {why}" for name, why in self.unverified.items()}
        return "; ".join(f"{name}: {why}" for name, why in {**marked, **self.unsupported}.items() if name in columns)


def _openx_spec(row: OpenXDataset) -> DatasetSpec:
    """End-effector deltas with mean 0 and deviation 1 and the gripper left as it is, as Octo scales them."""
    cameras = {role: f"observation/{key}" for role, key in row.cameras.items()}
    view = next(iter(cameras), "")
    unsupported = {}
    if not cameras:
        unsupported["cameras"] = row.notes
    if row.action is not ActionEncoding.EEF_DELTA:
        unsupported["action"] = f"no common form for '{row.action.value}'"
    if row.gripper_convention is Gripper.UNKNOWN:
        unsupported["gripper"] = "not documented"
    if row.proprio in (Proprio.UNKNOWN, Proprio.JOINT_BIMANUAL):
        unsupported["proprio"] = f"no common form for '{row.proprio.value}'"
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


# What stage needs what of a row.
CLIP_COLUMNS = ("cameras", "instruction")
POLICY_COLUMNS = (*CLIP_COLUMNS, "action", "gripper", "proprio", "control_hz")

REGISTRY: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
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
            notes="action: relative xyz/0.02 m, euler/0.05 rad, gripper +-1; already in [-1, 1], so it is not scaled again",
        ),
        DatasetSpec(
            name="calvin",
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
