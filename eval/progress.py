"""Progress of a closed-loop evaluation: episodes done, tasks solved."""

from collections.abc import Sequence
from typing import Any

from vpp_jax.common.progress import ProgressBar


class Progress:
    """Counts the records of finished episodes; `records` are those of an earlier run."""

    def __init__(self, total: int, records: Sequence[dict[str, Any]], interval_s: float = 15.0) -> None:
        self.done, self.solved, self.attempted = len(records), 0, 0
        for record in records:
            self._count(record)
        self._bar = ProgressBar("episodes", total, self.done, interval_s=interval_s)

    def update(self, record: dict[str, Any]) -> None:
        self.done += 1
        self._count(record)
        self._bar.update(self.done, note=f"{self.solved}/{self.attempted} tasks solved")

    def note(self, text: str) -> None:
        self._bar.message(text)

    def close(self) -> None:
        self._bar.close()

    def _count(self, record: dict[str, Any]) -> None:
        self.solved += record["solved"]
        self.attempted += len(record["tasks"])
