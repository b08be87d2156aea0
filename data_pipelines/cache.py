"""A least-recently-used cache with a limit in bytes, shared by reader threads."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


class ByteLRU(Generic[ValueT]):
    """Keeps the most recently used values, up to `budget` bytes. A copy sent to another process starts empty."""

    def __init__(self, budget: int):
        self.budget = budget
        self.used = 0
        self._entries: OrderedDict[Hashable, tuple[ValueT, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], tuple[ValueT, int]]) -> ValueT:
        """The value of `key`; on a miss from `make() -> (value, bytes)`, called outside the lock, so that two threads may both call it."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key][0]
        value, size = make()
        with self._lock:
            if key not in self._entries and size <= self.budget:
                self._entries[key] = (value, size)
                self.used += size
                while self.used > self.budget:
                    _, (_, freed) = self._entries.popitem(last=False)
                    self.used -= freed
        return value

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self):
        return type(self), (self.budget,)
