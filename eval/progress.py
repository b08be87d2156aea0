"""Progress of a closed-loop evaluation."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm


class Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int, records: Sequence[dict[str, Any]], interval: float = 15.0) -> None:
        self.total, self.done, self.solved, self.attempted = total, len(records), 0, 0
        for record in records:
            self._count(record)
        self._interval, self._last = interval, time.monotonic()
        self._bar = tqdm(total=total, initial=self.done, unit="episode", leave=False) if sys.stderr.isatty() else None

    def update(self, record: dict[str, Any]) -> None:
        self.done += 1
        self._count(record)
        summary = f"{self.solved}/{self.attempted} tasks solved"
        if self._bar is not None:
            self._bar.set_postfix_str(summary)
            self._bar.update()
        elif self.done == self.total or time.monotonic() - self._last >= self._interval:
            self._last = time.monotonic()
            print(f"episode {self.done}/{self.total}  {summary}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr) if self._bar is not None else print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _count(self, record: dict[str, Any]) -> None:
        self.solved += record["solved"]
        self.attempted += len(record["tasks"])
