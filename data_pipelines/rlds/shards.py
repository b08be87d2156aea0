"""What is known of one file of records, whatever its format: where each record lies, its number of steps, and what is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.storage import FileInfo

# In place of a number of steps: a filter leaves the record out; it cannot be used; nobody has looked.
FILTERED, DEFECTIVE, UNCOUNTED = 0, -1, -2


@dataclass(frozen=True)
class Defect:
    """Something wrong in a shard. `record` is the record's number in its file; `fatal`: nothing after it can be found."""

    file: str
    record: int
    problem: str
    fatal: bool = False

    @property
    def where(self) -> str:
        return f"{self.file} record {self.record}"


@dataclass(frozen=True)
class ShardIndex:
    """Where the records of one file are.

    Attributes:
      file_info: of the file that was read; another one means that it has been written anew.
      offsets, lengths: int64[n]. TFRecord: byte position and size of each payload; ArrayRecord: record number and size.
      counts: int32[n], steps of each record, FILTERED, DEFECTIVE or UNCOUNTED.
    """

    name: str
    file_info: FileInfo
    offsets: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray
    defects: tuple[Defect, ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        file_info: FileInfo,
        offsets: Sequence[int],
        lengths: Sequence[int],
        counts: Sequence[int],
        defects: Sequence[Defect],
    ) -> "ShardIndex":
        return cls(
            name, file_info, np.asarray(offsets, np.int64), np.asarray(lengths, np.int64), np.asarray(counts, np.int32), tuple(defects)
        )

    @property
    def counted(self) -> bool:
        return not (self.counts == UNCOUNTED).any()
