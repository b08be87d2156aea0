"""What is known about each dataset that its features.json does not say: which camera is which, what an action means.

A table with one row per dataset; adding a dataset is adding a row. Sources: the dataset's own documentation and the tables of
Octo and OpenVLA (bridge_dataset: WidowX 250, 5 Hz, action = end-effector deltas xyz and roll-pitch-yaw plus gripper 0 closed..1 open).
"""

import difflib
from dataclasses import dataclass, field

from data_pipelines.errors import DataError
from data_pipelines.rlds.windows import CLIP_SAMPLING
from data_pipelines.transforms import NORMALIZATIONS


@dataclass(frozen=True)
class DatasetSpec:
    """One row.

    Attributes:
      cameras: view name -> step feature. Views are named by role, so that datasets mix: primary, secondary, wrist.
      clip_views: how often a training clip is taken from each view.
      policy_views: views a policy sees when its configuration names none.
      action_key, action_width: the label; `normalization` is applied to the dimensions where `normalized` is True (all when empty).
      proprio_key, proprio_width: robot state, scaled by mean and standard deviation; "" and 0 when there is none.
      instruction_keys: the first one that features.json has is used.
      clip_sampling: 'strided' (robot episodes) or 'whole' (the clip spans the episode).
      first_step: steps before it are no policy examples and not in the statistics.
      control_hz: rate of the actions.
      signed_dimensions: commands that are +1 or -1 to the robot (grippers): a policy's output there is replaced by its sign.
    """

    name: str
    cameras: dict[str, str]
    clip_views: dict[str, float]
    policy_views: tuple[str, ...]
    action_key: str
    action_width: int
    normalization: str
    control_hz: float
    normalized: tuple[bool, ...] = ()
    proprio_key: str = ""
    proprio_width: int = 0
    instruction_keys: tuple[str, ...] = ("language_instruction",)
    clip_sampling: str = "strided"
    first_step: int = 0
    signed_dimensions: tuple[int, ...] = ()
    notes: str = field(default="", compare=False)

    def __post_init__(self):
        if self.normalization not in NORMALIZATIONS or self.clip_sampling not in CLIP_SAMPLING:
            raise ValueError(f"{self.name}: normalization '{self.normalization}' or clip_sampling '{self.clip_sampling}' is unknown")
        unknown = (set(self.clip_views) | set(self.policy_views)) - set(self.cameras)
        if unknown or (self.normalized and len(self.normalized) != self.action_width):
            raise ValueError(f"{self.name}: views {sorted(unknown)} are no cameras, or `normalized` has not {self.action_width} entries")

    def camera(self, view: str, available: tuple[str, ...], where: str) -> str:
        """Step feature of `view`: a role of this row or directly the name of a camera. DataError when the dataset has it not."""
        known = self.cameras.get(view) or next((name for name in available if view in (name, name.rsplit("/", 1)[-1])), None)
        if known is None or known not in available:
            missing = f"camera '{known}' is not in features.json" if known else f"view '{view}' is unknown"
            raise DataError(f"{where}: {missing} (has cameras {', '.join(available) or 'none'}; views of {self.name}: "
                            f"{', '.join(f'{role}={key}' for role, key in self.cameras.items())}). Choose `views` among these.")
        return known


REGISTRY: dict[str, DatasetSpec] = {spec.name: spec for spec in (
    DatasetSpec(
        name="calvin_mujoco",
        cameras={"primary": "observation/rgb_static", "wrist": "observation/rgb_gripper"},
        clip_views={"primary": 0.75, "wrist": 0.25},
        policy_views=("primary", "wrist"),
        action_key="action", action_width=7, normalization="none", control_hz=30.0,
        proprio_key="observation/robot_obs", proprio_width=15, signed_dimensions=(6,),
        notes="action: relative xyz/0.02 m, euler/0.05 rad, gripper +-1; already in [-1, 1], so it is not scaled again",
    ),
    DatasetSpec(
        name="calvin",
        cameras={"primary": "observation/rgb_static", "wrist": "observation/rgb_gripper"},
        clip_views={"primary": 0.75, "wrist": 0.25},
        policy_views=("primary", "wrist"),
        action_key="action", action_width=7, normalization="none", control_hz=30.0,
        proprio_key="observation/robot_obs", proprio_width=15, signed_dimensions=(6,),
        notes="the recorded dataset as converted by `vpp data build calvin`; rel_actions as stored, already in [-1, 1]",
    ),
    DatasetSpec(
        name="bridge_dataset",
        cameras={"primary": "observation/image_0", "secondary": "observation/image_1", "tertiary": "observation/image_2",
                 "wrist": "observation/image_3"},
        clip_views={"primary": 1.0},
        policy_views=("primary",),
        action_key="action", action_width=7, normalization="mean_std", normalized=(True,) * 6 + (False,), control_hz=5.0,
        proprio_key="observation/state", proprio_width=7,
        instruction_keys=("language_instruction", "observation/natural_language_instruction"),
        clip_sampling="whole", first_step=1,
        notes="first action of every episode is all zero; has_image_k flags are unreliable in some copies; many instructions are empty",
    ),
)}


def dataset_spec(name: str) -> DatasetSpec:
    """The row `name`; DataError with the nearest name otherwise."""
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise DataError(f"dataset '{name}' is not in the registry (has {', '.join(REGISTRY)}){hint}")
    return REGISTRY[name]
