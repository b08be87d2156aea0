"""What to read and how to cut it into examples. Frozen and checked when made."""

from dataclasses import dataclass

from data_pipelines.rlds.windows import CLIP_SAMPLING
from data_pipelines.transforms import NORMALIZATIONS
from vpp_jax.common.config_fields import FREE, check_ranges, setting
from vpp_jax.common.errors import ConfigError


@dataclass(frozen=True)
class DatasetConfig:
    """One member of a mixture."""

    path: str = setting("", "TFDS/RLDS directory, or its parent with version folders")
    name: str = setting("calvin_mujoco", "row of data_pipelines.openx.registry")
    weight: float = setting(1.0, "share of the examples that are drawn from it, relative to the other members", more_than=0)
    per_step: bool = setting(False, "weight is per step of the split, so that larger datasets count more (as in Octo and OpenVLA)")
    split: str = setting("train", "TFDS split that is read for 'train'")
    val_split: str = setting("val", "TFDS split that is read for 'val'")
    views: tuple[str, ...] = setting((), "views to use, by role ('primary', 'wrist', ...) or camera name; empty: the registry's")
    clip_sampling: str = setting("", "how clips are cut; '' is the registry's choice", choices=("", *CLIP_SAMPLING))
    normalization: str = setting("", "how actions are scaled; '' is the registry's choice", choices=("", *NORMALIZATIONS))
    quantiles: tuple[float, ...] = setting((), "the two quantiles that normalization 'quantile' takes to -1 and 1; empty: the registry's")
    latents: bool = setting(False, "clips are read as the VAE latents of `vpp data latents`, not as images; stage video only")

    def __post_init__(self):
        check_ranges(self)
        if self.quantiles and not (len(self.quantiles) == 2 and 0 <= self.quantiles[0] < self.quantiles[1] <= 1):
            raise ConfigError(f"quantiles is {self.quantiles}, expected a lower and a higher one in [0, 1], or none")


@dataclass(frozen=True)
class DataConfig:
    """The training data: what is read, how it is cut into examples, and with which resources."""

    datasets: tuple[DatasetConfig, ...] = setting((), "the datasets and their weights")
    mixture: str = setting(
        "", "row of data_pipelines.openx.mixtures; `vpp train` puts the datasets it finds in data_dir in place of datasets"
    )
    data_dir: str = setting("", "directory that holds the datasets of the mixture, local or in a bucket")
    missing_datasets: str = setting("fail", "what to do when data_dir lacks a dataset of the mixture", choices=("fail", "skip"))
    allow_unverified: tuple[str, ...] = setting((), "datasets whose unverified columns of the registry are used all the same")
    batch_size: int = setting(16, "examples per step, over all processes", at_least=1)
    clip_frames: int = setting(16, "frames of a clip", at_least=2)
    clip_stride: int = setting(2, "control steps between the frames of a clip", at_least=1)
    clip_start_every: int = setting(2, "control steps between the starts of clips", at_least=1)
    observation_stride: int = setting(1, "control steps between the starts of policy examples", at_least=1)
    action_horizon: int = setting(10, "actions per policy example", at_least=1)
    threads: int = setting(2, "reader threads per process; 0 reads in the calling thread", at_least=0, on_resume=FREE)
    workers: int = setting(0, "processes that make batches in place of the threads, for hosts of many cores", at_least=0, on_resume=FREE)
    prefetch: int = setting(32, "examples read ahead per process", at_least=0, on_resume=FREE)
    jpeg_dct_scaling: bool = setting(True, "JPEG images at least 2.5 times the model's size are decoded at 1/2, 1/4 or 1/8 of their size")
    on_bad_record: str = setting("fail", "skip: the next episode takes its place; counted and listed", choices=("fail", "skip"))
    read_attempts: int = setting(
        5, "how often a read that fails for a passing reason (network, disk) is tried, with growing pauses", at_least=1, on_resume=FREE
    )
    index_dir: str = setting("", "where record indexes and statistics are stored; '' is beside the shards", on_resume=FREE)
    cache_mb: int = setting(256, "memory for parsed episodes, MB, shared by the datasets of a source", at_least=0, on_resume=FREE)
    frame_cache_mb: int = setting(768, "memory for decoded, resized images, MB, shared likewise", at_least=0, on_resume=FREE)

    def __post_init__(self):
        check_ranges(self)

    def bytes_per_dataset(self, megabytes: int) -> int:
        """Bytes that each dataset may use of a budget for all of them."""
        return (megabytes << 20) // max(len(self.datasets), 1)
