"""Training examples with random access: windows of episodes as dictionaries of NumPy arrays.

A source is a pure function of the index: `len(source)`, `source[i]`. The loader does ordering, mixing, batching and threads.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np

from data_pipelines import statistics
from data_pipelines.cache import ByteLRU
from data_pipelines.config import DataConfig
from data_pipelines.errors import BadRecordError, DataError
from data_pipelines.instructions import draw
from data_pipelines.mixture_index import DatasetRange
from data_pipelines.openx.robot_spec import RobotSpec
from data_pipelines.rlds import windows
from data_pipelines.rlds.dataset import RECORDED_IN, Episode, RLDSDataset
from data_pipelines.rlds.latents import LatentsInfo, latent_cameras, read_latents
from data_pipelines.transforms import resize

log = logging.getLogger(__name__)
Example = dict[str, np.ndarray]
# Seeds what takes the place of bad windows, apart from other draws.
REPLACEMENT = 0x5EED
# Windows that are drawn to replace a bad one before all are tried in turn.
MAX_DRAWS = 64
# list[str] -> (ids int32[n l], mask bool[n l])
Tokenizer = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]


@runtime_checkable
class Source(Protocol):
    """What the loader reads from."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...
    def metadata(self) -> dict:
        """Description of the data as JSON; saved in checkpoints."""
        ...


@runtime_checkable
class SkippingSource(Source, Protocol):
    """A source that may skip bad records."""

    @property
    def skipped(self) -> dict[str, str]:
        """`FILE record N` -> `field: problem` of every record skipped so far."""
        ...


@runtime_checkable
class WeightedSource(Source, Protocol):
    """A source that is sampled by weights."""

    def ranges(self) -> list[DatasetRange]: ...


@runtime_checkable
class EpochSource(Source, Protocol):
    """A source whose examples differ between epochs; `source[index]` is that of epoch 0."""

    def in_epoch(self, index: int, epoch: int) -> Example: ...


def camera_frame(
    episode: Episode, camera: str, step: int, spec: RobotSpec, image_size: int, jpeg_dct_scaling: bool = False, antialias: bool = True
) -> np.ndarray:
    """The model's input image of one camera at one step: uint8 [s s 3], RGB."""
    # a JPEG decoded at a part of its size has no frequencies left that could alias
    stored = episode.frame(camera, step, image_size if jpeg_dct_scaling and antialias else None)
    return resize(stored[..., ::-1] if camera in spec.bgr_cameras else stored, image_size, antialias)


