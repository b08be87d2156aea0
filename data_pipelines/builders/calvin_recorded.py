"""Converts the recorded CALVIN dataset (one npz file per frame) to the schema of `calvin_mujoco`, one episode per language window.

Only the frames of the windows are read, one by one. A window (start, end) of `auto_lang_ann.npy` covers the frames start...end-1, since it
was written with end = start + length. The blocks in scene_obs are reordered to red, blue, pink; in the recordings the order depends on the
scene.
`auto_lang_ann.npy` and `scene_info.npy` are pickles, which can run code when NumPy loads them; here they are read as data, and nothing in
them runs (`vpp_jax.common.object_array`).
"""

import functools
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.builders import calvin_mujoco
from data_pipelines.builders.calvin_mujoco import ACTION_WIDTH, ROBOT_OBS, SCENE_OBS, append_step, episode_schema, finish_columns
from data_pipelines.builders.sharded import Recorded
from data_pipelines.errors import DataError
from data_pipelines.instructions import instructions_of, one_instruction
from data_pipelines.rlds import images
from data_pipelines.rlds.dataset import RECORDED_IN
from data_pipelines.rlds.schema import ALL_INSTRUCTIONS, Feature, Schema
from vpp_jax.common.config_fields import check_ranges, setting
from vpp_jax.common.object_array import read_object_array
from vpp_jax.common.text_files import lfs_hint_of

STATIC_SIZE, GRIPPER_SIZE = 200, 84
FOLDERS = {"train": "training", "val": "validation"}  # split -> folder of the original
STANDARD_ORDER = ("red", "blue", "pink")
BLOCK_ORDER = {
    "A": ("pink", "blue", "red"),
    "B": ("red", "blue", "pink"),
    "C": ("blue", "red", "pink"),
    "D": ("red", "blue", "pink"),
}  # in the recordings
FRAME_ARRAYS = {
    "rgb_static": ((STATIC_SIZE, STATIC_SIZE, 3), "image"),
    "rgb_gripper": ((GRIPPER_SIZE, GRIPPER_SIZE, 3), "image"),
    "robot_obs": ((ROBOT_OBS,), "numbers"),
    "scene_obs": ((SCENE_OBS,), "numbers"),
    "rel_actions": ((ACTION_WIDTH,), "numbers"),
}
FRAME_KEYS = tuple(FRAME_ARRAYS)


class Window(NamedTuple):
    """One language window: frames start...end-1."""

    split: str
    number: int
    start: int
    end: int
    task: str
    instructions: tuple[str, ...]
    scene: str


@dataclass(frozen=True)
class RecordedSettings:
    """What to convert."""

    source: str = setting("", "directory of the source dataset, with training and validation")
    language: str = setting("lang_annotations", "directory of the annotations within training and validation")
    scene: str = setting(
        "D", "scene of training frames that scene_info.npy does not list (validation is always scene D)", choices=tuple(BLOCK_ORDER)
    )
    limit: int = setting(0, "maximum number of windows per split; 0: all", at_least=0)
    jpeg_quality: int = setting(95, "JPEG quality", at_least=1, at_most=100)
    episodes_per_shard: int = setting(64, "episodes per file", at_least=1)

    def __post_init__(self):
        check_ranges(self)
        if not self.source or not any((Path(self.source) / folder).is_dir() for folder in FOLDERS.values()):
            raise DataError(
                f"--source is {self.source!r}: expected the directory of the CALVIN dataset, with {' and '.join(FOLDERS.values())}"
            )


@dataclass(frozen=True)
class CalvinRecordedRecipe:
    """The recipe `data_pipelines.builders.sharded.build` follows."""

    plan: RecordedSettings
    name: str = "calvin"
    version: str = "1.0.0"
    description: str = "CALVIN's recorded play, one episode per language window.\nConverted from npz frames; block poses red, blue, pink."

    @property
    def episodes_per_shard(self) -> int:
        return self.plan.episodes_per_shard

    def settings(self) -> dict[str, Any]:
        return asdict(self.plan)

    def metadata(self) -> dict[str, Any]:
        return {RECORDED_IN: {"simulator": "calvin_pybullet", "static_size": STATIC_SIZE, "gripper_size": GRIPPER_SIZE}}

    def schema(self) -> Schema:
        schema = episode_schema(calvin_mujoco.Settings(static_size=STATIC_SIZE, gripper_size=GRIPPER_SIZE))
        return replace(schema, episode=schema.episode | {ALL_INSTRUCTIONS: Feature("text", sequence=(None,))})

    def jobs(self) -> dict[str, list[Window]]:
        found = {split: read_windows(self.plan, split) for split, folder in FOLDERS.items() if (Path(self.plan.source) / folder).is_dir()}
        return {split: windows for split, windows in found.items() if windows}

    def group(self, job: Window) -> str:
        return f"{job.scene}/{job.task}"

    def open(self) -> "Frames":
        return Frames(Path(self.plan.source))

    def record(self, resource: "Frames", job: Window) -> Recorded:
        schema = self.schema()
        columns: dict[str, list] = {name: [] for name in schema.steps}
        for number in range(job.start, job.end):
            try:
                frame = resource.read(FOLDERS[job.split], number)
            except DataError as error:
                raise DataError(f"{error} (window {job.number} of split {job.split}, frames {job.start} to {job.end - 1})") from error
            for name in ("rgb_static", "rgb_gripper"):
                columns[f"observation/{name}"].append(images.encode_jpeg(frame[name], self.plan.jpeg_quality))
            columns["observation/robot_obs"].append(frame["robot_obs"].astype(np.float32))
            columns["observation/scene_obs"].append(in_standard_order(frame["scene_obs"], job.scene).astype(np.float32))
            action = frame["rel_actions"].astype(np.float32)
            append_step(columns, action, action, float(number == job.end - 1))
        finish_columns(columns, job.instructions[0])
        metadata = {"scene": job.scene, "task": job.task, "episode_id": f"{job.split}/{job.number}/{job.start}-{job.end}", "seed": -1}
        payload = calvin_mujoco.encode(
            schema,
            columns,
            {**metadata, "renderer": "recorded", "environment_version": "calvin_env", "instructions": list(job.instructions)},
        )
        return Recorded((payload,), 1)


