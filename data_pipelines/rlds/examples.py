"""tf.train.Example without TensorFlow: records to columns, columns to records.

The message is described to protobuf at run time. One liberty is taken: the packed floats of `FloatList` are declared as bytes,
which is the same thing on the wire, so a float column is a view of the record instead of a Python number per element.
"""

import functools
import zlib
from collections.abc import Mapping

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from data_pipelines.rlds import schema as rlds_schema
from data_pipelines.rlds.schema import Feature, Schema, numpy_dtype

_FIELD = descriptor_pb2.FieldDescriptorProto


@functools.cache
def _example_class(floats_as_bytes: bool = True) -> type[message.Message]:
    """The message class of tf.train.Example (tensorflow/core/example/{example,feature}.proto)."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="vpp_jax", syntax="proto3")

    def add(name: str, *fields: tuple, nested: descriptor_pb2.DescriptorProto | None = None, oneof: str = "") -> None:
        entry = file.message_type.add(name=name)
        if oneof:
            entry.oneof_decl.add(name=oneof)
        for number, (field_name, kind, label, type_name) in enumerate(fields, start=1):
            made = entry.field.add(name=field_name, number=number, type=kind, label=label, type_name=type_name)
            if oneof:
                made.oneof_index = 0
        if nested is not None:
            entry.nested_type.append(nested)

    one, many, none = _FIELD.LABEL_OPTIONAL, _FIELD.LABEL_REPEATED, None
    add("BytesList", ("value", _FIELD.TYPE_BYTES, many, none))
    add("FloatList", ("value", _FIELD.TYPE_BYTES if floats_as_bytes else _FIELD.TYPE_FLOAT, many, none))
    add("Int64List", ("value", _FIELD.TYPE_INT64, many, none))
    add("Feature", *((f"{kind.lower()}_list", _FIELD.TYPE_MESSAGE, one, f".vpp_jax.{kind}List") for kind in ("Bytes", "Float", "Int64")),
        oneof="kind")
    entry = descriptor_pb2.DescriptorProto(name="FeatureEntry", options=descriptor_pb2.MessageOptions(map_entry=True))
    entry.field.add(name="key", number=1, type=_FIELD.TYPE_STRING, label=one)
    entry.field.add(name="value", number=2, type=_FIELD.TYPE_MESSAGE, label=one, type_name=".vpp_jax.Feature")
    add("Features", ("feature", _FIELD.TYPE_MESSAGE, many, ".vpp_jax.Features.FeatureEntry"), nested=entry)
    add("Example", ("features", _FIELD.TYPE_MESSAGE, one, ".vpp_jax.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("vpp_jax.Example"))


class Example:
    """A parsed record. Columns are looked up by their joined name, e.g. `steps/observation/image_0`."""

    def __init__(self, payload: bytes):
        """ValueError when `payload` is not a tf.train.Example."""
        self._payload = payload
        try:
            self._features = _example_class().FromString(payload).features.feature
        except message.DecodeError as error:
            raise ValueError(f"not a tf.train.Example ({error})") from error

    def __contains__(self, name: str) -> bool:
        return name in self._features

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._features))

    @property
    def nbytes(self) -> int:
        """Memory it holds, roughly: the record and the parsed copy of it."""
        return 2 * len(self._payload)

    def blobs(self, name: str):
        """The bytes column `name` as a sequence that is not copied until indexed. ValueError where it holds numbers."""
        feature = self._feature(name)
        if feature.WhichOneof("kind") not in ("bytes_list", None):
            raise ValueError(f"holds {feature.WhichOneof('kind')}, expected bytes_list")
        return feature.bytes_list.value

    def numbers(self, name: str) -> np.ndarray:
        """The numeric column `name`, flat: float32[n] or int64[n]. ValueError where it holds bytes."""
        feature = self._feature(name)
        kind = feature.WhichOneof("kind")
        if kind == "int64_list":
            return np.array(feature.int64_list.value, np.int64)
        if kind == "float_list":
            packed = b"".join(feature.float_list.value)
            if not packed or len(packed) % 4:  # an empty column, or a writer that did not pack: legal, rare, so read it the slow way
                plain = _example_class(floats_as_bytes=False).FromString(self._payload).features.feature[name]
                return np.array(plain.float_list.value, np.float32)
            return np.frombuffer(packed, "<f4")
        if kind is None:
            return np.zeros(0, np.float32)
        raise ValueError(f"holds {kind}, expected float_list or int64_list")

    def column(self, name: str, feature: Feature, steps: int | None) -> np.ndarray | list[bytes] | list[str]:
        """Column `name` as its schema says: numeric [steps, *shape] (or [*shape] when `steps` is None), texts and pictures as lists.

        ValueError with the reason where the record does not hold that.
        """
        rows = 1 if steps is None else steps
        if feature.kind == "unsupported":
            raise ValueError(f"features of class {feature.python_class or 'unknown'} cannot be read")
        if feature.kind in ("image", "text"):
            values = self.blobs(name)
            if len(values) != rows:
                raise ValueError(f"{len(values)} values for {rows} steps")
            return list(values) if feature.kind == "image" else [value.decode("utf-8", "replace") for value in values]
        dtype = numpy_dtype(feature)
        if feature.encoding in ("zlib", "bytes"):
            flat = self._inflate(name, feature, dtype)
        else:
            flat = self.numbers(name)
        width = int(np.prod([size for size in feature.shape if size is not None], dtype=np.int64))
        unknown = sum(size is None for size in feature.shape)
        fits = flat.size == rows * width if unknown == 0 else unknown == 1 and flat.size % max(rows * width, 1) == 0
        if not fits:
            raise ValueError(f"{flat.size} numbers, expected {rows} steps x {list(feature.shape)}")
        shape = tuple(-1 if size is None else size for size in feature.shape)
        return flat.astype(dtype, copy=False).reshape(shape if steps is None else (steps, *shape))

    def _inflate(self, name: str, feature: Feature, dtype: np.dtype) -> np.ndarray:
        blobs = self.blobs(name)
        try:
            raw = b"".join(zlib.decompress(blob) if feature.encoding == "zlib" else blob for blob in blobs)
        except zlib.error as error:
            raise ValueError(f"zlib data is damaged ({error})") from error
        if len(raw) % dtype.itemsize:
            raise ValueError(f"{len(raw)} bytes are no whole number of {dtype} values")
        return np.frombuffer(raw, dtype.newbyteorder("<"))

    def _feature(self, name: str) -> message.Message:
        if name not in self._features:  # indexing a protobuf map would create the entry
            raise ValueError(f"missing in the record (has {', '.join(self.names)})")
        return self._features[name]


def count_steps(payload: bytes, schema: Schema) -> int:
    """Number of steps of a record, from its cheapest column. ValueError where that cannot be told or is zero."""
    example = Example(payload)
    for name in (rlds_schema.IS_FIRST, rlds_schema.IS_LAST, rlds_schema.IS_TERMINAL, *schema.steps):
        feature = schema.steps.get(name)
        full = f"{rlds_schema.STEPS}/{name}"
        if feature is None or full not in example or feature.kind == "unsupported":
            continue
        if feature.kind == "tensor" and (feature.encoding != "none" or None in feature.shape):
            continue
        if feature.kind == "tensor":
            steps = example.numbers(full).size // max(int(np.prod(feature.shape, dtype=np.int64)), 1)
        else:
            steps = len(example.blobs(full))
        if steps == 0:
            raise ValueError("zero-length episode")
        return steps
    raise ValueError(f"no step column of features.json is in the record (it has {', '.join(example.names) or 'nothing'})")


def encode(columns: Mapping[str, np.ndarray | list[bytes]]) -> bytes:
    """One record from flat columns: integers and bools to int64_list, floats to float_list, lists of bytes to bytes_list."""
    example = _example_class()()
    for name, values in columns.items():
        feature = example.features.feature[name]
        if isinstance(values, np.ndarray):
            if values.dtype.kind in "biu":
                feature.int64_list.value.extend(values.astype(np.int64).ravel().tolist())
            elif values.dtype.kind == "f":
                feature.float_list.value.append(np.ascontiguousarray(values, "<f4").tobytes())
            else:
                raise TypeError(f"{name}: arrays of {values.dtype} cannot be stored")
        else:
            feature.bytes_list.value.extend(values)
    return example.SerializeToString(deterministic=True)
