"""Captioned videos without actions to RLDS: Something-Something-v2, any directory of videos, or the format of the published code.

A video becomes one episode with one step per frame: its image and the instruction. From the published format, recorded VAE latents can be
used instead of images; the pickles in their files are parsed as data, never executed.
"""

import functools
import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.builders.sharded import Recorded
from data_pipelines.builders.video_files import BadVideoError, read_frames
from data_pipelines.builders.video_listings import LAYOUTS, Clip, Origin, annotated
from data_pipelines.builders.writer import encode_episode
from data_pipelines.errors import DataError
from data_pipelines.rlds import images
from data_pipelines.rlds.latents import LATENTS, LatentsInfo, mean_of
from data_pipelines.rlds.schema import ALL_INSTRUCTIONS, IS_FIRST, IS_LAST, IS_TERMINAL, LANGUAGE_INSTRUCTION, Feature, Schema
from data_pipelines.rlds.windows import whole_clip
from data_pipelines.transforms import resize, resize_short_side
from vpp_jax.common.config_fields import check_ranges, setting
from vpp_jax.common.errors import FileFormatError
from vpp_jax.common.torch_archive import read_tensor

CAMERA = "observation/image"
MAX_SIZE = 4096  # pixels
CONTENTS, RESIZE_MODES = ("video", "latents"), ("square", "short_side")
# The recorded latents are samples from the posterior of Stable Video Diffusion's VAE, times its scaling factor (step1_prepare_latent.py).
RECORDED_CHANNELS, RECORDED_DOWNSCALE, RECORDED_FACTOR = 4, 8, 0.18215


@dataclass(frozen=True)
class HumanVideoSettings:
    """What to convert, and how."""

    source: str = setting("", "directory of the videos")
    layout: str = setting(
        "something_something",
        "something_something: webm files and label files; folder: videos with captions; vpp: annotation/SPLIT/ID.json",
        choices=tuple(LAYOUTS),
    )
    captions: str = setting(
        "",
        "folder: caption table below the source (default: captions.json, .jsonl or .csv, else NAME.txt next to NAME.mp4); "
        "something_something: directory of the label files",
    )
    annotations: str = setting("annotation", "vpp: directory of the annotations")
    content: str = setting("video", "video, or the recorded latents of layout vpp", choices=CONTENTS)
    vae: str = setting("", "latents: identity of the VAE that made them, as `vpp data latents --identity` prints it")
    size: int = setting(256, "image size in pixels; 0: the size of the video", at_least=0, at_most=MAX_SIZE)
    resize_mode: str = setting("square", "both sides resized to --size, as in training, or the short side only", choices=RESIZE_MODES)
    fps: float = setting(0.0, "if positive: subsample to at most this frame rate", at_least=0, at_most=1000)
    num_frames: int = setting(0, "if positive: take this many frames, spread evenly over the video", at_least=0)
    max_video_frames: int = setting(0, "if positive: skip videos with more frames (the published mixture: 100)", at_least=0)
    val_fraction: float = setting(
        0.0, "folder: fraction of the videos that go to split val, where the caption table does not name a split", at_least=0, less_than=1
    )
    limit: int = setting(0, "maximum number of episodes per split; 0: all", at_least=0)
    on_bad_video: str = setting("fail", "fail, or skip, count and list it", choices=("fail", "skip"))
    jpeg_quality: int = setting(95, "JPEG quality", at_least=1, at_most=100)
    episodes_per_shard: int = setting(256, "episodes per file", at_least=1)

    def __post_init__(self):
        check_ranges(self)
        if not self.source or not Path(self.source).is_dir():
            raise DataError(f"--source is {self.source!r}: expected the directory of the videos")
        fits = self.layout == "vpp" and not self.fps and self.size and self.size % RECORDED_DOWNSCALE == 0
        if self.content == "latents" and not fits:
            raise DataError(
                "--content=latents needs --layout=vpp, --fps=0, and --size a multiple of "
                f"{RECORDED_DOWNSCALE}: the size of the frames that were encoded"
            )


