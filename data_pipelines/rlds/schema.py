"""RLDS step fields and the `features.json` TFDS writes, read as plain JSON.

A TFDS episode dataset is a FeaturesDict with one `Dataset` feature called `steps`; everything else at the top level describes
the episode. In a record nested names are joined with "/", so the schema is a flat dict keyed by that joined name. Names may
contain "/" themselves (`gripper/closed`), hence a joined name is never split again.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from data_pipelines import storage
from data_pipelines.errors import DataError, DatasetNotFoundError
from data_pipelines.storage import RETRY, Location, Retry

# Field names of the RLDS specification (github.com/google-research/rlds); a test holds them equal to the `rlds` package,
# which is not imported here because it needs TensorFlow.
STEPS = "steps"
OBSERVATION = "observation"
ACTION = "action"
REWARD = "reward"
DISCOUNT = "discount"
IS_FIRST = "is_first"
IS_LAST = "is_last"
IS_TERMINAL = "is_terminal"
# Not in the specification, but used by nearly every dataset with language instructions.
LANGUAGE_INSTRUCTION = "language_instruction"
# Of episodes that this project writes: all instructions of a clip, of which the one above is the first.
ALL_INSTRUCTIONS = "episode_metadata/instructions"

NUMERIC_IN_INT64_LIST = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
NUMERIC_IN_FLOAT_LIST = ("float16", "bfloat16", "float32", "float64")
STRINGS = ("string", "object", "str")


@dataclass(frozen=True)
class Feature:
    """One column.

    Attributes:
      kind: 'tensor', 'image', 'text' or 'unsupported' (listed, but an error to read).
      dtype: NumPy name; 'string' for texts.
      shape: per step (or per episode, for episode features); None for a variable dimension.
      encoding: of tensors, 'none' | 'bytes' | 'zlib'; of images, 'jpeg' | 'png' | '' (detect from the bytes).
      sequence: length of each TFDS Sequence around the value, outermost first, None where it varies. `shape` is one element's.
    """

    kind: str
    dtype: str = "string"
    shape: tuple[int | None, ...] = ()
    encoding: str = "none"
    description: str = ""
    python_class: str = ""
    sequence: tuple[int | None, ...] = ()

    @property
    def dynamic(self) -> bool:
        """More than one dimension is variable, so TFDS stores the shape with each value."""
        return self.kind == "tensor" and self.shape.count(None) > 1

    @property
    def fixed_shape(self) -> tuple[int, ...]:
        """`shape` of a feature without variable dimensions; ValueError otherwise."""
        known = tuple(size for size in self.shape if size is not None)
        if len(known) != len(self.shape):
            raise ValueError(f"shape {list(self.shape)} has variable dimensions")
        return known

    @property
    def is_colour(self) -> bool:
        """A colour image, encoded or not; other images are depth or masks."""
        encoded = self.kind == "image" and (not self.shape or self.shape[-1] in (3, 4, None))
        return self.dtype == "uint8" and (encoded or self.is_raw_image)

    @property
    def is_raw_image(self) -> bool:
        """A tensor of pixels [h, w, 3]."""
        return self.kind == "tensor" and self.dtype == "uint8" and len(self.shape) == 3 and self.shape[-1] == 3 and None not in self.shape

    def why_no_vector(self) -> str:
        """Why a step's value is not a fixed number of numbers, as actions and states are; '' if it is."""
        if self.kind != "tensor":
            return f"is {'text' if self.kind == 'text' else self.kind}, expected numbers"
        if self.sequence or None in self.shape:
            lengths = "x".join("?" if size is None else str(size) for size in (*self.sequence, *self.shape))
            return f"has a varying number of values per step ({lengths}), expected the same at every step"
        return ""

    @property
    def width(self) -> int:
        """Numbers per step, of a feature for which `why_no_vector` is ''. A scalar is one, [1, 7] are seven."""
        return math.prod(self.fixed_shape)


