"""The robots of a checkpoint of stage `policy`: how each one's observations and actions are read, from the checkpoint alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_pipelines.openx.robot_spec import RobotSpec
from data_pipelines.transforms import Normalizer
from vpp_jax.common.errors import VppError, nearest


class UnknownRobotError(VppError):
    """No robot, or a wrong one, was chosen of those a checkpoint was trained on."""


@dataclass(frozen=True)
class TrainedRobot:
    """One dataset that a policy was trained on.

    Attributes:
      number: its number in the checkpoint, which the policy is conditioned on.
      views: view -> camera.
      action_steps: actions of a chunk that it was trained on.
      recorded_in: the simulator of its data and its settings, where known.
      action, proprio: normalisation with the statistics of its training data; `inverse` gives its own units.
    """

    number: int
    spec: RobotSpec
    views: Mapping[str, str]
    action_steps: int
    action: Normalizer
    proprio: Normalizer
    statistics_hash: str
    recorded_in: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.spec.name


def trained_robots(metadata: Mapping[str, Any], where: str) -> dict[str, TrainedRobot]:
    """Name -> robot, of a checkpoint's metadata; `where` names it in errors."""
    found: dict[str, TrainedRobot] = {}
    for number, entry in enumerate(metadata["data"]["datasets"]):
        if "robot" not in entry:
            raise UnknownRobotError(f"{where} does not describe its robots: an earlier version wrote it. Train or import it again")
        spec = RobotSpec.from_json(entry["robot"], where)
        action, proprio = Normalizer.from_json(entry["action"]), Normalizer.from_json(entry["proprio"])
        origin = entry.get("statistics_hash", ""), entry.get("recorded_in", {})
        found[spec.name] = TrainedRobot(number, spec, entry["views"], entry["action_steps"], action, proprio, *origin)
    return found


def choose_robot(metadata: Mapping[str, Any], name: str, where: str) -> TrainedRobot:
    """The robot called `name`; '' is the only one. UnknownRobotError lists all where there are several, or none of this name."""
    robots = trained_robots(metadata, where)
    names = ", ".join(robots)
    if not name and len(robots) > 1:
        raise UnknownRobotError(f"{where} was trained on {len(robots)} robots ({names}): choose one with --robot=NAME")
    if name and name not in robots:
        raise UnknownRobotError(f"{where} was not trained on a robot '{name}'{nearest(name, robots)}; it knows {names}")
    return robots[name or next(iter(robots))]
