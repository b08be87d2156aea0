"""tf.train.Example without TensorFlow: records to columns, columns to records.

The message type is built at run time. The packed floats of `FloatList` are declared as bytes, which have the same wire format, so that a
float column is a view of the record instead of one Python number per element.
"""

import functools
import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from data_pipelines.rlds import schema as rlds_schema
from data_pipelines.rlds.schema import Feature, Schema, numpy_dtype

MAX_UNPACKED_BYTES = 1 << 28  # limit for one encoded tensor
_FIELD = descriptor_pb2.FieldDescriptorProto


@functools.cache
def _example_class(floats_as_bytes: bool = True) -> Any:
    """The message class of tf.train.Example (tensorflow/core/example/{example,feature}.proto). Made at run time: no static type."""
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
    add(
        "Feature",
        *((f"{kind.lower()}_list", _FIELD.TYPE_MESSAGE, one, f".vpp_jax.{kind}List") for kind in ("Bytes", "Float", "Int64")),
        oneof="kind",
    )
    entry = descriptor_pb2.DescriptorProto(name="FeatureEntry", options=descriptor_pb2.MessageOptions(map_entry=True))
    entry.field.add(name="key", number=1, type=_FIELD.TYPE_STRING, label=one)
    entry.field.add(name="value", number=2, type=_FIELD.TYPE_MESSAGE, label=one, type_name=".vpp_jax.Feature")
    add("Features", ("feature", _FIELD.TYPE_MESSAGE, many, ".vpp_jax.Features.FeatureEntry"), nested=entry)
    add("Example", ("features", _FIELD.TYPE_MESSAGE, one, ".vpp_jax.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("vpp_jax.Example"))


class Example:
    """A parsed record. Columns are accessed by their joined name, e.g. `steps/observation/image_0`."""

    def __init__(self, payload: bytes | memoryview):
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
        """Approximate memory: the record and its parsed copy."""
        return 2 * len(self._payload)

    def replaced(self, drop: Collection[str], add: Mapping[str, Sequence[bytes]]) -> bytes:
        """This record without the columns `drop` and with the bytes columns `add`; all other columns are unchanged."""
        copy = _example_class().FromString(self._payload)
        for name in copy.features.feature.keys() & set(drop):
            del copy.features.feature[name]
        for name, values in add.items():
            copy.features.feature[name].bytes_list.value.extend(values)
        return copy.SerializeToString(deterministic=True)

    def blobs(self, name: str):
        """The bytes column `name` as a sequence; values are copied on access. ValueError if it holds numbers."""
        feature = self._feature(name)
        if feature.WhichOneof("kind") not in ("bytes_list", None):
            raise ValueError(f"holds {feature.WhichOneof('kind')}, expected bytes_list")
        return feature.bytes_list.value

    def numbers(self, name: str) -> np.ndarray:
        """The numeric column `name`, flat: float32[n] or int64[n]. ValueError if it holds bytes."""
        feature = self._feature(name)
        kind = feature.WhichOneof("kind")
        if kind == "int64_list":
            return np.array(feature.int64_list.value, np.int64)
        if kind == "float_list":
            packed = b"".join(feature.float_list.value)
            if not packed or len(packed) % 4:  # an empty column, or unpacked floats (legal but rare): use the slow path
                try:
                    plain = _example_class(floats_as_bytes=False).FromString(self._payload).features.feature[name]
                except message.DecodeError as error:
                    raise ValueError(f"its float_list is damaged ({error})") from error
                return np.array(plain.float_list.value, np.float32)
            return np.frombuffer(packed, "<f4")
        if kind is None:
            return np.zeros(0, np.float32)
        raise ValueError(f"holds {kind}, expected float_list or int64_list")

    def column(self, name: str, feature: Feature, steps: int | None) -> Any:
        """Column `name` as its schema describes it.

        Args:
          steps: length of the episode; None for an episode feature, which has no step axis.
        Returns:
          Numbers [steps, *shape]; texts as list[str] and images as list[bytes] of that length. Sequences are nested lists, one level per
          sequence, of such columns. Values with more than one variable dimension: a list of arrays.
        Raises:
          ValueError with the reason if the record does not match the schema.
        """
        if feature.kind == "unsupported":
            raise ValueError(f"features of class {feature.python_class or 'unknown'} (dtype '{feature.dtype}') cannot be read")
        axes = feature.sequence if steps is None else (steps, *feature.sequence)
        if feature.dynamic:
            values = self._dynamic(name, feature, axes)
        elif len(axes) < 2:
            values = self._values(name, feature, axes[0] if axes else 1)
        else:
            return self._nested(name, feature, axes)
        return values if axes else values[0]

    def _values(self, name: str, feature: Feature, rows: int | None) -> np.ndarray | list:
        """One value per row: numbers [rows, *shape], texts, images. `rows` None: any number."""
        width = int(np.prod([size for size in feature.shape if size is not None], dtype=np.int64))
        if feature.kind == "image":
            return list(_of_length(self.blobs(name), rows))
        if feature.kind == "text":
            texts = [value.decode() for value in self.blobs(name)]
            if not feature.shape:
                return _of_length(texts, rows)
            return _fold(np.array(texts, object), feature.shape, width, rows).tolist()
        dtype = numpy_dtype(feature)
        if feature.encoding in ("zlib", "bytes"):
            flat = self._inflate(name, feature, dtype, width)
        else:
            flat = self.numbers(name)
            _check_fits(flat, dtype)
        return _fold(flat, feature.shape, width, rows).astype(dtype, copy=False)

    def _nested(self, name: str, feature: Feature, axes: tuple[int | None, ...]) -> list:
        """Values under two or more axes. TFDS stores them flat, next to the row lengths: `ragged_row_lengths_0` for the
        second axis, and so on."""
        lengths = []
        rows = axes[0]
        for level, size in enumerate(axes[1:]):
            found = _of_length(self._integers(f"{name}/ragged_row_lengths_{level}"), rows)
            if (found < 0).any() or (size is not None and (found != size).any()):
                raise ValueError(f"row lengths {found.tolist()[:8]}, expected {'no negative ones' if size is None else size}")
            lengths.append(found)
            rows = int(found.sum())
        values: Any = self._values(f"{name}/ragged_flat_values", feature, rows)
        for found in reversed(lengths):
            stops = np.cumsum(found)
            values = [values[start:stop] for start, stop in zip(stops - found, stops, strict=True)]
        return values

    def _dynamic(self, name: str, feature: Feature, axes: tuple[int | None, ...]) -> list[np.ndarray]:
        """Encoded tensors that are stored with their own shape."""
        if len(axes) > 1:
            raise ValueError(f"sequences of tensors of shape {list(feature.shape)} cannot be read")
        rank, dtype = len(feature.shape), numpy_dtype(feature)
        blobs = _of_length(self.blobs(f"{name}/value"), axes[0] if axes else 1)
        shapes = _fold(self._integers(f"{name}/shape"), (rank,), rank, len(blobs))
        arrays = []
        for blob, shape in zip(blobs, shapes, strict=True):
            if any(size < 0 or wanted not in (None, size) for size, wanted in zip(shape, feature.shape, strict=True)):
                raise ValueError(f"a value of shape {shape.tolist()}, expected {list(feature.shape)}")
            width = math.prod(shape.tolist())
            arrays.append(_inflated(blob, feature.encoding, dtype, width).reshape(shape))
        return arrays

    def _integers(self, name: str) -> np.ndarray:
        values = self.numbers(name)
        _check_fits(values, np.dtype(np.int64))
        return values.astype(np.int64)

    def _inflate(self, name: str, feature: Feature, dtype: np.dtype, width: int) -> np.ndarray:
        limit = None if None in feature.shape else width
        parts = [_inflated(blob, feature.encoding, dtype, limit) for blob in self.blobs(name)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype)

    def _feature(self, name: str) -> Any:
        if name not in self._features:  # indexing a protobuf map would create the entry
            raise ValueError(f"missing in the record (has {', '.join(self.names)})")
        return self._features[name]


def _of_length(values, rows: int | None):
    if rows is not None and len(values) != rows:
        raise ValueError(f"{len(values)} values for {rows} steps")
    return values


def _check_fits(flat: np.ndarray, dtype: np.dtype) -> None:
    """ValueError if the stored numbers do not fit the type that features.json declares."""
    if flat.size and (flat.dtype.kind == "f") != (dtype.kind == "f"):
        raise ValueError(f"holds {flat.dtype} numbers, features.json says {dtype}")
    if flat.size and dtype.kind in "iu" and dtype.itemsize < 8:  # uint64 is stored as the int64 of the same bits
        low, high, limits = flat.min(), flat.max(), np.iinfo(dtype)
        if low < limits.min or high > limits.max:
            raise ValueError(f"holds numbers from {low} to {high}, features.json says {dtype}")


def _fold(flat: np.ndarray, shape: tuple[int | None, ...], width: int, rows: int | None) -> np.ndarray:
    """`flat` as [rows, *shape]; `width` is the product of the known sizes. One size of `shape`, or `rows`, may be None."""
    unknown = shape.count(None) + (rows is None)
    known = width * (1 if rows is None else rows)
    fits = flat.size == known if not unknown else unknown == 1 and (flat.size % known == 0 if known else flat.size == 0)
    if not fits:
        raise ValueError(f"{flat.size} numbers, expected {'?' if rows is None else rows} steps x {list(shape)}")
    sizes = tuple(flat.size // max(known, 1) if size is None else size for size in (rows, *shape))
    return flat.reshape(sizes)


def _inflated(blob: bytes | memoryview, encoding: str, dtype: np.dtype, numbers: int | None) -> np.ndarray:
    """The numbers of one encoded tensor. Never decompresses more than `numbers` values or MAX_UNPACKED_BYTES bytes."""
    limit = MAX_UNPACKED_BYTES if numbers is None else numbers * dtype.itemsize
    if limit > MAX_UNPACKED_BYTES:
        raise ValueError(f"{limit} bytes in one value, more than {MAX_UNPACKED_BYTES}")
    raw = blob
    if encoding == "zlib":
        inflater = zlib.decompressobj()
        try:
            raw = inflater.decompress(blob, limit + 1)  # one byte more, to detect a longer stream; 0 would mean no limit
        except zlib.error as error:
            raise ValueError(f"zlib data is damaged ({error})") from error
        if not inflater.eof and len(raw) <= limit:
            raise ValueError("zlib data is truncated")
    if len(raw) > limit or (numbers is not None and len(raw) != limit):
        raise ValueError(f"{len(raw)} bytes unpacked, expected {limit}")
    if len(raw) % dtype.itemsize:
        raise ValueError(f"{len(raw)} bytes are not a multiple of the size of {dtype}")
    return np.frombuffer(raw, dtype.newbyteorder("<"))


def unpack(blob: bytes | memoryview, feature: Feature) -> np.ndarray:
    """One value [*shape] of a column with encoding 'bytes' or 'zlib'. ValueError if the blob has another number of values."""
    return _inflated(blob, feature.encoding, numpy_dtype(feature), math.prod(feature.fixed_shape)).reshape(feature.fixed_shape)


def unpack_rows(blobs: Sequence[bytes | memoryview], feature: Feature) -> np.ndarray:
    """`unpack` of several values, [n, *shape]."""
    dtype = numpy_dtype(feature).newbyteorder("<")
    if feature.encoding != "bytes" or set(map(len, blobs)) != {math.prod(feature.fixed_shape) * dtype.itemsize}:
        return np.stack([unpack(blob, feature) for blob in blobs])
    return np.frombuffer(b"".join(blobs), dtype).reshape(len(blobs), *feature.fixed_shape)


def count_steps(payload: bytes | memoryview, schema: Schema) -> int:
    """Number of steps of a record, from its cheapest column. ValueError if it cannot be determined or is zero."""
    example = Example(payload)
    for name in (rlds_schema.IS_FIRST, rlds_schema.IS_LAST, rlds_schema.IS_TERMINAL, *schema.steps):
        feature = schema.steps.get(name)
        full = f"{rlds_schema.STEPS}/{name}"
        if feature is None or full not in example or feature.kind == "unsupported" or feature.sequence:
            continue
        if feature.kind == "image" or feature.encoding in ("zlib", "bytes"):
            steps = len(example.blobs(full))
        elif None in feature.shape:
            continue
        else:
            values = example.blobs(full) if feature.kind == "text" else example.numbers(full)
            steps = len(values) // max(math.prod(feature.fixed_shape), 1)
        if steps == 0:
            raise ValueError("zero-length episode")
        return steps
    raise ValueError(f"no step column of features.json is in the record (it has {', '.join(example.names) or 'nothing'})")


def encode(columns: Mapping[str, np.ndarray | list[bytes]]) -> bytes:
    """Encodes flat columns as one record: integers and bools to int64_list, floats to float_list, lists of bytes to bytes_list."""
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
