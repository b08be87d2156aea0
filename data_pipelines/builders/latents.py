"""A dataset with VAE latents instead of images, computed once, so that stage video does not encode every clip again.

Every frame of the chosen cameras is encoded separately, as in training; the posterior (mean and log variance) is stored, and training
samples from it. Texts, actions, states and all other columns are copied unchanged. Each output shard has the episodes of one input shard
and depends on it only, so that an interrupted run resumes and several processes can share the work.
"""

import copy
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data_pipelines import storage
from data_pipelines.builders import sharded, writer
from data_pipelines.builders.sharded import Progress, Shard
from data_pipelines.errors import BadRecordError, DataError
from data_pipelines.openx.robot_spec import RobotSpec
from data_pipelines.openx.robots import find_robot
from data_pipelines.rlds.dataset import DatasetInfo, Episode, RLDSDataset
from data_pipelines.rlds.latents import LATENTS, LatentsInfo, logvar_of, mean_of
from data_pipelines.rlds.schema import STEPS, Feature, Schema
from data_pipelines.sources import camera_frame
from data_pipelines.storage import Location

# images uint8 [n s s 3] -> (mean, log variance), each float16 [n h w c]; n is always the same
Encoder = Callable[[np.ndarray], tuple[Any, Any]]


@dataclass(frozen=True)
class LatentsSettings:
    """What to encode.

    Attributes:
      dataset: RLDS directory.
      robot: what describes the robot and so the cameras, as in `find_robot`.
      views: by role or camera name; empty: the `clip_views` of the robot.
      splits: empty: every complete split.
      image_size: size of the square frames in pixels.
      latent_shape: (h, w, c) of the latents of one frame.
      vae: identity of the encoder.
      batch: frames per encoder call. It is recorded with the build, since rounding may depend on it.
      on_bad_record: 'fail', or 'skip' (counted and listed).
      jpeg_dct_scaling, antialias: as in `DataConfig`, so that the encoder gets the same images as in training.
    """

    dataset: Location
    robot: str
    views: tuple[str, ...]
    splits: tuple[str, ...]
    image_size: int
    latent_shape: tuple[int, int, int]
    vae: str
    batch: int = 64
    on_bad_record: str = "fail"
    jpeg_dct_scaling: bool = True
    antialias: bool = True
    index_dir: Location | None = None
    threads: int = 4

    def __post_init__(self):
        if self.batch < 1 or self.threads < 1:
            raise DataError(f"batch {self.batch} and threads {self.threads} must be at least 1")


