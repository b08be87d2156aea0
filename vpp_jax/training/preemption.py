"""Preemption: stopping a run from outside without losing a step.

On SIGTERM (preemption) or SIGINT (Ctrl-C) the loop finishes its step, saves, and the process exits with 128 + the signal's number: 143 or
130. The same command resumes. A second SIGINT exits at once, without saving.
"""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Context manager that catches the signals; `signal_number` is the one received, None if none."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signal_number is not None

    @property
    def exit_code(self) -> int:
        return 128 + self.signal_number if self.signal_number is not None else 0

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to the main thread only
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            os.write(sys.stderr.fileno(), b"\nstopped at once; resume from the newest complete checkpoint with the same command\n")
            os._exit(128 + number)
        self.signal_number = number
        again = b"; Ctrl-C again stops at once" if number == signal.SIGINT else b""
        os.write(sys.stderr.fileno(), b"\n" + signal.Signals(number).name.encode() + b": finishing this step and saving" + again + b"\n")
