"""A trace of a few early steps, for TensorBoard's profiler or Perfetto."""

from pathlib import Path

import jax

# Steps that are not traced: the first ones include start-up work and waiting for data.
WARM_UP = 2


class StepProfile:
    """Traces `count` steps (0: none) of this process into `folder`; `at(step)` is called before each step, `close()` at the end."""

    def __init__(self, folder: Path, start: int, count: int):
        self._folder, self._first, self._last = folder, start + WARM_UP, start + WARM_UP + count
        self._running = False

    def at(self, step: int) -> None:
        if self._first == step < self._last:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif step >= self._last:
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
