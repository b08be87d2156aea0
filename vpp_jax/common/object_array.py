"""NumPy files that hold Python objects (`np.save` of a dict), read without running the pickle inside.

`np.load(allow_pickle=True)` calls whatever such a file names. Here the pickle is read as data (`inert_pickle`): plain values, dicts, lists
and tuples come as they are, and of the calls only those by which NumPy stores its arrays, scalars and types are interpreted. A file that
names anything else is refused as a whole.
"""

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from vpp_jax.common.errors import FileFormatError
from vpp_jax.common.inert_pickle import Call, Global, Persistent, read_pickle

MAX_BYTES = 4 << 30
# How NumPy pickles: `numpy.core` until 1.26, `numpy._core` since 2.0. Protocol 2 spells bytes as text that is encoded again.
_ARRAY = frozenset(Global(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core"))
_SCALAR = frozenset(Global(f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core"))
_BUFFER = frozenset(Global(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core"))
_NDARRAY, _DTYPE = Global("numpy", "ndarray"), Global("numpy", "dtype")
_ENCODE, _BYTES = Global("_codecs", "encode"), frozenset({Global("builtins", "bytes"), Global("__builtin__", "bytes")})
_ALLOWED = _ARRAY | _SCALAR | _BUFFER | _BYTES | {_NDARRAY, _DTYPE, _ENCODE}
_KINDS = r"b1|[iu][1248]|f[248]|c(8|16)|[SU]\d{1,9}"  # numbers, booleans and fixed strings: nothing that holds objects


def read_object_array(path: Path) -> np.ndarray:
    """The array of a `.npy` file, of objects or of numbers; `.item()` gives the one object that was saved.

    OSError, or FileFormatError where the file is damaged, or its pickle asks for more than NumPy's own arrays and plain values.
    """
    where, size = str(path), path.stat().st_size
    if size > MAX_BYTES:
        raise FileFormatError(f"{where} has {size:,} bytes, more than the {MAX_BYTES:,} that are read")
    file = io.BytesIO(path.read_bytes())
    shape, dtype = _header(file, where)
    if not dtype.hasobject:
        try:
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise FileFormatError(f"{where} is damaged: {error}") from None
    advice = "If the file is yours, save plain dicts, lists, texts, numbers and arrays only"
    tree = read_pickle(file.read(), lambda name: name in _ALLOWED, where, content="annotations", advice=advice)
    try:
        array = _Reader().value(tree)
    except (ValueError, TypeError, IndexError, AttributeError, KeyError, RecursionError, OverflowError, MemoryError) as error:
        raise FileFormatError(f"{where} is damaged or not written by np.save ({type(error).__name__}: {error})") from None
    if not (isinstance(array, np.ndarray) and array.dtype == object and array.shape == shape):
        raise FileFormatError(f"{where}: its pickle does not hold the array of objects {shape} that its header promises")
    return array


def _header(file: io.BytesIO, where: str) -> tuple[tuple[int, ...], np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format version {version}, expected 1.0 or 2.0")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject and dtype.char != "O":
            raise ValueError(f"type {dtype}")
    except Exception as error:  # NumPy parses headers with the tokenizer of Python, which raises many kinds
        raise FileFormatError(f"{where} is not a NumPy file (.npy), or it is damaged: {error}") from None
    return shape, dtype


class _Reader:
    """Turns a tree of records into values. What a pickle refers to twice is converted once, so that references cannot multiply."""

    def __init__(self) -> None:
        self._done: dict[int, Any] = {}
        self._open: set[int] = set()

    def value(self, tree: Any) -> Any:
        if not isinstance(tree, dict | list | tuple | Call | Global | Persistent):
            return tree
        if id(tree) not in self._done:
            if id(tree) in self._open:
                raise ValueError("a value contains itself")
            self._open.add(id(tree))
            self._done[id(tree)] = self._convert(tree)
            self._open.remove(id(tree))
        return self._done[id(tree)]

    def _convert(self, tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: self.value(entry) for key, entry in tree.items()}
        if isinstance(tree, list):
            return [self.value(entry) for entry in tree]
        if isinstance(tree, tuple):
            return tuple(self.value(entry) for entry in tree)
        if not isinstance(tree, Call) or tree.items or tree.elements:
            raise ValueError(f"{tree} stands where a value is expected")
        if tree.function in _ARRAY and tree.arguments[0] == _NDARRAY:
            _, shape, dtype, fortran, content = tree.state
            return self._array(shape, self._dtype(dtype), content, "F" if fortran else "C")
        if tree.function in _BUFFER:
            content, dtype, shape, order, *_ = tree.arguments
            return self._array(shape, self._dtype(dtype), content, order)
        if tree.function in _SCALAR:
            dtype, content = tree.arguments
            return self._array((), self._dtype(dtype), content, "C")[()]
        return self._bytes(tree)

    def _array(self, shape: tuple[int, ...], dtype: np.dtype, content: Any, order: str) -> np.ndarray:
        if order not in ("C", "F") or not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError(f"an array of shape {shape} in order {order!r}")
        if dtype.hasobject:
            if type(content) is not list or len(content) != math.prod(shape):
                raise ValueError(f"an array of objects of shape {shape} without as many objects")
            values = np.empty(len(content), object)
            for place, entry in enumerate(content):
                values[place] = self.value(entry)
        else:
            values = np.frombuffer(self._bytes(content), dtype).astype(dtype.newbyteorder("="))  # as NumPy does
        return values.reshape(shape, order="F" if order == "F" else "C")

    def _dtype(self, tree: Any) -> np.dtype:
        """`numpy.dtype(text, align, copy)` with state (version, byte order, ...)."""
        if not isinstance(tree, Call) or tree.function != _DTYPE:
            raise ValueError("an array without its type")
        kind, byte_order = self._text(tree.arguments[0]), self._text(tree.state[1])
        if kind in ("O", "O8"):
            return np.dtype(object)
        if not re.fullmatch(_KINDS, kind) or byte_order not in ("<", ">", "|", "="):
            raise ValueError(f"an array of type {byte_order}{kind}")
        return np.dtype(byte_order + kind)

    def _bytes(self, tree: Any) -> bytes:
        if isinstance(tree, Call):
            if tree.function == _ENCODE and tree.arguments[1:] == ("latin1",):
                return tree.arguments[0].encode("latin1")
            if tree.function in _BYTES and tree.arguments == ():
                return b""
            raise ValueError(f"a call of {tree.function}")
        if isinstance(tree, str):  # as Python 2 wrote bytes
            return tree.encode("latin1")
        if not isinstance(tree, bytes | bytearray):
            raise TypeError(f"expected bytes, found a {type(tree).__name__}")
        return bytes(tree)

    def _text(self, tree: Any) -> str:
        return tree if isinstance(tree, str) else self._bytes(tree).decode("ascii")
