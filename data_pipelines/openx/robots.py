"""Where the description of a robot comes from: a file, a configuration, or the registry."""

import json
import logging
import tomllib
from dataclasses import replace
from typing import Any

from data_pipelines import storage
from data_pipelines.config import DatasetConfig
from data_pipelines.errors import DataError, DatasetNotFoundError
from data_pipelines.openx.registry import REGISTRY, dataset_spec
from data_pipelines.openx.robot_spec import RobotSpec
from data_pipelines.rlds.dataset import DatasetInfo, resolve
from data_pipelines.storage import Location
from vpp_jax.common.text_files import decode_text

# Looked for next to the shards of a dataset.
BESIDE = ("robot.toml", "robot.json")
log = logging.getLogger(__name__)


def find_robot(directory: Location, name: str = "", robot: str = "") -> RobotSpec:
    """The description of the robot of a dataset.

    Args:
      directory: of the dataset; not read where `robot` says all.
      name: what it is called here; "": as in its description, else as the dataset.
      robot: a TOML or JSON file, JSON text, or a row of the registry; "": `robot.toml` or `robot.json` in `directory`, else the row `name`.
    """
    described = described_robot(directory, name, robot)
    return dataset_spec(name or DatasetInfo.read(directory).name) if described is None else described


def known_robot(info: DatasetInfo, robot: str = "") -> RobotSpec | None:
    """The same for commands that work without a description, too: None where `robot` is "" and nothing describes the dataset."""
    return described_robot(info.directory, "", robot) or REGISTRY.get(info.name)


def robot_of(entry: DatasetConfig) -> RobotSpec:
    """The description of a member, with what its configuration says in place of the description's choice."""
    spec = find_robot(storage.location(entry.path), entry.name, entry.robot)
    names = ("normalization", "quantiles", "last_action")
    return replace(spec, **{name: getattr(entry, name) or getattr(spec, name) for name in names})


def described_robot(directory: Location, name: str = "", robot: str = "") -> RobotSpec | None:
    """See `find_robot`; None where `robot` is "" and no file is next to the data."""
    text = robot.strip()
    if text.startswith("{"):
        return RobotSpec.from_json(_parsed(text, ".json", "the JSON text of `robot`"), "the JSON text of `robot`", name)
    if text.endswith((".toml", ".json")):
        return _from_file(storage.location(text), name, directory)
    if text:
        return replace(dataset_spec(text), name=name or text)
    beside = _beside(directory)
    return None if beside is None else _from_file(beside, name, directory)


def _beside(directory: Location) -> Location | None:
    """The file that describes a dataset, next to its shards or to its versions."""
    try:
        shards, _ = resolve(directory)
        places = dict.fromkeys((shards, directory, storage.parent(shards)))
        found = {storage.join(place, name) for place in places for name in storage.list_files(place) if name in BESIDE}
    except (DatasetNotFoundError, FileNotFoundError, NotADirectoryError):
        return None
    return next((file for place in places for name in BESIDE if (file := storage.join(place, name)) in found), None)


def _from_file(file: Location, name: str, directory: Location) -> RobotSpec:
    try:
        text = decode_text(storage.read(file), str(file))
    except FileNotFoundError:
        raise DataError(f"{file} does not exist: it was to describe the robot of {directory}") from None
    tree = _parsed(text, ".json" if str(file).endswith(".json") else ".toml", str(file))
    spec = RobotSpec.from_json(tree, str(file), name or tree.get("name") or DatasetInfo.read(directory).name)
    log.info("robot '%s' of %s: described by %s", spec.name, directory, file)
    return spec


def _parsed(text: str, suffix: str, where: str) -> dict[str, Any]:
    try:
        tree = json.loads(text) if suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not {suffix.removeprefix('.').upper()}: {error}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{where} is not a table of attributes")
    return tree
