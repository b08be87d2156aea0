"""Episodes that a dataset holds but that are not meant for training: the filters that rows of the table name.

They are applied when the records are indexed, so no reader, no statistic and no mixture weight counts the removed episodes.
"""

from data_pipelines.rlds.filters import EpisodeFilter

SUCCESS_FLAG = EpisodeFilter("episodes without success", key="success")
SUCCESS_PATH = EpisodeFilter("episodes whose file_path does not say success", key="episode_metadata/file_path", contains="success")
SEVERAL_STEPS = EpisodeFilter("episodes of one step", min_steps=2)
