"""Where the wall time of a process goes: it is in one phase at a time, and the seconds in each phase add up."""

import time
from collections.abc import Callable

# In the order of a run. "start": connecting, restoring, opening data; "data": waiting for a batch; "step": everything between two batches.
PHASES = ("start", "compile", "data", "step", "eval", "save")


class PhaseClock:
    """A stopwatch per phase, started in "start". `now` returns seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now, self.phase, self._since = now, PHASES[0], now()
        self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)

    def enter(self, phase: str) -> None:
        now = self._now()
        self._seconds[self.phase] = self._seconds.get(self.phase, 0.0) + now - self._since
        self.phase, self._since = phase, now

    @property
    def for_s(self) -> float:
        """Seconds since the current phase was entered."""
        return self._now() - self._since

    def shares(self) -> dict[str, float]:
        """phase -> its share of the wall time since the start; they add up to 1."""
        seconds = self._seconds | {self.phase: self._seconds.get(self.phase, 0.0) + self.for_s}
        total = max(sum(seconds.values()), 1e-9)
        return {phase: value / total for phase, value in seconds.items()}
