"""Episodes that a dataset holds but that are not meant for training: the filters that rows of the table name.

They are applied when the records are indexed, so no reader, no statistic and no mixture weight counts the removed episodes.
"""

from data_pipelines.rlds.examples import Example
from data_pipelines.rlds.filters import EpisodeFilter


def _succeeded(example: Example, steps: int) -> bool:
    return bool(example.numbers("success")[0])


def _path_says_success(example: Example, steps: int) -> bool:
    return b"success" in example.blobs("episode_metadata/file_path")[0]


def _several_steps(example: Example, steps: int) -> bool:
    return steps > 1


SUCCESS_FLAG = EpisodeFilter("episodes without success", _succeeded)
SUCCESS_PATH = EpisodeFilter("episodes whose file_path does not say success", _path_says_success)
SEVERAL_STEPS = EpisodeFilter("episodes of one step", _several_steps)
