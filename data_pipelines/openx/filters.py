"""Episodes that a dataset holds but that are not meant for training. They are left out when its records are indexed, so no reader, no
statistic and no mixture weight counts them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from data_pipelines.rlds.examples import Example


@dataclass(frozen=True)
class EpisodeFilter:
    """keeps: (record, its number of steps) -> whether it is used; ValueError where the record does not say. text: what is left out."""

    text: str
    keeps: Callable[[Example, int], bool]


def _succeeded(example: Example, steps: int) -> bool:
    return bool(example.numbers("success")[0])


def _path_says_success(example: Example, steps: int) -> bool:
    return b"success" in example.blobs("episode_metadata/file_path")[0]


def _has_motion(example: Example, steps: int) -> bool:
    return steps > 1


FILTERS: Mapping[str, EpisodeFilter] = {
    "kuka": EpisodeFilter("episodes without success", _succeeded),
    "droid": EpisodeFilter("episodes whose file_path does not say success", _path_says_success),
    **{f"berkeley_gnm_{name}": EpisodeFilter("episodes of one step", _has_motion) for name in ("recon", "cory_hall", "sac_son")},
}
