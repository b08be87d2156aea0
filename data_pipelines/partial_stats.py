"""Statistics of some episodes of a dataset. They can be merged: several hosts each compute a part, one of them merges all parts."""

import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32

from data_pipelines.running_stats import RunningStats


@dataclass
class PartialStats:
    """Of the episodes added so far: statistics per column, number of episodes, and the records that were skipped."""

    columns: dict[str, RunningStats] = field(default_factory=dict)
    episodes: int = 0
    skipped: list[str] = field(default_factory=list)

    def add(self, rows: dict[str, Float32[np.ndarray, "steps width"]]) -> None:
        """Adds the columns of one episode."""
        self.episodes += 1
        for name, values in rows.items():
            self.columns.setdefault(name, RunningStats(values.shape[1])).add(values)

    def merge(self, other: "PartialStats") -> None:
        """Adds what `other` holds. Only the order of `skipped` depends on the order of merging."""
        self.episodes += other.episodes
        self.skipped += other.skipped
        for name, stats in other.columns.items():
            self.columns.setdefault(name, RunningStats(stats.width)).merge(stats)

    def pack(self, about: dict[str, Any]) -> bytes:
        """As the bytes of an `.npz`; `about` (JSON) identifies the data."""
        header = {"about": about, "episodes": self.episodes, "skipped": self.skipped, "columns": list(self.columns)}
        arrays: dict[str, Any] = {
            f"{number} {name}": array for number, stats in enumerate(self.columns.values()) for name, array in stats.to_arrays().items()
        }
        buffer = io.BytesIO()
        np.savez(buffer, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
        return buffer.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> tuple["PartialStats", dict[str, Any]]:
        """The statistics and `about`. A damaged file raises whatever NumPy or JSON raise."""
        with np.load(io.BytesIO(data), allow_pickle=False) as tree:
            header = json.loads(tree["header"].tobytes())
            columns = {}
            for number, name in enumerate(header["columns"]):
                mine = {key.split(" ", 1)[1]: tree[key] for key in tree.files if key.startswith(f"{number} ")}
                columns[name] = RunningStats.from_arrays(mine)
        return cls(columns, header["episodes"], header["skipped"]), header["about"]
