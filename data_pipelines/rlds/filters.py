"""Which episodes of a dataset are used. The reader applies a filter; which one belongs to which dataset is said by its registry row."""

from collections.abc import Callable
from dataclasses import dataclass

from data_pipelines.rlds.examples import Example


@dataclass(frozen=True)
class EpisodeFilter:
    """A rule that is applied once per record, when the record index is built.

    Attributes:
      removes: the episodes that are removed, in words. An index remembers them: under another rule it is built again.
      keep: (record, number of steps) -> whether the episode is used. IndexError or ValueError where the record does not say.
    """

    removes: str
    keep: Callable[[Example, int], bool]
