"""Which episodes of a dataset are used. The reader applies a filter; the description of a robot names the one of its dataset."""

from dataclasses import dataclass

from data_pipelines.rlds.examples import Example


@dataclass(frozen=True)
class EpisodeFilter:
    """A rule that is applied once per record, when the record index is built.

    Attributes:
      removes: the episodes that are removed, in words. An index remembers them: under another rule it is built again.
      key: feature of the episode that must be true, or contain the text `contains`; '' asks for none.
      min_steps: shorter episodes are removed.
    """

    removes: str
    key: str = ""
    contains: str = ""
    min_steps: int = 1

    def keep(self, example: Example, steps: int) -> bool:
        """Whether the episode is used. IndexError or ValueError where the record does not say."""
        if self.contains:
            return self.contains.encode() in example.blobs(self.key)[0] and steps >= self.min_steps
        return steps >= self.min_steps and (not self.key or bool(example.numbers(self.key)[0]))