@dataclass(frozen=True)
class HumanVideoRecipe:
    """The recipe `data_pipelines.builders.sharded.build` follows."""

    plan: HumanVideoSettings
    name: str = "human_video"
    version: str = "1.0.0"
    description: str = "Captioned videos without actions, one episode per video.\nConverted from video files, or from recorded latents."

    @property
    def episodes_per_shard(self) -> int:
        return self.plan.episodes_per_shard

    @functools.cached_property
    def clips(self) -> tuple[Clip, ...]:
        return list_clips(self.plan)

    def __getstate__(self) -> dict[str, Any]:
        """Without the listing: a worker receives the clips of its shards."""
        return {name: value for name, value in self.__dict__.items() if name != "clips"}

    def settings(self) -> dict[str, Any]:
        """With a hash of the listing: a build resumes only with the same videos and captions."""
        listing = json.dumps([list(clip) for clip in self.clips])
        return {**asdict(self.plan), "clips": hashlib.sha256(listing.encode()).hexdigest()[:16]}

    def schema(self) -> Schema:
        return episode_schema(self.plan)

    def metadata(self) -> dict[str, Any]:
        if self.plan.content == "video":
            return {}
        return {LATENTS: LatentsInfo(vae=self.plan.vae, image_size=self.plan.size, cameras=(CAMERA,)).to_json()}

    def jobs(self) -> dict[str, list[Clip]]:
        """With `on_bad_video='fail'`, problems of the listing are an error before anything is decoded."""
        clips = self.clips
        bad = [clip for clip in clips if clip.problem]
        if bad and self.plan.on_bad_video == "fail":
            shown = "; ".join(f"{clip.file}: {clip.problem}" for clip in bad[:5]) + ("; ..." if len(bad) > 5 else "")
            raise BadVideoError(
                f"{self.plan.source}: {len(bad)} of {len(clips)} videos cannot be used ({shown}). Repair the captions, or "
                "skip these videos with --on_bad_video=skip"
            )
        return {split: [clip for clip in clips if clip.split == split] for split in dict.fromkeys(clip.split for clip in clips)}

    def group(self, job: Clip) -> str:
        return job.split

    def open(self) -> "HumanVideoRecipe":
        return self

    def close(self) -> None:
        """Nothing is open between videos."""

    def record(self, resource: "HumanVideoRecipe", job: Clip) -> Recorded:
        try:
            columns, metadata = read_episode(self.plan, job)
        except BadVideoError as error:
            if self.plan.on_bad_video == "fail":
                raise BadVideoError(f"{error}. Repair the file, or skip such videos with --on_bad_video=skip") from error
            return Recorded((), 1, (str(error),))
        return Recorded((encode_episode(self.schema(), columns, metadata),), 1)


def list_clips(plan: HumanVideoSettings) -> tuple[Clip, ...]:
    """The clips of `plan.source`, at most `limit` per split. DataError if there are none, or if TFDS does not accept a split name."""
    clips = LAYOUTS[plan.layout](Origin(Path(plan.source), plan.captions, plan.annotations, plan.val_fraction))
    taken: Counter[str] = Counter()
    clips_used = []
    for clip in clips:
        if not re.fullmatch(r"\w+", clip.split) or clip.split == "all":
            raise DataError(f"{clip.file}: split name {clip.split!r} is not accepted by TFDS (use letters, digits, underscores; not 'all')")
        taken[clip.split] += 1
        if not plan.limit or taken[clip.split] <= plan.limit:
            clips_used.append(clip)
    if not clips_used:
        raise DataError(f"{plan.source}: no video found in layout {plan.layout}")
    return tuple(clips_used)


def episode_schema(plan: HumanVideoSettings) -> Schema:
    if plan.content == "latents":
        side = plan.size // RECORDED_DOWNSCALE
        seen = {mean_of(CAMERA): Feature("tensor", "float16", (side, side, RECORDED_CHANNELS), "bytes")}
    else:
        side = plan.size if plan.size and plan.resize_mode == "square" else None
        seen = {CAMERA: Feature("image", "uint8", (side, side, 3), "jpeg")}
    flag, text = Feature("tensor", "bool"), Feature("text")
    return Schema(
        steps=seen | {LANGUAGE_INSTRUCTION: text, IS_FIRST: flag, IS_LAST: flag, IS_TERMINAL: flag},
        episode={
            "episode_metadata/name": text,
            "episode_metadata/file": text,
            "episode_metadata/template": text,
            ALL_INSTRUCTIONS: Feature("text", sequence=(None,)),
            "episode_metadata/fps": Feature("tensor", "float32"),
        },
    )


