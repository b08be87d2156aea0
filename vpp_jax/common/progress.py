"""The one progress display: a bar on a terminal, a line every few seconds in a log. Both on standard error."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def is_terminal() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr.isatty()


class ProgressBar:
    """Progress of a long command, with an estimate of the remaining time from the work done since the first `update`.

    Args:
      unit: what is counted, in the plural, e.g. 'episodes'.
      total: number of units; None: passed to `update`.
      initial: units done by an earlier run, if `total` is given; otherwise the first `update` tells.
      interval_s: minimum time between two lines of a log; the first and the last state are always written.
      visible: False in all processes but one: nothing is shown.
    """

    def __init__(self, unit: str, total: int | None = None, initial: int = 0, *, interval_s: float = 5.0, visible: bool = True):
        self._unit, self._total, self._interval, self._visible = unit, total, interval_s, visible
        self._start, self._first, self._last = time.monotonic(), initial if total is not None else None, -float("inf")
        self._bar: tqdm | None = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """`done` of `total` units are done; `note` is appended, e.g. the last file or a success rate."""
        self._total = self._total if total is None else total
        self._first = done if self._first is None else self._first
        if not self._visible:
            return
        if is_terminal():
            if self._bar is None:
                self._bar = tqdm(total=self._total, initial=self._first, unit=f" {self._unit}", dynamic_ncols=True, file=sys.stderr)
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
        elif done == self._total or time.monotonic() - self._last >= self._interval:
            self._last = time.monotonic()
            self.message("  ".join(filter(None, (self._line(done), note))))

    def message(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _line(self, done: int) -> str:
        """'12/40 episodes, 00:30 elapsed, 01:10 left'."""
        seconds = time.monotonic() - self._start
        line = f"{done}/{'?' if self._total is None else self._total} {self._unit}, {tqdm.format_interval(seconds)} elapsed"
        fresh = done - (self._first or 0)
        if self._total is None or not fresh > 0 or done >= self._total:
            return line
        return f"{line}, {tqdm.format_interval(seconds / fresh * (self._total - done))} left"


@contextmanager
def waiting(what: str, *, interval_s: float = 30.0, visible: bool = True) -> Iterator[None]:
    """Work of unknown length: says on standard error that `what` still runs after `interval_s` seconds, and after each doubling."""
    begin, ended = time.monotonic(), threading.Event()

    def tell() -> None:
        due = interval_s
        while not ended.wait(begin + due - time.monotonic()):
            print(f"{what}: {tqdm.format_interval(time.monotonic() - begin)} so far", file=sys.stderr, flush=True)
            due *= 2

    teller = threading.Thread(target=tell, name="waiting", daemon=True)
    if visible:
        teller.start()
    try:
        yield
    finally:
        ended.set()
        if visible:
            teller.join()


def track(items: Sequence[T], unit: str, *, visible: bool = True) -> Iterator[T]:
    """Iterates over `items` with a progress bar; an item counts as done when the next one is requested."""
    with ProgressBar(unit, len(items), visible=visible) as bar:
        for number, item in enumerate(items, start=1):
            yield item
            bar.update(number)
