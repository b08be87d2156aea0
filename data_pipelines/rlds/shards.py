"""The index of one file of records, for every file format: offset and number of steps of each record, and defects."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.storage import FileInfo

# In place of a number of steps: removed by the filter; defective; steps not counted.
FILTERED, DEFECTIVE, UNCOUNTED = 0, -1, -2


@dataclass(frozen=True)
class Defect:
    """Something wrong in a shard. `record` is the record's number in its file; `fatal`: later records cannot be located."""

    file: str
    record: int
    problem: str
    fatal: bool = False

    @property
    def where(self) -> str:
        return f"{self.file} record {self.record}"


@dataclass(frozen=True)
class ShardIndex:
    """Offsets and step counts of the records of one file.

    Attributes:
      file_info: of the file when it was indexed; a different one means that the file was rewritten.
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
