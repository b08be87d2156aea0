"""Which steps of an episode form a training example: pure index arithmetic."""

import numpy as np
from jaxtyping import Bool, Int

LAST_ACTION = ("used", "dropped")
CLIP_SAMPLING = ("strided", "whole")


def window_counts(lengths: Int[np.ndarray, "e"], start_every: int, first: int = 0) -> Int[np.ndarray, "e"]:
    """Number of windows in episodes of `lengths` steps if one starts every `start_every` steps, from step `first` on."""
    return np.maximum(0, -(-(np.asarray(lengths, np.int64) - first) // start_every))


def whole_clip(length: int, frames: int) -> Int[np.ndarray, "f"]:
    """`frames` steps evenly spread over the episode: trunc(linspace(0, length - 1, frames)), as VPP samples internet-like sources."""
    return np.linspace(0, length - 1, frames).astype(np.int64)


def strided_clip(length: int, start: int, frames: int, stride: float) -> Int[np.ndarray, "f"]:
    """`frames` steps from `start` on, every `stride`-th, clamped to the last step of the episode, as VPP samples robot sources.

    A stride that is no integer gives the nearest steps; below 1 some repeat.
    """
    return np.minimum(start + np.rint(stride * np.arange(frames)).astype(np.int64), length - 1)


def action_chunk(length: int, start: int, action_horizon: int) -> tuple[Int[np.ndarray, "k"], Bool[np.ndarray, "k"]]:
    """Steps of the action chunk at observation `start`, and a mask of the steps that exist.

    Beyond the end of the episode the last step is repeated and the mask is False.
    """
    steps = start + np.arange(action_horizon, dtype=np.int64)
    return np.minimum(steps, length - 1), steps < length


class WindowTable:
    """Enumerates the windows of many episodes: `len(table)`, `table[i] -> (episode, window within it)`.

    Memory is one int64 per episode, independent of the number of windows.
    """

    def __init__(self, counts: Int[np.ndarray, "e"]):
        self._stops = np.cumsum(np.asarray(counts, np.int64))

    def __len__(self) -> int:
        return int(self._stops[-1]) if len(self._stops) else 0

    def __getitem__(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        episode = int(np.searchsorted(self._stops, index, side="right"))
        return episode, int(index - (self._stops[episode - 1] if episode else 0))