def read_windows(plan: RecordedSettings, split: str) -> list[Window]:
    """The language windows of a split, in file order."""
    folder = Path(plan.source) / FOLDERS[split]
    path = folder / plan.language / "auto_lang_ann.npy"
    if not path.is_file():
        raise DataError(f"{path} is missing: the language annotations; name their directory with --language")
    content = _read_dict(path)
    try:
        instructions, tasks, spans = content["language"]["ann"], content["language"]["task"], content["info"]["indx"]
        spans = [(int(start), int(end)) for start, end in spans]
        count = len(instructions), len(tasks), len(spans)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{path}: no CALVIN annotations, a dict with language.ann, language.task, info.indx ({error!r})") from None
    if not count[0] == count[1] == count[2]:
        raise DataError(f"{path}: {count[0]} instructions, {count[1]} tasks and {count[2]} windows, expected as many of each")
    if not spans:
        raise DataError(f"{path}: has no window; remove {folder}, or annotate it")
    ranges = read_scene_ranges(folder / "scene_info.npy") if split == "train" else {}
    windows = []
    for number, (instruction, task, (start, end)) in enumerate(zip(instructions, tasks, spans, strict=True)):
        where = f"{path}: window {number}"
        if not 0 <= start < end:
            raise DataError(f"{where}: frames {start} to {end - 1}, expected a start and a later end")
        fallback = plan.scene if split == "train" else "D"
        scene = next((name for name, (first, last) in ranges.items() if first <= start <= last), fallback)
        texts = instructions_of(instruction, f"{where}, language.ann")
        if not texts:
            raise DataError(f"{where}, language.ann: the instruction is empty")
        windows.append(Window(split, number, start, end, one_instruction(task, f"{where}, language.task"), texts, scene))
    return windows[: plan.limit or None]


def read_scene_ranges(path: Path) -> dict[str, tuple[int, int]]:
    """Scene letter -> first and last frame; empty if the file does not exist."""
    if not path.is_file():
        return {}
    try:
        return {str(name).rsplit("_", 1)[-1].upper(): (int(first), int(last)) for name, (first, last) in _read_dict(path).items()}
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: expected a dict of scenes with their first and last frame ({error})") from None


def _read_dict(path: Path) -> dict[Any, Any]:
    """The dict that `np.save` wrote, read as data: nothing in the file runs."""
    array = read_object_array(path)
    content = array.item() if array.shape == () else None
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds an array {array.dtype} {array.shape}, expected one dict")
    return content


def in_standard_order(scene_obs: np.ndarray, scene: str) -> np.ndarray:
    """scene_obs [24] with the blocks reordered from the order of the scene to red, blue, pink."""
    poses = dict(zip(BLOCK_ORDER[scene], scene_obs[6:].reshape(3, 6), strict=True))
    return np.concatenate([scene_obs[:6], *(poses[colour] for colour in STANDARD_ORDER)])


class Frames:
    """Reads single frames and caches the last ones, since windows overlap."""

    def __init__(self, source: Path):
        self._source = source
        self.read = functools.lru_cache(maxsize=256)(self._read)

    def _read(self, folder: str, number: int) -> dict[str, np.ndarray]:
        path = self._source / folder / f"episode_{number:07d}.npz"
        try:
            if hint := lfs_hint_of(path):
                raise DataError(f"{path} is {hint}")
            with np.load(path) as content:
                absent = [key for key in FRAME_KEYS if key not in content]
                if absent:
                    raise DataError(f"{path}: has no {', '.join(absent)}, expected {', '.join(FRAME_KEYS)} (it has {', '.join(content)})")
                frame = {key: content[key] for key in FRAME_KEYS}
        except DataError:
            raise
        except FileNotFoundError:
            raise DataError(f"{path} does not exist: a window of the annotations names this frame") from None
        except Exception as error:  # zipfile, zlib and NumPy raise many kinds for a file that is cut off or damaged
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"{path}: not a CALVIN frame, or it is cut off or damaged ({reason}); copy it again") from error
        for key, (shape, kind) in FRAME_ARRAYS.items():
            if frame[key].shape != shape:
                raise DataError(f"{path}: {key} has shape {list(frame[key].shape)}, expected {list(shape)}")
            if not (frame[key].dtype == np.uint8 if kind == "image" else frame[key].dtype.kind == "f"):
                raise DataError(f"{path}: {key} is {frame[key].dtype}, expected {'uint8' if kind == 'image' else 'floating-point numbers'}")
            if kind == "numbers" and not np.isfinite(frame[key]).all():
                raise DataError(f"{path}: {key} has NaN or infinite values: {np.array2string(frame[key], precision=3)}")
        return frame

    def close(self) -> None:
        self.read.cache_clear()
