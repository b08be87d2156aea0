"""The windows of the benchmark with this project's loader."""

from collections.abc import Iterator

import numpy as np
from measure import Request

from data_pipelines.config import DataConfig, DatasetConfig
from data_pipelines.loader import make_iterator
from data_pipelines.openx.registry import dataset_spec
from data_pipelines.rlds.dataset import RLDSDataset
from data_pipelines.sources import ClipSource, Example, PolicySource

LENGTH = 20


def tokenizer(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Constant tokens: tokenisation is not measured in either pipeline."""
    return np.zeros((len(texts), LENGTH), np.int32), np.ones((len(texts), LENGTH), bool)


class ClipAndPolicy:
    """Clip and policy example of the same window, from one read of the episode. For latents only the clip, as stage video reads them."""

    def __init__(self, request: Request):
        config = DataConfig(
            datasets=(DatasetConfig(request.directory),),
            clip_frames=request.frames,
            clip_stride=request.stride,
            clip_start_every=1,
            action_horizon=request.action_horizon,
            frame_cache_mb=0,
        )
        # a few records only: no window is served from memory because the dataset is small
        dataset, spec = RLDSDataset(request.directory, cache_bytes=16 << 20), dataset_spec("calvin_mujoco")
        shared = dataset, spec, config, request.image_size, tokenizer, LENGTH
        packed = not dataset.schema.cameras
        self.clips = ClipSource(*shared, views=("primary",), latents=packed)
        self.policy = None if packed else PolicySource(*shared, views=("wrist",))

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Example:
        return {**self.clips[index], **(self.policy[index] if self.policy else {})}


def batches(request: Request) -> Iterator:
    return make_iterator(
        ClipAndPolicy(request), request.batch_size, 0, threads=request.threads, workers=request.workers, prefetch=2 * request.batch_size
    )
