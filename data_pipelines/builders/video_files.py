"""Video decoding with PyAV, one frame at a time; damaged or truncated files are errors."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from jaxtyping import UInt8

from data_pipelines.builders.video_containers import count_frames
from data_pipelines.errors import DataError

SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v")
# What FFmpeg calls the containers of these. It knows others that are playlists, which make it open further files and addresses.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
# A video is truncated if more than this fraction of its declared length (and more than two frames) is missing; containers round lengths.
MAX_MISSING = 0.1


class BadVideoError(DataError):
    """One video or its caption cannot be used. The message names the file."""


def read_frames(path: Path, fps: float = 0.0) -> Iterator[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
    """(seconds since the first frame, frame in display orientation) of the first video stream.

    Args:
      fps: for each tick of a clock of this rate, the first frame at or after it, without repetition; 0: every frame.
    Raises:
      BadVideoError: the file is not a video, a frame is damaged, or the video is truncated.
    """
    try:
        with av.open(str(path), options={"format_whitelist": CONTAINERS}) as container:
            if not container.streams.video:
                raise BadVideoError(f"{path}: has no video stream")
            if container.streams.video[0].codec_context is None:
                raise BadVideoError(f"{path}: is in a format that FFmpeg does not support")
            yield from _frames(path, container, container.streams.video[0], fps)
    except (FFmpegError, UnicodeDecodeError) as error:  # a container that is not allowed is EINVAL
        raise BadVideoError(f"{path}: cannot be decoded ({error})") from error


def _frames(path: Path, container, stream, fps: float) -> Iterator[tuple[float, np.ndarray]]:
    stream.codec_context.thread_count = 1  # one video per worker process; and errors are deterministic
    period = 1.0 / float(stream.average_rate or 25)
    first, seconds, held, count, tick = None, 0.0, period, 0, 0
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise BadVideoError(f"{path}: frame {count} is damaged")
        time = frame.time if frame.time is not None else count * period
        first = time if first is None else first
        seconds, count = time - first, count + 1
        held = max(period, float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0)
        if fps and seconds < tick / fps - 1e-3:
            continue
        tick = int(seconds * fps + 1e-3) + 1
        yield seconds, np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    declared = _declared_seconds(container, stream)
    if not count:
        raise BadVideoError(f"{path}: has no frames")
    if declared - (seconds + held) > max(MAX_MISSING * declared, 2 * period) and not _holds_its_last_frame(path, stream, count):
        raise BadVideoError(f"{path}: is truncated, its {count} frames end at {seconds + held:.2f} s of {declared:.2f} s")


def _holds_its_last_frame(path: Path, stream, count: int) -> bool:
    """Whether a video that ends long after its last frame has all its frames: variable frame rates may hold the last one."""
    return 0 < (count_frames(path) or stream.frames) <= count


def _declared_seconds(container, stream) -> float:
    """Length according to the file; 0 if it has none."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else 0.0