class _EpisodeSource:
    """Base of clip and policy sources: window numbering, images, instructions, bad records.

    Attributes:
      skipped: "FILE record N" -> "field: problem" of every record skipped so far (on_bad_record=skip), by the index or while reading.
    """

    def __init__(
        self,
        dataset: RLDSDataset,
        spec: RobotSpec,
        config: DataConfig,
        image_size: int,
        tokenizer: Tokenizer,
        text_length: int,
        counts: np.ndarray,
    ):
        self.dataset, self.spec, self.config = dataset, spec, config
        self.image_size, self.text_length = image_size, text_length
        self.skipped: dict[str, str] = {defect.where: defect.problem for defect in dataset.defects}
        self._bad: set[int] = set()  # windows that could not be read: not tried again
        self._tokenizer = tokenizer
        self._tokens: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._frames: ByteLRU[np.ndarray] = ByteLRU(config.bytes_per_dataset(config.frame_cache_mb))
        self._table = windows.WindowTable(counts)
        fields = {**dataset.schema.steps, **dataset.schema.episode}
        instruction = next((key for key in spec.instruction_keys if key in fields), None)
        if instruction is None:
            raise DataError(
                f"{dataset.directory}: none of the instruction fields of '{spec.name}' ({', '.join(spec.instruction_keys)}) "
                f"is in features.json (has {', '.join(fields)})"
            )
        self._instruction = instruction
        if not len(self):
            raise DataError(f"{dataset.directory} split {dataset.split}: {len(dataset)} episode(s) give no training window")

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Example:
        """Example `index`. A bad record raises, or (on_bad_record=skip) is replaced by a window drawn from all good ones."""
        return self.in_epoch(index, 0)

    def in_epoch(self, index: int, epoch: int) -> Example:
        """The same of another epoch: with another of several instructions, and of a clip another camera."""
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        for replacement in self._replacements(index, epoch):
            if replacement in self._bad:
                continue
            number, window = self._table[replacement]
            try:
                return self._example(self.dataset[number], number, window, replacement, epoch)
            except BadRecordError as error:
                if self.config.on_bad_record == "fail":
                    raise
                self._skip(error)
                self._bad.add(replacement)
        raise DataError(f"{self.dataset.directory} split {self.dataset.split}: no usable record; {len(self.skipped)} skipped")

    def _replacements(self, index: int, epoch: int) -> Iterator[int]:
        """The window `index`, then what may take its place: uniform draws, so that every good window is as likely; in the end all."""
        yield index
        rng = np.random.default_rng((REPLACEMENT, index, epoch))
        for _ in range(MAX_DRAWS):
            yield int(rng.integers(len(self)))
        yield from range(len(self))

    def _skip(self, error: BadRecordError) -> None:
        problem = f"{error.field}: {error.problem}" if error.field else error.problem
        if error.where not in self.skipped:
            log.warning("skipped: %s: %s", error.where, problem)
        self.skipped[error.where] = problem

    def metadata(self) -> dict:
        raise NotImplementedError

    def _example(self, episode: Episode, number: int, window: int, index: int, epoch: int) -> Example:
        raise NotImplementedError

    def _frame(self, episode: Episode, number: int, camera: str, step: int) -> np.ndarray:
        def make() -> tuple[np.ndarray, int]:
            config = self.config
            frame = camera_frame(episode, camera, step, self.spec, self.image_size, config.jpeg_dct_scaling, config.antialias)
            return frame, frame.nbytes

        return self._frames.get((number, camera, step), make)

    def _text(self, episode: Episode, step: int, index: int, epoch: int) -> Example:
        texts = episode.texts(self._instruction, step)
        if not texts and self.config.empty_instructions != "keep":
            advice = "Set data.empty_instructions=filter (for stage video, or keep)"
            raise BadRecordError(episode.where, self._instruction, "empty instruction", advice)
        text = draw(texts, index, epoch) if texts else ""
        if text not in self._tokens:
            ids, mask = self._tokenizer([text])
            if ids.shape != (1, self.text_length):
                raise DataError(f"the tokenizer returns shape {ids.shape}, expected {(1, self.text_length)} (text_length)")
            self._tokens[text] = np.asarray(ids[0], np.int32), np.asarray(mask[0], bool)
        ids, mask = self._tokens[text]
        return {"text_ids": ids, "text_mask": mask}


class ClipSource(_EpisodeSource):
    """Video clips with their instruction: {video uint8[t s s 3], text_ids int32[l], text_mask bool[l]}.

    Each clip shows one view, drawn anew in every epoch with the probabilities of the robot's `clip_views`. With `latents`,
    {latent_mean, latent_logvar} float16[t h w c] of the same frames replace `video`.

    Attributes:
      latents: description of the dataset's latents; None if clips are images.
    """

    def __init__(
        self,
        dataset: RLDSDataset,
        spec: RobotSpec,
        config: DataConfig,
        image_size: int,
        tokenizer: Tokenizer,
        text_length: int,
        *,
        views: Sequence[str] = (),
        sampling: str = "",
        latents: bool = False,
        seed: int = 0,
    ):
        seconds = config.clip_seconds if spec.control_hz else 0.0
        self.sampling = sampling or ("strided" if seconds else spec.clip_sampling)
        self._stride: float = spec.clip_stride or config.clip_stride
        if seconds:
            self._stride = seconds * (spec.control_hz or 0.0) / (config.clip_frames - 1)
        self._start_every = spec.clip_start_every or config.clip_start_every
        whole = self.sampling == "whole"
        counts = np.ones(len(dataset), np.int64) if whole else windows.window_counts(dataset.lengths, self._start_every)
        super().__init__(dataset, spec, config, image_size, tokenizer, text_length, counts)
        views, where = tuple(views) or tuple(spec.clip_views), str(dataset.directory)
        self.latents = LatentsInfo.from_metadata(dataset.metadata, where) if latents else None
        if self.latents is not None and self.latents.image_size != image_size:
            raise DataError(f"{where}: latents of frames of {self.latents.image_size} pixels, but model.image_size is {image_size}")
        available = latent_cameras(dataset.schema) if latents else dataset.schema.cameras
        self.cameras = tuple(spec.camera(view, available, where) for view in views)
        # a view that the row does not list gets the mean weight
        weights = np.array([spec.clip_views.get(view, 1.0 / max(len(views), 1)) for view in views])
        self._cumulative = np.cumsum(weights / weights.sum())
        self._seed = seed

    def metadata(self) -> dict:
        return {
            "dataset": self.dataset.name,
            "version": self.dataset.version,
            RECORDED_IN: self.dataset.recorded_in,
            "robot": self.spec.to_json(),
            "fingerprint": self.dataset.fingerprint,
            "cameras": list(self.cameras),
            "sampling": self.sampling,
            "windows": len(self),
            **({"latents": self.latents.to_json()} if self.latents else {}),
        }

    def _example(self, episode: Episode, number: int, window: int, index: int, epoch: int) -> Example:
        camera = self._camera(index, epoch)
        if self.sampling == "whole":
            steps = windows.whole_clip(len(episode), self.config.clip_frames)
        else:
            start = window * self._start_every
            steps = windows.strided_clip(len(episode), start, self.config.clip_frames, self._stride)
        text = self._text(episode, int(steps[0]), index, epoch)
        if self.latents:
            return {**read_latents(episode, self.dataset.schema, camera, steps.tolist()), **text}
        frames = {step: self._frame(episode, number, camera, step) for step in dict.fromkeys(steps.tolist())}  # clamped steps repeat
        return {"video": np.stack([frames[step] for step in steps.tolist()]), **text}

    def _camera(self, index: int, epoch: int) -> str:
        if len(self.cameras) == 1:
            return self.cameras[0]
        draw = np.random.default_rng((self._seed, epoch, index)).random()
        return self.cameras[min(int(np.searchsorted(self._cumulative, draw, side="right")), len(self.cameras) - 1)]


