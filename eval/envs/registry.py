"""Environments by name. Simulators are imported only when one is asked for."""

import difflib
import importlib
from typing import Any

from eval.envs.base import LanguageEnvironment

# name -> (module, class)
ENVIRONMENTS: dict[str, tuple[str, str]] = {
    "calvin_mujoco": ("eval.envs.calvin_mujoco.environment", "CalvinEnvironment"),
}


def make_environment(name: str, **kwargs: Any) -> LanguageEnvironment:
    """Builds the environment `name`; `kwargs` go to its class.

    Raises:
      ValueError: the name is not registered.
    """
    if name not in ENVIRONMENTS:
        close = difflib.get_close_matches(name, ENVIRONMENTS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown environment {name!r}{hint} (registered: {', '.join(sorted(ENVIRONMENTS))})")
    module, cls = ENVIRONMENTS[name]
    return getattr(importlib.import_module(module), cls)(**kwargs)