@dataclass(frozen=True)
class Schema:
    """Columns of the steps and of the episode, by joined name without the leading `steps/`."""

    steps: dict[str, Feature] = field(default_factory=dict)
    episode: dict[str, Feature] = field(default_factory=dict)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the step features that are one colour image per step, e.g. `observation/image_0`."""
        return tuple(name for name, feature in self.steps.items() if feature.is_colour and not feature.sequence)

    def step(self, name: str, where: str) -> Feature:
        """The step feature `name`; DataError naming `where` and the available features."""
        if name not in self.steps:
            raise DataError(f"{where}: no step field '{name}' in features.json (has {', '.join(sorted(self.steps)) or 'none'})")
        return self.steps[name]

    @classmethod
    def read(cls, directory: Location, retry: Retry = RETRY) -> "Schema":
        path = storage.join(storage.location(directory), "features.json")
        try:
            text = storage.read(path, retry)
        except FileNotFoundError as error:
            reason = "not a TFDS/RLDS directory (expected features.json next to the shards)"
            raise DatasetNotFoundError(f"{path} does not exist: {reason}") from error
        try:
            return cls.from_json(json.loads(text))
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a TFDS feature description ({type(error).__name__}: {error})") from error

    @classmethod
    def from_json(cls, tree: dict) -> "Schema":
        """`tree`: the parsed features.json."""
        children = dict(_children(tree))
        if STEPS not in children:
            raise DataError(f"features.json has no 'steps' (has {', '.join(children) or 'nothing'}): the dataset is not in RLDS format")
        step_tree = children.pop(STEPS)["sequence"]["feature"]
        episode = {name: feature for key, child in children.items() for name, feature in _leaves(key, child)}
        return cls(steps=dict(_leaves("", step_tree)), episode=episode)


def _children(node: dict) -> Iterator[tuple[str, dict]]:
    # an empty FeaturesDict is written as an empty object
    yield from node.get("featuresDict", {}).get("features", {}).items()


def _leaves(prefix: str, node: dict, sequence: tuple[int | None, ...] = ()) -> Iterator[tuple[str, Feature]]:
    """Joined name and Feature of every leaf below `node`, in the file's order. `sequence`: lengths of the Sequences around it."""
    python_class = node.get("pythonClassName", "")
    if "featuresDict" in node:
        for key, child in _children(node):
            yield from _leaves(f"{prefix}/{key}" if prefix else key, child, sequence)
    elif "sequence" in node and node["sequence"].get("feature"):  # Sequence, or a Dataset inside a step
        length = int(node["sequence"].get("length", -1))
        yield from _leaves(prefix, node["sequence"]["feature"], (*sequence, None if length < 0 else length))
    elif "video" in node:  # a Sequence of images under another name
        frames, *shape = _shape(node["video"]) or (None,)
        image = {**node, "image": {**node["video"], "shape": {"dimensions": [-1 if size is None else size for size in shape]}}}
        del image["video"]
        yield from _leaves(prefix, image, (*sequence, frames))
    elif not python_class.endswith("FeaturesDict"):
        kind, dtype, shape, encoding = _leaf(node)
        yield prefix, Feature(kind, dtype, shape, encoding, node.get("description", ""), python_class, sequence)


def _leaf(node: dict) -> tuple[str, str, tuple[int | None, ...], str]:
    """kind, dtype, shape, encoding of a leaf feature."""
    if "tensor" in node:
        body = node["tensor"]
        dtype, encoding = body.get("dtype", "float32"), body.get("encoding", "none") or "none"
        kind = "text" if dtype in STRINGS else "tensor" if dtype in NUMERIC_IN_INT64_LIST + NUMERIC_IN_FLOAT_LIST else "unsupported"
        if dtype == "bfloat16" and encoding != "none":  # NumPy has no bfloat16
            kind = "unsupported"
        return kind, dtype, _shape(body), encoding
    if "image" in node:
        body = node["image"]
        return "image", body.get("dtype", "uint8"), _shape(body), body.get("encodingFormat", "")
    if "text" in node:
        return "text", "string", (), "none"
    if "classLabel" in node:
        return "tensor", "int64", (), "none"
    if "boundingBox" in node:
        return "tensor", node["boundingBox"].get("dtype", "float32"), (4,), "none"
    return "unsupported", "", (), "none"  # Audio, Translation, custom features


def _shape(body: dict) -> tuple[int | None, ...]:
    dimensions = (body.get("shape") or {}).get("dimensions", [])
    return tuple(None if int(size) < 0 else int(size) for size in dimensions)


def numpy_dtype(feature: Feature) -> np.dtype:
    """NumPy type of a numeric column (records store float64 and float16 as float32; they are returned as declared)."""
    return np.dtype("float32" if feature.dtype == "bfloat16" else feature.dtype)
