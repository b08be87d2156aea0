"""Environments by name. Simulators are imported only when one is asked for."""

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
    """Builds the environment `name`; `kwargs` go to its class.

    Raises:
      ValueError: the name is not registered.
      RuntimeError: the graphics library that MUJOCO_GL asks for is missing.
    """
    if name not in ENVIRONMENTS:
        hint = nearest(name, ENVIRONMENTS)
        raise ValueError(f"unknown environment {name!r}{hint} (registered: {', '.join(sorted(ENVIRONMENTS))})")
    module, cls = ENVIRONMENTS[name]
    try:
        loaded = importlib.import_module(module)
    except (ImportError, AttributeError) as error:  # how `import mujoco` fails where MUJOCO_GL names a library that is not there
        backend = os.environ.get("MUJOCO_GL", "")
        if backend.lower() not in ("egl", "osmesa"):
            raise
        raise RuntimeError(
            f"MuJoCo cannot be imported with MUJOCO_GL={backend} ({type(error).__name__}: {error}). "
            "Install the libraries with: apt-get install -y --no-install-recommends libegl1 libgl1"
        ) from error
    return getattr(loaded, cls)(**kwargs)
