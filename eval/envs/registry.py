"""Environments by name; a simulator is imported when it is built."""

import importlib
import os
from typing import Any

from eval.envs.base import LanguageEnvironment
from vpp_jax.common.errors import nearest

# name -> (module, class)
ENVIRONMENTS: dict[str, tuple[str, str]] = {
    "calvin_mujoco": ("eval.envs.calvin_mujoco.environment", "CalvinEnvironment"),
}


def make_environment(name: str, **kwargs: Any) -> LanguageEnvironment:
    """Builds the environment `name`; `kwargs` are passed to its class.

    Raises:
      ValueError: the name is not registered.
      RuntimeError: the graphics library selected by MUJOCO_GL is missing.
    """
    if name not in ENVIRONMENTS:
        hint = nearest(name, ENVIRONMENTS)
        raise ValueError(f"unknown environment {name!r}{hint} (registered: {', '.join(sorted(ENVIRONMENTS))})")
    module, cls = ENVIRONMENTS[name]
    try:
        loaded = importlib.import_module(module)
    except (ImportError, AttributeError) as error:  # `import mujoco` fails this way if the library of MUJOCO_GL is missing
        backend = os.environ.get("MUJOCO_GL", "")
        if backend.lower() not in ("egl", "osmesa"):
            raise
        raise RuntimeError(
            f"MuJoCo cannot be imported with MUJOCO_GL={backend} ({type(error).__name__}: {error}). "
            "Install the libraries with: apt-get install -y --no-install-recommends libegl1 libgl1"
        ) from error
    return getattr(loaded, cls)(**kwargs)
