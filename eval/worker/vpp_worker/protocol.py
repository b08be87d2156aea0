"""Messages between the evaluator and a simulator process: length-prefixed msgpack frames over two pipes.

A frame is a 4-byte little-endian length followed by one msgpack map. Arrays travel as extension type 1 (dtype, shape, raw bytes);
object arrays are refused in both directions, so no content of a frame can run code. Images are part of the frame: packing and unpacking two
camera images costs a hundredth of rendering them (`benchmarks/host_loop.py` prints both), and no shared memory segment is left behind when
a process is killed. Needs only msgpack and NumPy.
"""

from __future__ import annotations

import io
import struct
from typing import Any, cast

import msgpack
import numpy as np

PROTOCOL_VERSION = 2
MAX_FRAME_BYTES = 256 * 1024 * 1024  # far above any observation and any part of a recording
_ARRAY = 1
_LENGTH = struct.Struct("<I")


class ProtocolError(RuntimeError):
    """The other side sent something that is not a frame of this protocol."""


class ConnectionClosed(ProtocolError):
    """The other side closed its pipe: the process ended."""


def _pack_extension(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise ProtocolError(f"an array of dtype {value.dtype} cannot be sent: only plain numbers and fixed strings can")
        header = [value.dtype.str, list(value.shape), np.ascontiguousarray(value).tobytes()]
        return msgpack.ExtType(_ARRAY, msgpack.packb(header))
    raise ProtocolError(f"a value of type {type(value).__name__} cannot be sent")


def _unpack_extension(code: int, data: bytes) -> Any:
    if code != _ARRAY:
        raise ProtocolError(f"unknown extension type {code} in a frame")
    dtype_text, shape, raw = msgpack.unpackb(data)
    dtype = np.dtype(dtype_text)
    if dtype.hasobject:
        raise ProtocolError(f"a frame carries an array of dtype {dtype_text}")
    return np.frombuffer(raw, dtype=dtype).reshape(shape)


def pack(message: dict[str, Any]) -> bytes:
    """One message as a frame, its length in front."""
    body = cast(bytes, msgpack.packb(message, default=_pack_extension))
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a message of {len(body)} bytes exceeds the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


def unpack(body: bytes) -> dict[str, Any]:
    """The message of one frame (without its length). Arrays are read-only views of `body`."""
    try:
        message = msgpack.unpackb(body, ext_hook=_unpack_extension)
    except ProtocolError:
        raise
    except Exception as error:  # msgpack raises many kinds; all mean the same here
        raise ProtocolError(f"a frame of {len(body)} bytes is not valid msgpack: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"a frame holds a {type(message).__name__}, expected a map")
    return message


class FrameBuffer:
    """Collects bytes as they arrive and cuts them into messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        self._data += data

    def next_message(self) -> dict[str, Any] | None:
        """The oldest complete message, or None until it has arrived."""
        if len(self._data) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._data)
        if length > MAX_FRAME_BYTES:
            raise ProtocolError(f"a frame announces {length} bytes, more than the limit of {MAX_FRAME_BYTES}")
        if len(self._data) < _LENGTH.size + length:
            return None
        body = bytes(self._data[_LENGTH.size : _LENGTH.size + length])
        del self._data[: _LENGTH.size + length]
        return unpack(body)


def write_message(stream: io.BufferedIOBase, message: dict[str, Any]) -> None:
    stream.write(pack(message))
    stream.flush()


def read_message(stream: io.BufferedIOBase) -> dict[str, Any]:
    """Blocks until one whole message has arrived. Raises ConnectionClosed at the end of the stream."""
    (length,) = _LENGTH.unpack(_read_exactly(stream, _LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame announces {length} bytes, more than the limit of {MAX_FRAME_BYTES}")
    return unpack(_read_exactly(stream, length))


def _read_exactly(stream: io.BufferedIOBase, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise ConnectionClosed(f"the pipe was closed after {len(data)} of {count} bytes")
    return data
