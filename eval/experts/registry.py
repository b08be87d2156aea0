"""Scripted experts by name. Neither environments nor experts import each other."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

# (environment, random numbers) -> action for its current task and state, or None if the expert gives up
Expert = Callable[[Any, np.random.Generator], np.ndarray | None]

# name, that of the environment which the expert acts in -> (module, function)
EXPERTS: dict[str, tuple[str, str]] = {
    "calvin_mujoco": ("eval.experts.calvin.expert", "act"),
    "calvin_pybullet": ("eval.experts.calvin.expert", "act_in_original"),
}


def get_expert(name: str) -> Expert:
    """The expert called `name`.

    Raises:
      ValueError: there is none.
    """
    if name not in EXPERTS:
        raise ValueError(f"there is no scripted expert for {name!r} (registered: {', '.join(sorted(EXPERTS))})")
    module, function = EXPERTS[name]
    return getattr(importlib.import_module(module), function)
