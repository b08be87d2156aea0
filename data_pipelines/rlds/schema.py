"""RLDS step fields and the `features.json` TFDS writes, read as plain JSON.

A TFDS episode dataset is a FeaturesDict with one `Dataset` feature called `steps`; everything else at the top level describes
the episode. In a record nested names are joined with "/", so the schema is a flat dict keyed by that joined name. Names may
contain "/" themselves (`gripper/closed`), hence a joined name is never split again.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError, DatasetNotFoundError

# Field names of the RLDS specification (github.com/google-research/rlds); a test holds them equal to the `rlds` package,
# which cannot be imported here because it needs TensorFlow.
STEPS = "steps"
OBSERVATION = "observation"
ACTION = "action"
REWARD = "reward"
DISCOUNT = "discount"
IS_FIRST = "is_first"
IS_LAST = "is_last"
IS_TERMINAL = "is_terminal"
# Outside the specification, but written by nearly every dataset with sentences.
LANGUAGE_INSTRUCTION = "language_instruction"

NUMERIC_IN_INT64_LIST = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
NUMERIC_IN_FLOAT_LIST = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Feature:
    """One column.

    Attributes:
      kind: 'tensor', 'image', 'text' or 'unsupported' (listed, but an error to read).
      dtype: NumPy name; 'string' for texts.
      shape: per step (or per episode, for episode features); None where the file leaves a dimension open.
      encoding: of tensors, 'none' | 'bytes' | 'zlib'; of images, 'jpeg' | 'png' | '' (look at the bytes).
    """

    kind: str
    dtype: str = "string"
    shape: tuple[int | None, ...] = ()
    encoding: str = "none"
    description: str = ""
    python_class: str = ""


@dataclass(frozen=True)
class Schema:
    """Columns of the steps and of the episode, by joined name without the leading `steps/`."""

    steps: dict[str, Feature] = field(default_factory=dict)
    episode: dict[str, Feature] = field(default_factory=dict)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the step features that are pictures, e.g. `observation/image_0`."""
        return tuple(name for name, feature in self.steps.items() if feature.kind == "image")

    def step(self, name: str, where: str) -> Feature:
        """The step feature `name`; DataError naming `where` and what there is instead."""
        if name not in self.steps:
            raise DataError(f"{where}: no step field '{name}' in features.json (has {', '.join(sorted(self.steps)) or 'none'})")
        return self.steps[name]

    @classmethod
    def read(cls, directory: Path) -> "Schema":
        path = Path(directory) / "features.json"
        if not path.is_file():
            raise DatasetNotFoundError(f"{path} does not exist: not a TFDS/RLDS directory (expected features.json beside the shards)")
        try:
            return cls.from_json(json.loads(path.read_text()))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a TFDS feature description ({type(error).__name__}: {error})") from error

    @classmethod
    def from_json(cls, tree: dict) -> "Schema":
        """`tree`: the parsed features.json."""
        children = dict(_children(tree))
        if STEPS not in children:
            raise DataError(f"features.json has no 'steps' (has {', '.join(children) or 'nothing'}): the dataset is not in RLDS form")
        step_tree = children.pop(STEPS)["sequence"]["feature"]
        episode = {name: feature for key, child in children.items() for name, feature in _leaves(key, child)}
        return cls(steps=dict(_leaves("", step_tree)), episode=episode)


def _children(node: dict) -> Iterator[tuple[str, dict]]:
    # an empty FeaturesDict is written as an empty object
    yield from node.get("featuresDict", {}).get("features", {}).items()


def _leaves(prefix: str, node: dict) -> Iterator[tuple[str, Feature]]:
    """Joined name and Feature of every leaf below `node`, in the file's order."""
    if "featuresDict" in node:
        for key, child in _children(node):
            yield from _leaves(f"{prefix}/{key}" if prefix else key, child)
        return
    python_class, description = node.get("pythonClassName", ""), node.get("description", "")
    if "tensor" in node:
        body = node["tensor"]
        yield prefix, Feature("text" if body.get("dtype") in ("string", "object") else "tensor", body.get("dtype", "float32"),
                              _shape(body), body.get("encoding", "none") or "none", description, python_class)
    elif "image" in node:
        body = node["image"]
        yield prefix, Feature("image", body.get("dtype", "uint8"), _shape(body), body.get("encodingFormat", ""), description, python_class)
    elif "text" in node:
        yield prefix, Feature("text", "string", (), "none", description, python_class)
    elif python_class.endswith("FeaturesDict"):
        return
    else:
        yield prefix, Feature("unsupported", "", (), "none", description, python_class)


def _shape(body: dict) -> tuple[int | None, ...]:
    dimensions = (body.get("shape") or {}).get("dimensions", [])
    return tuple(None if int(size) < 0 else int(size) for size in dimensions)


def numpy_dtype(feature: Feature) -> np.dtype:
    """NumPy type of a numeric column (float64 and float16 travel as float32 inside records, but come back as declared)."""
    return np.dtype("float32" if feature.dtype == "bfloat16" else feature.dtype)
