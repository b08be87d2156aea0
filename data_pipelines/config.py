"""What to read and how to cut it into examples. Frozen and checked when made."""

from dataclasses import dataclass

from data_pipelines.errors import DataError
from data_pipelines.rlds.windows import CLIP_SAMPLING


@dataclass(frozen=True)
class DatasetConfig:
    """One member of a mixture.

    Attributes:
      path: TFDS/RLDS directory, or its parent with version folders.
      name: row of `data_pipelines.openx.registry`.
      weight: share of the examples drawn from it, relative to the other members.
      per_step: `weight` is per step of the split, so that larger datasets count more (what Octo and OpenVLA mean by a weight).
      split, val_split: TFDS split names that stand for 'train' and 'val'.
      views: views to use, by role ('primary', 'wrist', ...) or camera name; empty: the registry's.
      clip_sampling: '' (the registry's), 'strided' or 'whole'.
      latents: clips are read as the VAE latents of `vpp data latents` (or of a recorded dataset), not as pictures; stage video only.
    """

    path: str = ""
    name: str = "calvin_mujoco"
    weight: float = 1.0
    per_step: bool = False
    split: str = "train"
    val_split: str = "val"
    views: tuple[str, ...] = ()
    clip_sampling: str = ""
    latents: bool = False

    def __post_init__(self):
        if not self.weight > 0:
            raise DataError(f"data.datasets[{self.name}].weight is {self.weight}, expected a positive number")
        if self.clip_sampling not in ("", *CLIP_SAMPLING):
            raise DataError(
                f"data.datasets[{self.name}].clip_sampling is '{self.clip_sampling}', expected '' or one of {', '.join(CLIP_SAMPLING)}"
            )


@dataclass(frozen=True)
class DataConfig:
    """The training data.

    Attributes:
      mixture, data_dir: a row of `data_pipelines.openx.mixtures`, and the directory with its datasets (local or in a bucket); `vpp train`
        puts the datasets it finds there in place of `datasets`.
      missing_datasets: what to do when `data_dir` lacks a dataset of the mixture: 'fail', or 'skip'.
      allow_unverified: datasets whose unverified columns of the registry are used all the same.
      batch_size: examples per step, over all processes.
      clip_frames, clip_stride, clip_start_every: video windows, in steps of the episode (VPP on CALVIN: 16, 2, 2).
      observation_stride: a policy example starts every so many steps.
      action_horizon: actions per policy example.
      threads: reader threads per process; 0 reads in the calling thread.
      workers: processes that make batches in place of the threads; for hosts of many processors, see docs/measurements/data_at_scale.md.
      prefetch: examples read ahead per process.
      jpeg_dct_scaling: JPEG pictures much larger than the model's (2.5 times and more) are decoded at 1/2, 1/4 or 1/8 of their size.
      on_bad_record: 'fail', or 'skip' (the next episode takes its place; counted and listed).
      read_attempts: how often a read that fails for a passing reason (network, disk) is tried, with growing pauses.
      index_dir: where record indexes and statistics are kept; '' is beside the shards.
      cache_mb, frame_cache_mb: memory for parsed episodes and for decoded, resized pictures, shared by the datasets of a source.
    """

    datasets: tuple[DatasetConfig, ...] = ()
    mixture: str = ""
    data_dir: str = ""
    missing_datasets: str = "fail"
    allow_unverified: tuple[str, ...] = ()
    batch_size: int = 16
    clip_frames: int = 16
    clip_stride: int = 2
    clip_start_every: int = 2
    observation_stride: int = 1
    action_horizon: int = 10
    threads: int = 2
    workers: int = 0
    prefetch: int = 32
    jpeg_dct_scaling: bool = True
    on_bad_record: str = "fail"
    read_attempts: int = 5
    index_dir: str = ""
    cache_mb: int = 256
    frame_cache_mb: int = 768

    def __post_init__(self):
        for name, least in (
            ("batch_size", 1),
            ("clip_frames", 2),
            ("clip_stride", 1),
            ("clip_start_every", 1),
            ("observation_stride", 1),
            ("action_horizon", 1),
            ("threads", 0),
            ("workers", 0),
            ("prefetch", 0),
            ("read_attempts", 1),
            ("cache_mb", 0),
            ("frame_cache_mb", 0),
        ):
            if getattr(self, name) < least:
                raise DataError(f"data.{name} is {getattr(self, name)}, expected at least {least}")
        for name in ("on_bad_record", "missing_datasets"):
            if getattr(self, name) not in ("fail", "skip"):
                raise DataError(f"data.{name} is '{getattr(self, name)}', expected 'fail' or 'skip'")

    def bytes_per_dataset(self, megabytes: int) -> int:
        """Bytes that each dataset may use of a budget for all of them."""
        return (megabytes << 20) // max(len(self.datasets), 1)
