"""Writes TFDS/RLDS directories without TensorFlow: features.json, dataset_info.json, TFRecord shards.

`tfds.builder_from_directory` opens the result. Every file is written atomically.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_pipelines import storage
from data_pipelines.errors import DataError
from data_pipelines.rlds import examples
from data_pipelines.rlds.dataset import DEFAULT_TEMPLATE, METADATA_FILE
from data_pipelines.rlds.schema import NUMERIC_IN_FLOAT_LIST, NUMERIC_IN_INT64_LIST, STEPS, Feature, Schema
from data_pipelines.storage import Location

FEATURES = "tensorflow_datasets.core.features"
Columns = Mapping[str, "np.ndarray | list[bytes] | list[str]"]


@dataclass(frozen=True)
class WrittenSplit:
    """A split in dataset_info.json: records per shard, total number of bytes."""

    shard_lengths: tuple[int, ...]
    num_bytes: int


def shard_name(dataset: str, split: str, shard: int, shards: int) -> str:
    return f"{dataset}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"


def encode_episode(schema: Schema, steps: Columns, metadata: Mapping[str, object]) -> bytes:
    """Encodes one record.

    Args:
      steps: every step feature of `schema`: arrays [steps, *shape], lists of encoded images (bytes) or of texts (str).
      metadata: every episode feature: numbers or strings, of a sequence of texts a list.
    """
    if steps.keys() != schema.steps.keys() or metadata.keys() != schema.episode.keys():
        wrong = sorted(set(steps) ^ set(schema.steps) | set(metadata) ^ set(schema.episode))
        raise DataError(f"an episode must have exactly the fields of its schema; missing or unknown: {', '.join(wrong)}")
    lengths = {name: len(values) for name, values in steps.items()}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise DataError(f"step columns must be equally long and not empty, got {lengths}")
    columns = {f"{STEPS}/{name}": _column(name, schema.steps[name], values) for name, values in steps.items()}
    for name, value in metadata.items():
        feature = schema.episode[name]
        values = value if feature.sequence else [value] if feature.kind == "text" else np.asarray(value)[None]
        columns[name] = _column(name, feature, values)
    return examples.encode(columns)


def _column(name: str, feature: Feature, values) -> np.ndarray | list[bytes]:
    if feature.kind == "text":
        return [value.encode() if isinstance(value, str) else bytes(value) for value in values]
    if feature.kind == "image":
        return [bytes(value) for value in values]
    array = np.asarray(values)
    if array.shape[1:] != feature.shape:
        raise DataError(f"field '{name}': shape {array.shape[1:]} per step, the schema says {feature.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"field '{name}': NaN or infinite values")
    stored = NUMERIC_IN_FLOAT_LIST if array.dtype.kind == "f" else NUMERIC_IN_INT64_LIST
    if feature.dtype not in stored:
        raise DataError(f"field '{name}': got {array.dtype}, the schema says {feature.dtype}")
    if feature.encoding == "bytes":
        return [row.tobytes() for row in array.astype(np.dtype(feature.dtype).newbyteorder("<"), copy=False)]
    return array


def features_json(schema: Schema) -> dict:
    """The JSON tree that TFDS's `FeaturesDict` writes for this schema."""
    steps = {"pythonClassName": f"{FEATURES}.dataset_feature.Dataset", "sequence": {"feature": _dict(schema.steps), "length": "-1"}}
    tree = _dict(schema.episode)
    tree["featuresDict"]["features"][STEPS] = steps
    return tree


def _dict(leaves: Mapping[str, Feature]) -> dict:
    """FeaturesDict of joined names. The names that this project writes have no "/" except as separator, so they can be split."""
    features: dict[str, dict] = {}
    groups: dict[str, dict[str, Feature]] = {}
    for name, feature in leaves.items():
        group, _, rest = name.partition("/")
        if rest:
            groups.setdefault(group, {})[rest] = feature
        else:
            features[name] = leaf(feature)
    features |= {name: _dict(members) for name, members in groups.items()}
    return {"pythonClassName": f"{FEATURES}.features_dict.FeaturesDict", "featuresDict": {"features": features}}


def leaf(feature: Feature) -> dict:
    """The JSON tree that TFDS writes for one feature."""
    shape = {"dimensions": ["-1" if size is None else str(size) for size in feature.shape]} if feature.shape else {}
    description = {"description": feature.description} if feature.description else {}
    if feature.sequence:
        (length,) = feature.sequence
        inside = {"feature": leaf(replace(feature, sequence=())), "length": "-1" if length is None else str(length)}
        return {"pythonClassName": f"{FEATURES}.sequence_feature.Sequence", "sequence": inside}
    if feature.kind == "text" and not feature.shape:
        return {"pythonClassName": f"{FEATURES}.text_feature.Text", "text": {}, **description}
    if feature.kind == "image":
        body = {"shape": shape, "dtype": feature.dtype, "encodingFormat": feature.encoding}
        return {"pythonClassName": f"{FEATURES}.image_feature.Image", "image": body, **description}
    python_class = "tensor_feature.Tensor" if feature.shape else "scalar.Scalar"
    body = {"shape": shape, "dtype": feature.dtype, "encoding": feature.encoding}
    return {"pythonClassName": f"{FEATURES}.{python_class}", "tensor": body, **description}


def write_metadata(
    directory: Location,
    features: Schema | dict,
    name: str,
    version: str,
    splits: Mapping[str, WrittenSplit],
    description: str,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes features.json and then dataset_info.json, last, because it marks the directory as a dataset.

    Args:
      features: a schema, or the tree of a features.json.
      metadata: content of metadata.json, which TFDS returns as `builder.info.metadata`; no file if empty.
    """
    info = {
        "citation": "",
        "description": description,
        "fileFormat": "tfrecord",
        "moduleName": __name__,
        "name": name,
        "releaseNotes": {version: description.splitlines()[0]},
        "version": version,
        "splits": [
            {
                "filepathTemplate": DEFAULT_TEMPLATE,
                "name": split,
                "numBytes": str(written.num_bytes),
                "shardLengths": [str(length) for length in written.shard_lengths],
            }
            for split, written in splits.items()
        ],
    }
    tree = features_json(features) if isinstance(features, Schema) else features
    if metadata:
        storage.write(storage.join(directory, METADATA_FILE), json.dumps(metadata, indent=1).encode())
    storage.write(storage.join(directory, "features.json"), json.dumps(tree, indent=1).encode())
    storage.write(storage.join(directory, "dataset_info.json"), json.dumps(info, indent=1).encode())
