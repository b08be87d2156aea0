"""The description of a robot and its data, as data: what features.json does not say, e.g. the roles of cameras and the meaning of actions.

A description is a row of the registry, a TOML or JSON file, or JSON text in a configuration (`robots.find_robot`). It is stored in the
checkpoints of policies, and whoever acts with one reads it from there.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.openx.standardise import Composition
from data_pipelines.rlds.filters import EpisodeFilter
from data_pipelines.rlds.windows import CLIP_SAMPLING, LAST_ACTION
from data_pipelines.transforms import NORMALIZATIONS
from vpp_jax.common.config_tree import build, to_tree
from vpp_jax.common.errors import ConfigError
from vpp_jax.common.json_values import to_jsonable

ACTION_MODES = ("relative", "absolute")
ROTATIONS = ("", "euler", "axis_angle", "quaternion", "rot6d")
FRAMES = ("", "base", "end_effector")


@dataclass(frozen=True)
class RobotSpec:
    """One robot and its data.

    Attributes:
      cameras: view name -> step feature. Views are named by role (primary, secondary, wrist), so that datasets can be mixed.
      control_hz: rate of the actions; None if unknown.
      action: the label: a step feature, whose width `action_width` says, or an expression of several ('action[0:6] + closed(action[6:7])',
        see `standardise.parts`).
      action_width: follows from an expression.
      normalization: of actions: none, mean_std or quantile; applied to the dimensions where `normalized` is True (empty: all but grippers).
      quantiles: the two quantiles that normalization 'quantile' maps to -1 and 1.
      proprio, proprio_width: robot state in the same form, normalised by mean and standard deviation; "" and 0 if there is none.
      action_mode: 'relative' (to the current pose) or 'absolute'.
      rotation, frame, units: form of the action's rotation ('euler', 'axis_angle', 'quaternion', 'rot6d'), its frame ('base',
        'end_effector'), its units of position and rotation; "" if not documented.
      signed_dimensions: action dimensions that the robot expects as +1 or -1 (grippers): the policy's output is replaced by its sign.
      clip_views: view -> probability that a video clip shows it; empty: the first camera.
      policy_views: views of a policy whose configuration names none; empty: all.
      bgr_cameras: cameras whose images are stored in BGR order.
      instruction_keys: instruction features; the first one in features.json is used.
      clip_sampling: 'strided' (robot episodes) or 'whole' (the clip spans the episode).
      clip_stride, clip_start_every, observation_stride: in place of those in `data`; 0: as there.
      first_step: earlier steps are excluded from policy examples and statistics.
      last_action: 'used', or 'dropped' from policy examples and statistics: by the specification of RLDS the action of the last step
        (is_last) is invalid, but most datasets of Open-X store the command given there, and Octo trains on it.
      episode_filter: which episodes are used; None: all.
      unsupported, unverified: 'cameras', 'instruction', 'action', 'gripper', 'proprio' or 'control_hz' -> why it cannot be used, or what
        is not documented about it.
    """

    name: str
    cameras: dict[str, str]
    control_hz: float | None = None
    action: str = ""
    action_width: int = 0
    normalization: str = "mean_std"
    normalized: tuple[bool, ...] = ()
    quantiles: tuple[float, float] = (0.01, 0.99)
    proprio: str = ""
    proprio_width: int = 0
    action_mode: str = "relative"
    rotation: str = ""
    frame: str = ""
    units: tuple[str, ...] = ("", "")
    signed_dimensions: tuple[int, ...] = ()
    clip_views: dict[str, float] = field(default_factory=dict)
    policy_views: tuple[str, ...] = ()
    bgr_cameras: tuple[str, ...] = ()
    instruction_keys: tuple[str, ...] = ("language_instruction",)
    clip_sampling: str = "strided"
    clip_stride: int = 0
    clip_start_every: int = 0
    observation_stride: int = 0
    first_step: int = 0
    last_action: str = "used"
    episode_filter: EpisodeFilter | None = None
    unsupported: dict[str, str] = field(default_factory=dict)
    unverified: dict[str, str] = field(default_factory=dict)
    notes: str = field(default="", compare=False)

    def __post_init__(self):
        for name, choices in (
            ("normalization", NORMALIZATIONS),
            ("clip_sampling", CLIP_SAMPLING),
            ("last_action", LAST_ACTION),
            ("action_mode", ACTION_MODES),
            ("rotation", ROTATIONS),
            ("frame", FRAMES),
        ):
            if getattr(self, name) not in choices:
                raise DataError(f"{self.name}: {name} is '{getattr(self, name)}', expected one of {', '.join(filter(None, choices))}")
        if len(self.quantiles) != 2 or not 0 <= self.quantiles[0] < self.quantiles[1] <= 1:
            raise DataError(f"{self.name}: quantiles are {self.quantiles}, expected a lower and a higher one in [0, 1]")
        for key, width in (("action", "action_width"), ("proprio", "proprio_width")):
            self._set_width(key, width)
        if self.action_parts and not self.normalized:
            grippers = self.action_parts.grippers
            object.__setattr__(self, "normalized", tuple(dimension not in grippers for dimension in range(self.action_width)))
        if self.cameras and not self.clip_views:
            object.__setattr__(self, "clip_views", {next(iter(self.cameras)): 1.0})
        if not self.policy_views:
            object.__setattr__(self, "policy_views", tuple(self.cameras))
        unknown = (set(self.clip_views) | set(self.policy_views)) - set(self.cameras)
        if unknown or (self.normalized and len(self.normalized) != self.action_width):
            raise DataError(
                f"{self.name}: views {sorted(unknown)} are not in `cameras`, or `normalized` does not have {self.action_width} entries"
            )

    def _set_width(self, key: str, name: str) -> None:
        """Takes the width of an expression from it, and checks that there is a width where there is a column."""
        try:
            parts, width = self._parts(key), getattr(self, name)
        except ValueError as error:
            raise DataError(f"{self.name}: {key}: {error}") from None
        if parts and width not in (0, parts.width):
            raise DataError(f"{self.name}: {name} is {width}, but {key} '{getattr(self, key)}' has {parts.width} numbers")
        if getattr(self, key) and not parts and not width:
            raise DataError(f"{self.name}: {key} is the column '{getattr(self, key)}'; say its width in {name}, or write KEY[0:WIDTH]")
        object.__setattr__(self, name, parts.width if parts else width)

    def _parts(self, key: str) -> Composition | None:
        text = getattr(self, key)
        return Composition.parse(text) if set("[(*") & set(text) else None

    @cached_property
    def action_parts(self) -> Composition | None:
        """The action's expression; None where it is one column as stored."""
        return self._parts("action")

    @cached_property
    def proprio_parts(self) -> Composition | None:
        """Likewise of the state."""
        return self._parts("proprio")

    @property
    def lost_steps(self) -> int:
        """Steps at the end of an episode that have no action."""
        composed = self.action_parts.lost_steps if self.action_parts else 0
        return max(composed, int(self.last_action == "dropped"))

    def camera(self, view: str, available: tuple[str, ...], where: str) -> str:
        """Step feature of `view`: a role of this robot, or the name of a camera. DataError if the dataset does not have it."""
        known = self.find_camera(view, available)
        if known is None or known not in available:
            missing = f"camera '{known}' is not in features.json" if known else f"view '{view}' is unknown"
            raise DataError(
                f"{where}: {missing} (has cameras {', '.join(available) or 'none'}; views of {self.name}: "
                f"{', '.join(f'{role}={key}' for role, key in self.cameras.items())}). Set `views` to some of these."
            )
        return known

    def find_camera(self, view: str, available: tuple[str, ...]) -> str | None:
        """Step feature of `view`; None where this robot has no such view."""
        return self.cameras.get(view) or next((name for name in available if view in (name, name.rsplit("/", 1)[-1])), None)

    def why_unusable(self, columns: Collection[str], allow_unverified: bool = False) -> str:
        """Why `columns` of this description (keys of `unsupported`) cannot be used, or "" if they can."""
        marked = {} if allow_unverified else {name: f"not verified: {why}" for name, why in self.unverified.items()}
        unknown = {"control_hz": "not known"} if self.control_hz is None else {}
        problems = marked | self.unsupported
        return "; ".join(f"{name}: {why}" for name, why in (problems | unknown | problems).items() if name in columns)

    def to_json(self) -> dict[str, Any]:
        return to_jsonable(to_tree(self))

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], where: str, name: str = "") -> "RobotSpec":
        """The inverse of `to_json`; attributes that are absent have their defaults. DataError names what is unknown or has another type.

        Args:
          where: what the description is read from, for errors.
          name: in place of the one in `tree`.
        """
        try:
            return build(cls, {**tree, "name": name or tree.get("name", "")})
        except TypeError as error:  # an attribute without a default is absent
            raise DataError(f"{where}: {str(error).removeprefix('RobotSpec.__init__() ')}") from None
        except (ConfigError, DataError) as error:
            raise DataError(f"{where}: {error}") from None
