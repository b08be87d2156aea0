"""Which datasets to read and how to cut them into examples. Frozen dataclasses, checked on construction."""

from dataclasses import dataclass, replace

from data_pipelines.rlds.windows import CLIP_SAMPLING, LAST_ACTION
from data_pipelines.transforms import NORMALIZATIONS
from vpp_jax.common.config_fields import ANNOUNCED, FREE, check_ranges, derived, setting
from vpp_jax.common.errors import ConfigError


@dataclass(frozen=True)
class DatasetConfig:
    """One dataset of a mixture."""

    path: str = setting("", "TFDS/RLDS directory, or its parent with version directories", on_resume=ANNOUNCED)
    name: str = setting("calvin_mujoco", "name of the robot, which --robot chooses where a policy acts")
    robot: str = setting(
        "",
        "what describes it: a TOML or JSON file, JSON text, or a row of the registry; empty: robot.toml or robot.json next to the data, "
        "else the row `name`",
        on_resume=ANNOUNCED,
    )
    weight: float = setting(1.0, "sampling weight, relative to the other datasets", more_than=0)
    per_step: bool = setting(False, "multiply weight by the number of steps of the split (as Octo and OpenVLA define weights)")
    split: str = setting("train", "TFDS split to use as 'train'")
    val_split: str = setting("val", "TFDS split to use as 'val'")
    views: tuple[str, ...] = setting((), "views to use, by role ('primary', 'wrist', ...) or camera name; empty: those of its description")
    clip_sampling: str = setting("", "how clips are sampled; '' is as in its description", choices=("", *CLIP_SAMPLING))
    normalization: str = setting("", "how actions are normalised; '' is as in its description", choices=("", *NORMALIZATIONS))
    quantiles: tuple[float, ...] = setting(
        (), "the two quantiles that normalization 'quantile' maps to -1 and 1; empty: those of its description"
    )
    last_action: str = setting(
        "",
        "whether the action of an episode's last step, which the RLDS specification calls invalid, is trained on and counted; '' is as in "
        "its description (used, as Octo does, unless it says otherwise)",
        choices=("", *LAST_ACTION),
    )
    latents: bool = setting(False, "read clips as the VAE latents of `vpp data latents` instead of images; stage video only")

    def __post_init__(self):
        check_ranges(self)
        if self.quantiles and not (len(self.quantiles) == 2 and 0 <= self.quantiles[0] < self.quantiles[1] <= 1):
            raise ConfigError(f"quantiles is {self.quantiles}, expected a lower and a higher one in [0, 1], or none")


@dataclass(frozen=True)
class DataConfig:
    """The training data: which datasets, how they are cut into examples, and which resources reading may use."""

    datasets: tuple[DatasetConfig, ...] = setting((), "the datasets and their weights")
    mixture: str = setting(
        "",
        "row of data_pipelines.openx.mixtures; `vpp train` adds those of its datasets that data_dir has; an entry of datasets without a "
        "path changes fields of the member with its name",
    )
    data_dir: str = setting("", "directory that holds the datasets of the mixture, local or in a bucket", on_resume=ANNOUNCED)
    missing_datasets: str = setting("fail", "skip: train without the datasets of the mixture that data_dir lacks", choices=("fail", "skip"))
    refused: str = setting(
        "fail", "skip: train without the datasets whose description lacks what the stage needs", choices=("fail", "skip")
    )
    allow_unverified: tuple[str, ...] = setting((), "datasets to use although columns of their description are marked unverified")
    batch_size: int = setting(16, "examples per step, over all processes", at_least=1)
    clip_frames: int = derived(16, "frames of a clip", "model.frames (stage vae: vae_training.clip_frames)")
    clip_stride: int = setting(2, "control steps between the frames of a clip", at_least=1)
    clip_start_every: int = setting(2, "control steps between the starts of clips", at_least=1)
    observation_stride: int = setting(1, "control steps between the starts of policy examples", at_least=1)
    clip_seconds: float = setting(
        0.0,
        "time from the first to the last frame of a clip, by each robot's rate; 0: clip_stride steps between frames",
        at_least=0,
    )
    action_seconds: float = setting(
        0.0, "time of an action chunk, by each robot's rate: later actions of its action_horizon are masked; 0: all count", at_least=0
    )
    action_horizon: int = derived(10, "actions per policy example", "model.action.action_horizon")
    threads: int = setting(2, "reader threads per process; 0 reads in the calling thread", at_least=0, on_resume=FREE)
    workers: int = setting(
        0, "worker processes that make batches instead of the threads, for hosts with many cores", at_least=0, on_resume=FREE
    )
    prefetch: int = setting(32, "examples read ahead per process", at_least=0, on_resume=FREE)
    antialias: bool = setting(True, "antialias images that are made smaller (published: stage video no, stage policy yes)")
    jpeg_dct_scaling: bool = setting(
        True, "decode JPEGs of at least 2.5 times the model's image size at 1/2, 1/4 or 1/8 of their size, unless antialias is off"
    )
    on_bad_record: str = setting(
        "fail", "skip: replace a bad record by the next episode; count and list it", choices=("fail", "skip"), on_resume=ANNOUNCED
    )
    empty_instructions: str = setting(
        "fail",
        "episodes without an instruction: fail is as on_bad_record says; filter: they are removed when the records are indexed; keep: "
        "their text is empty, stages vae and video only",
        choices=("fail", "filter", "keep"),
    )
    read_attempts: int = setting(
        5, "attempts per read; transient errors (network, disk) are retried with exponential backoff", at_least=1, on_resume=FREE
    )
    index_dir: str = setting("", "directory of record indexes and statistics; '' is next to the shards", on_resume=FREE)
    cache_mb: int = setting(256, "memory for parsed episodes, MB, shared by the datasets of a source", at_least=0, on_resume=FREE)
    frame_cache_mb: int = setting(768, "memory for decoded, resized images, MB, shared likewise", at_least=0, on_resume=FREE)

    def __post_init__(self):
        check_ranges(self)

    def only(self, dataset: str) -> "DataConfig":
        """The same with the datasets of this name alone; '' is all of them."""
        return replace(self, datasets=tuple(entry for entry in self.datasets if dataset in ("", entry.name)))

    def bytes_per_dataset(self, megabytes: int) -> int:
        """Bytes per dataset of a budget of `megabytes` for all datasets."""
        return (megabytes << 20) // max(len(self.datasets), 1)
