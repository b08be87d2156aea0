"""Rollout videos: all cameras side by side above a strip with the instruction and the outcome, H.264 that every browser plays."""

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from vpp_jax.common.files import atomic_path

HEIGHT = 200  # pixels of every view
STRIP = 44
HOLD_SECONDS = 1.0  # the last frame is held, with the outcome
BACKGROUND, INK, MUTED, SOLVED, FAILED = (17, 20, 26), (240, 242, 245), (150, 158, 170), (86, 180, 233), (230, 159, 0)


class RolloutWriter:
    """Writes one finished episode as a video in real time, while its images arrive. The file appears when the last one has been added.

    record: the episode's line of the journal. every: control steps per frame. name: for the journal.
    """

    def __init__(self, path: Path, record: Mapping[str, Any], control_hz: float = 30.0, every: int = 2, name: str = ""):
        self.name = name or str(path)
        self._record, self._fps = record, control_hz / every
        self._files = ExitStack()
        self._temporary = self._files.enter_context(atomic_path(path))
        self._encoder: VideoEncoder | None = None

    def add(self, recording: Mapping[str, Any], last: bool) -> None:
        """`recording`: images {view: uint8 [n h w 3]} and steps int [n] since the reset; `last`: none follow."""
        views = sorted(recording["images"].items(), key=lambda item: (-item[1].shape[2], item[0]))  # the largest camera first
        steps = [int(step) for step in recording["steps"]]
        try:
            for number, step in enumerate(steps):
                ends = last and number == len(steps) - 1
                frame = with_caption(side_by_side([images[number] for _, images in views]), self._record, step, ends)
                self._encoder = self._encoder or self._files.enter_context(VideoEncoder(self._temporary, frame.shape, self._fps))
                for _ in range(1 + round(HOLD_SECONDS * self._fps) * ends):
                    self._encoder.add(frame)
        except BaseException:
            self.discard()
            raise
        if last:
            self._files.close()

    def discard(self) -> None:
        """Removes what was written: the rest does not arrive."""
        error = InterruptedError("the recording is incomplete")
        with suppress(InterruptedError):
            self._files.__exit__(type(error), error, None)


def side_by_side(images: list[UInt8[np.ndarray, "_ _ 3"]], height: int = HEIGHT) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Images of any sizes brought to one height, left to right."""
    scaled = []
    for image in images:
        width = round(image.shape[1] * height / image.shape[0])
        same = image.shape[0] == height
        scaled.append(image if same else np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)))
    return np.concatenate(scaled, axis=1)


def with_caption(image: UInt8[np.ndarray, "h w 3"], record: Mapping[str, Any], step: int, last: bool) -> UInt8[np.ndarray, "h2 w 3"]:
    """`image` above a strip: the instruction of the running task, then scene and step, on the last frame the outcome."""
    task, task_step = _running_task(record["tasks"], step)
    height, width = image.shape[:2]
    canvas = Image.new("RGB", (width + width % 2, height + STRIP + (height + STRIP) % 2), BACKGROUND)
    canvas.paste(Image.fromarray(image), (0, 0))
    draw = ImageDraw.Draw(canvas)
    draw.text((8, height + 5), _fitted(draw, task["instruction"], width - 16, 14), fill=INK, font=ImageFont.load_default(14))
    if last:
        verdict = f"solved after {task['steps']} steps" if task["success"] else f"not solved within {task['steps']} steps"
        colour = SOLVED if task["success"] else FAILED
    else:
        verdict, colour = f"step {task_step}", MUTED
    scene = f"scene {record['scene']}  ·  " if record.get("scene") else ""
    draw.text((8, height + 24), scene + verdict, fill=colour, font=ImageFont.load_default(12))
    return np.asarray(canvas)


def _running_task(tasks: list[dict[str, Any]], step: int) -> tuple[dict[str, Any], int]:
    """The task under way at a step counted from the reset, and the step within it."""
    for task in tasks[:-1]:
        if step < task["steps"]:
            return task, step
        step -= task["steps"]
    return tasks[-1], step


def _fitted(draw: ImageDraw.ImageDraw, text: str, width: int, size: int) -> str:
    font = ImageFont.load_default(size)
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text.rstrip() + "…"


class VideoEncoder:
    """Context manager: H.264, yuv420p, index in front: plays in browsers, also from a data URI. Odd sides lose their last row or column."""

    def __init__(self, path: Path, shape: tuple[int, ...], fps: float, crf: int = 27):
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        self._stream.height, self._stream.width = (side // 2 * 2 for side in shape[:2])
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": str(crf), "preset": "medium", "threads": "1"}

    def __enter__(self) -> "VideoEncoder":
        return self

    def add(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        cropped = np.ascontiguousarray(frame[: self._stream.height, : self._stream.width])
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(cropped, format="rgb24")))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()


def write_video(path: Path, frames: UInt8[np.ndarray, "t h w 3"], fps: float, crf: int = 27) -> Path:
    """The frames as one video, see `VideoEncoder`."""
    with atomic_path(path) as temporary, VideoEncoder(temporary, frames.shape[1:], fps, crf) as encoder:
        for frame in frames:
            encoder.add(frame)
    return path