class LatentsBuild:
    """The build of such a dataset. Several processes may call `run`, each for a part of the shards."""

    def __init__(self, settings: LatentsSettings):
        self._settings = settings
        self._info = DatasetInfo.read(settings.dataset)
        self.name, self.version = self._info.name, self._info.version
        self.description = f"Latents of {self.name} {self.version}.\nImages are replaced by the posterior of VAE {settings.vae}."
        self.spec: RobotSpec = find_robot(self._info.directory, robot=settings.robot)
        schema = Schema.read(self._info.directory)
        views = settings.views or tuple(self.spec.clip_views)
        self.cameras = tuple(dict.fromkeys(self.spec.camera(view, schema.cameras, str(self._info.directory)) for view in views))
        self._dropped = schema.cameras
        complete = tuple(split.name for split in self._info.splits.values() if split.files and not split.absent)
        self.splits = settings.splits or complete
        if not self.splits:
            raise DataError(f"{self._info.directory}: no split is complete; name the splits to encode")

    # --- interface of `sharded.claim` and `sharded.finish` ------------------------------------------------------------------------------

    def schema(self) -> dict:
        """features.json of the original with the cameras replaced by latents."""
        kinds = {
            name(camera): Feature("tensor", "float16", self._settings.latent_shape, "bytes")
            for camera in self.cameras
            for name in (mean_of, logvar_of)
        }
        return edit_features(json.loads(storage.read(storage.join(self._info.directory, "features.json"))), self._dropped, kinds)

    def settings(self) -> dict[str, Any]:
        """Includes the fingerprint of the input shards."""
        mine, shards = self._settings, {split: dataset.fingerprint[:16] for split, dataset in self._datasets.items()}
        return {
            "dataset": str(self._info.directory),
            "shards": shards,
            "cameras": list(self.cameras),
            "splits": list(self.splits),
            "image_size": mine.image_size,
            "vae": mine.vae,
            "latent_shape": list(mine.latent_shape),
            "batch": mine.batch,
            "on_bad_record": mine.on_bad_record,
            "jpeg_dct_scaling": mine.jpeg_dct_scaling,
            "antialias": mine.antialias,
        }

    def metadata(self) -> dict[str, Any]:
        first = next(iter(self._datasets.values()))
        return {**first.metadata, LATENTS: LatentsInfo(self._settings.vae, self._settings.image_size, self.cameras).to_json()}

    # --- encoding -----------------------------------------------------------------------------------------------------------------------

    @cached_property
    def _datasets(self) -> dict[str, RLDSDataset]:
        mine = self._settings
        return {
            split: RLDSDataset(
                mine.dataset,
                split,
                index_dir=mine.index_dir,
                on_bad_record=mine.on_bad_record,
                episode_filter=self.spec.episode_filter,
                cache_bytes=0,
            )
            for split in self.splits
        }

    def run(
        self, directory: Location, encode: Encoder, shard_index: int = 0, num_shards: int = 1, progress: Progress | None = None
    ) -> dict | None:
        """Encodes the missing shards. Returns the report once all shards exist, None while other processes are still encoding.

        Args:
          shard_index, num_shards: this process takes every `num_shards`-th file, from number `shard_index` on.
          progress: called with (frames done, frames planned, what was just finished).
        """
        sharded.claim(self, directory)
        shards: list[Shard] = []
        for split, dataset in self._datasets.items():
            names = [writer.shard_name(self.name, split, number, len(dataset.parts)) for number in range(len(dataset.parts))]
            shards += [Shard(split, name, tuple(part)) for name, part in zip(names, dataset.parts, strict=True)]
        finished = sharded.finished_shards(directory, shards)
        todo = [shard for shard in shards[shard_index::num_shards] if shard.file not in finished]
        total, done = sum(map(self._num_frames, todo)), 0
        if progress is not None:
            progress(done, total, "")
        for shard in todo:
            payloads, skipped = self._encode_shard(shard, encode)
            counts = {shard.split: len(shard.jobs)}
            sharded.save_shard(shard, directory, payloads, counts, {shard.split: len(payloads)}, skipped)
            done += self._num_frames(shard)
            if progress is not None:
                progress(done, total, shard.file)
        finished = sharded.finished_shards(directory, shards)
        return sharded.finish(self, directory, shards, finished) if len(finished) == len(shards) else None

    def _num_frames(self, shard: Shard) -> int:
        return len(self.cameras) * int(self._datasets[shard.split].lengths[list(shard.jobs)].sum())

    def _encode_shard(self, shard: Shard, encode: Encoder) -> tuple[list[bytes], list[str]]:
        """The records in order, and the problems of skipped ones. Batches may contain frames of several episodes."""
        dataset, payloads, skipped = self._datasets[shard.split], [], []
        waiting: deque[Episode] = deque()  # episodes whose frames are being encoded

        def frames(pool: ThreadPoolExecutor) -> Iterator[np.ndarray]:
            for number in shard.jobs:
                try:
                    episode = dataset[number]
                    decoded = list(pool.map(lambda at, episode=episode: self._frame(episode, *at), self._frame_positions(episode)))
                except BadRecordError as error:
                    if self._settings.on_bad_record == "fail":
                        raise
                    skipped.append(str(error))
                    continue
                waiting.append(episode)
                yield from decoded

        with ThreadPoolExecutor(self._settings.threads, thread_name_prefix="decoder") as pool:
            rows: list[tuple[np.ndarray, np.ndarray]] = []
            for row in encoded(frames(pool), self._settings.batch, encode):
                rows.append(self._checked(row, waiting[0]))
                if len(rows) == len(self.cameras) * len(waiting[0]):
                    payloads.append(self._record(waiting.popleft(), rows))
                    rows = []
        return payloads, skipped

    def _frame_positions(self, episode: Episode) -> Iterable[tuple[str, int]]:
        return itertools.product(self.cameras, range(len(episode)))

    def _frame(self, episode: Episode, camera: str, step: int) -> np.ndarray:
        mine = self._settings
        return camera_frame(episode, camera, step, self.spec, mine.image_size, mine.jpeg_dct_scaling, mine.antialias)

    def _checked(self, row: tuple[np.ndarray, np.ndarray], episode: Episode) -> tuple[np.ndarray, np.ndarray]:
        for values in row:
            if values.dtype != np.float16 or values.shape != self._settings.latent_shape:
                raise DataError(f"the encoder returns {values.dtype} {values.shape}, expected float16 {self._settings.latent_shape}")
        if not all(np.isfinite(values).all() for values in row):
            raise DataError(f"{episode.where}: latents of a frame are NaN, infinite, or out of range for float16")
        return row

    def _record(self, episode: Episode, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> bytes:
        columns, steps = {}, len(episode)
        for number, camera in enumerate(self.cameras):
            mine = rows[number * steps : (number + 1) * steps]
            columns[mean_of(camera)] = [mean.astype("<f2").tobytes() for mean, _ in mine]
            columns[logvar_of(camera)] = [logvar.astype("<f2").tobytes() for _, logvar in mine]
        return episode.replaced(self._dropped, columns)


def encoded(frames: Iterable[np.ndarray], size: int, encode: Encoder) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(mean, log variance) of each frame, in order. Blocks have `size` frames (the last one is padded), so the encoder compiles once.

    The result of a block is fetched after the next block has been dispatched, so that decoding and the accelerator overlap.
    """
    frames, pending = iter(frames), None
    while block := list(itertools.islice(frames, size)):
        result = encode(np.stack(block + block[-1:] * (size - len(block)))), len(block)
        if pending is not None:
            yield from _fetched(*pending)
        pending = result
    if pending is not None:
        yield from _fetched(*pending)


def _fetched(result: tuple[Any, Any], count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    mean, logvar = map(np.asarray, result)
    yield from zip(mean[:count], logvar[:count], strict=True)


def edit_features(tree: dict, drop: Iterable[str], add: dict[str, Feature]) -> dict:
    """A features.json without the step features `drop` and with those of `add`, in the same feature groups."""
    tree = copy.deepcopy(tree)
    steps = tree["featuresDict"]["features"][STEPS]["sequence"]["feature"]
    for name in drop:
        group, key = _locate(steps, name)
        del group[key]
    for name, feature in add.items():
        group, key = _locate(steps, name)
        group[key] = writer.leaf(feature)
    return tree


def _locate(node: dict, name: str) -> tuple[dict, str]:
    """(features of the innermost group that contains `name`, name within that group). Keys may contain '/' themselves."""
    features = node.setdefault("featuresDict", {}).setdefault("features", {})
    for key, child in features.items():
        if name.startswith(f"{key}/") and "featuresDict" in child:
            return _locate(child, name.removeprefix(f"{key}/"))
    return features, name