class PolicySource(_EpisodeSource):
    """Observation and action chunk: {images/VIEW uint8[s s 3], proprio float32[p], action float32[k a], action_mask bool[k],
    text_ids int32[l], text_mask bool[l], robot int32[], control_hz float32[]}. Action and proprio are normalised.

    With `padding`, examples of robots that differ have one shape: action and proprio are padded with zeros, views that the robot lacks are
    black, and {view_mask bool[v], action_dims bool[a]} say what is there.

    Attributes:
      views: those that the robot has.
      statistics: of the training split, also when another split is read.
      action_normalizer, proprio_normalizer: as applied; `inverse` returns raw values.
    """

    def __init__(
        self,
        dataset: RLDSDataset,
        spec: RobotSpec,
        config: DataConfig,
        image_size: int,
        tokenizer: Tokenizer,
        text_length: int,
        *,
        views: Sequence[str] = (),
        action_dim: int | None = None,
        padding: "Padding | None" = None,
        number: int = 0,
        training_split: RLDSDataset | None = None,
        with_images: bool = True,
    ):
        self._stride = spec.observation_stride or config.observation_stride
        counts = windows.window_counts(dataset.lengths - spec.lost_steps, self._stride, spec.first_step)
        super().__init__(dataset, spec, config, image_size, tokenizer, text_length, counts)
        asked, available, where = tuple(views) or spec.policy_views, dataset.schema.cameras, str(dataset.directory)
        self.views = tuple(view for view in asked if not padding or spec.find_camera(view, available))
        if not self.views:
            raise DataError(f"{where}: '{spec.name}' has none of the views {', '.join(asked)} (has {', '.join(spec.cameras)})")
        self.with_images = with_images
        self.cameras = tuple(spec.camera(view, available, where) for view in self.views)
        self.action_steps = config.action_horizon
        if config.action_seconds and spec.control_hz:
            self.action_steps = min(max(round(config.action_seconds * spec.control_hz), 1), config.action_horizon)
        _check_columns(dataset, spec, None if padding else action_dim, padding)
        self._padding = padding
        self._about = {"robot": np.array(number, np.int32), "control_hz": np.array(spec.control_hz or 0, np.float32)}
        if padding:
            self._about["view_mask"] = np.array([view in self.views for view in asked])
            self._about["action_dims"] = np.arange(padding.action_dim) < spec.action_width
        self._absent = tuple(view for view in asked if view not in self.views)
        self.statistics = statistics.load_or_compute(
            training_split or dataset, spec, index_dir=config.index_dir or None, on_bad_record=config.on_bad_record
        )
        self.action_normalizer = self.statistics.action_normalizer(spec)
        self.proprio_normalizer = self.statistics.proprio_normalizer()

    def metadata(self) -> dict:
        """What a checkpoint must contain to use a policy trained on this dataset, as JSON."""
        return {
            "dataset": self.dataset.name,
            "version": self.dataset.version,
            RECORDED_IN: self.dataset.recorded_in,
            "robot": self.spec.to_json(),
            "fingerprint": self.dataset.fingerprint,
            "views": dict(zip(self.views, self.cameras, strict=True)),
            "windows": len(self),
            "action_steps": self.action_steps,
            "action": self.action_normalizer.to_json(),
            "proprio": self.proprio_normalizer.to_json(),
            "statistics": self.statistics.to_json(),
            "statistics_hash": self.statistics.hash,
        }

    def _example(self, episode: Episode, number: int, window: int, index: int, epoch: int) -> Example:
        start = self.spec.first_step + window * self._stride
        cameras = zip(self.views, self.cameras, strict=True)
        example = {f"images/{view}": self._frame(episode, number, camera, start) for view, camera in cameras if self.with_images}
        example |= {f"images/{view}": np.zeros((self.image_size,) * 2 + (3,), np.uint8) for view in self._absent if self.with_images}
        actions = statistics.actions(episode, self.spec)
        steps, mask = windows.action_chunk(len(actions), start, self.config.action_horizon)
        proprio = statistics.states(episode, self.spec)[start] if self.spec.proprio else np.zeros(0, np.float32)
        action, proprio = self.action_normalizer.forward(actions[steps]), self.proprio_normalizer.forward(proprio)
        if self._padding:
            action, proprio = _widened(action, self._padding.action_dim), _widened(proprio, self._padding.proprio_dim)
        return {
            **example,
            "proprio": proprio,
            "action": action,
            "action_mask": mask & (np.arange(len(mask)) < self.action_steps),
            **self._text(episode, start, index, epoch),
            **self._about,
        }