def read_episode(plan: HumanVideoSettings, clip: Clip) -> tuple[dict[str, Any], dict[str, Any]]:
    """Step columns and episode features of one clip, named as in `episode_schema`. BadVideoError if it cannot be used."""
    source, frames, rate = Path(plan.source), None, 0.0
    if clip.problem:
        raise BadVideoError(f"{source / clip.file}: {clip.problem}")
    if plan.layout == "vpp":
        clip, frames = annotated(source, clip, plan.content == "latents")
    if plan.max_video_frames and frames is not None and frames > plan.max_video_frames:
        raise BadVideoError(f"{source / clip.file}: {frames} frames, more than --max_video_frames={plan.max_video_frames}")
    if plan.content == "latents":
        name, values = mean_of(CAMERA), _recorded_latents(plan, source / clip.file)
        if frames is not None and len(values) != frames:
            raise BadVideoError(f"{source / clip.file}: {len(values)} latents for {frames} frames")
        values = values[_spread(len(values), plan.num_frames)]
    else:
        name, (values, rate) = CAMERA, _jpeg_frames(plan, source / clip.file)
    steps = len(values)
    numbers = np.arange(steps)
    columns = {
        name: values,
        LANGUAGE_INSTRUCTION: [clip.captions[0]] * steps,
        IS_FIRST: numbers == 0,
        IS_LAST: numbers == steps - 1,
        IS_TERMINAL: np.zeros(steps, bool),
    }
    metadata = {"name": clip.name, "file": clip.file, "template": clip.template, "fps": np.float32(rate)}
    return columns, {f"episode_metadata/{key}": value for key, value in metadata.items()} | {ALL_INSTRUCTIONS: list(clip.captions)}


def _jpeg_frames(plan: HumanVideoSettings, path: Path) -> tuple[list[bytes], float]:
    """JPEG frames and their rate (0 for a single frame)."""
    frames, times = [], []
    for number, (seconds, frame) in enumerate(read_frames(path, plan.fps)):
        if plan.max_video_frames and number == plan.max_video_frames:
            raise BadVideoError(f"{path}: more frames than --max_video_frames={plan.max_video_frames}")
        if plan.size:
            frame = resize(frame, plan.size) if plan.resize_mode == "square" else resize_short_side(frame, plan.size)
        frames.append(images.encode_jpeg(frame, plan.jpeg_quality))
        times.append(seconds)
    chosen = _spread(len(frames), plan.num_frames)
    span = times[chosen[-1]] - times[chosen[0]]
    return [frames[step] for step in chosen], (len(chosen) - 1) / span if span > 0 else 0.0


def _spread(steps: int, num_frames: int) -> np.ndarray:
    """`num_frames` steps spread evenly over all; all of them if there are no more, or for 0."""
    return whole_clip(steps, num_frames) if num_frames and steps > num_frames else np.arange(steps)


def _recorded_latents(plan: HumanVideoSettings, path: Path) -> np.ndarray:
    """Unscaled latents, float16 [t h w c]."""
    side = plan.size // RECORDED_DOWNSCALE
    try:
        values = read_tensor(path)
    except (FileFormatError, OSError) as error:
        raise BadVideoError(f"{path}: not a file of recorded latents ({error})") from error
    if values.ndim != 4 or values.shape[1:] != (RECORDED_CHANNELS, side, side) or values.dtype.kind != "f" or not len(values):
        expected = f"floats [frames, {RECORDED_CHANNELS}, {side}, {side}] for --size={plan.size}"
        raise BadVideoError(f"{path}: {values.dtype} {list(values.shape)}, expected {expected}")
    unscaled = np.moveaxis(values.astype(np.float32), 1, -1) / RECORDED_FACTOR
    if not np.isfinite(unscaled).all():
        raise BadVideoError(f"{path}: NaN or infinite values")
    return unscaled.astype(np.float16)
