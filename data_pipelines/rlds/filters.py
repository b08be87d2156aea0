"""Which episodes of a dataset are used. The reader applies a filter; the description of a robot names the one of its dataset."""

from dataclasses import dataclass, replace

import numpy as np

from data_pipelines.rlds.examples import Example
from data_pipelines.rlds.schema import STEPS

FLAT = "ragged_flat_values"  # where TFDS stores the values of a Sequence


@dataclass(frozen=True)
class EpisodeFilter:
    """A rule that is applied once per record, when the record index is built.

    Attributes:
      removes: the episodes that are removed, in words. An index remembers them: under another rule it is built again.
      key: feature of the episode that must be true, or contain the text `contains`; '' asks for none.
      min_steps: shorter episodes are removed.
      instructions: features of instructions, of steps or of the episode: where the first one that a record has is empty, it is removed.
    """

    removes: str
    key: str = ""
    contains: str = ""
    min_steps: int = 1
    instructions: tuple[str, ...] = ()

    def keep(self, example: Example, steps: int) -> bool:
        """Whether the episode is used. IndexError or ValueError where the record does not say."""
        if self.instructions and not _has_text(example, self.instructions):
            return False
        if self.contains:
            return self.contains.encode() in example.blobs(self.key)[0] and steps >= self.min_steps
        return steps >= self.min_steps and (not self.key or bool(example.numbers(self.key)[0]))


def without_text(rule: EpisodeFilter | None, instructions: tuple[str, ...]) -> EpisodeFilter:
    """`rule`, and episodes without an instruction are removed, too."""
    rule = rule or EpisodeFilter("")
    return replace(rule, removes="; ".join(filter(None, (rule.removes, "episodes without an instruction"))), instructions=instructions)


def _has_text(example: Example, keys: tuple[str, ...]) -> bool:
    """Whether some step of the first of `keys` that the record has is more than blanks. IndexError where it has none of them."""
    names = [name for key in keys for name in (f"{STEPS}/{key}", f"{STEPS}/{key}/{FLAT}", key) if name in example]
    if not names:
        raise IndexError(f"none of {', '.join(keys)}")
    try:
        return any(bytes(blob).strip() for blob in example.blobs(names[0]))
    except ValueError:  # code points, padded with zeros
        return bool(np.any(example.numbers(names[0])))