class Padding(NamedTuple):
    """Widths of the model that all robots share."""

    action_dim: int
    proprio_dim: int


def _widened(values: np.ndarray, width: int) -> np.ndarray:
    """[... width], with zeros behind; where the width is 0 nothing is left."""
    kept = values[..., :width]
    return np.concatenate([kept, np.zeros((*kept.shape[:-1], width - kept.shape[-1]), np.float32)], axis=-1)


SourceT = TypeVar("SourceT", bound=SkippingSource)


class Mixture(Generic[SourceT]):
    """Several sources and their sampling weights, which the loader applies. Indexed directly, it is their concatenation."""

    def __init__(self, sources: Sequence[SourceT], weights: Sequence[float]):
        if not sources or len(sources) != len(weights):
            raise DataError(f"a mixture needs one weight per dataset, got {len(sources)} datasets and {len(weights)} weights")
        self.sources, self.weights = tuple(sources), tuple(float(weight) for weight in weights)
        self.starts = tuple(np.cumsum([0, *map(len, sources)]).tolist())

    def __len__(self) -> int:
        return self.starts[-1]

    def ranges(self) -> list[DatasetRange]:
        """The examples of each source, with its weight."""
        parts = zip(self.starts[:-1], self.starts[1:], self.weights, strict=True)
        return [DatasetRange(start, stop - start, weight) for start, stop, weight in parts]

    def __getitem__(self, index: int) -> Example:
        return self.in_epoch(index, 0)

    def in_epoch(self, index: int, epoch: int) -> Example:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        source, within = self.sources[number], index - self.starts[number]
        return source.in_epoch(within, epoch) if isinstance(source, EpochSource) else source[within]

    @property
    def skipped(self) -> dict[str, str]:
        # each is copied first: reader threads add to it
        return {where: problem for source in self.sources for where, problem in list(source.skipped.items())}

    def metadata(self) -> dict:
        return {"datasets": [source.metadata() for source in self.sources], "weights": list(self.weights)}


def _check_columns(dataset: RLDSDataset, spec: RobotSpec, action_dim: int | None, padding: Padding | None = None) -> None:
    """Checks that features.json has the action and proprio columns of the row, and that the action has the model's width."""
    where = dataset.directory
    if problems := statistics.column_problems(dataset.schema, spec):
        raise DataError(f"{where}: {'; '.join(problems)}. Choose a matching dataset or description, or another version of this copy")
    for column, width in (("action", spec.action_width), ("proprio", spec.proprio_width)):
        room = getattr(padding, f"{column}_dim") if padding else 0
        if room and width > room:
            raise DataError(
                f"{where}: the {column} of '{spec.name}' has {width} numbers, but model.action.{column}_dim is {room}: it must be at least "
                "that of the widest robot"
            )
    if action_dim not in (None, spec.action_width):
        raise DataError(
            f"{where}: actions of '{spec.name}' have shape [{spec.action_width}], but the model's action_dim is "
            f"{action_dim}. Choose a matching dataset or configuration"
        )
