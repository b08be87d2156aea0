"""Simulators of others: what their environments need, where `vpp sim install` put them, and the worker that runs them."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError
from eval.experts.registry import EXPERTS
from eval.worker_process import WorkerCommand
from vpp_jax.common.files import write_atomically


@dataclass(frozen=True)
class Simulator:
    """One simulator that is not part of this project.

    Attributes:
      environment: module:Class of its adapter, in eval/worker/vpp_simulators.
      source: its repository. proof: a file that a checkout of it has.
      python: version that its packages have wheels for.
      requirements: packages of its environment, with those of the worker (NumPy, msgpack) and of experts (jaxtyping).
      modules: what must be importable afterwards.
    """

    environment: str
    source: str
    proof: str
    python: str
    requirements: tuple[str, ...]
    modules: tuple[str, ...]


SIMULATORS: Mapping[str, Simulator] = {
    "calvin_pybullet": Simulator(
        environment="vpp_simulators.calvin_pybullet:CalvinPyBullet",
        source="https://github.com/mees/calvin_env",
        proof="calvin_env/envs/play_table_env.py",
        python="3.11",
        requirements=(
            "numpy==2.4.6",
            "msgpack==1.1.2",
            "pybullet==3.2.7",
            "gym==0.26.2",
            "hydra-core==1.3.2",
            "omegaconf==2.3.0",
            "numpy-quaternion",
            "opencv-python-headless",
            "gitpython",
            "scipy",
            "jaxtyping",
        ),
        modules=("pybullet", "gym", "hydra", "quaternion", "cv2", "git", "scipy", "msgpack", "jaxtyping"),
    )
}


@dataclass(frozen=True)
class Installed:
    """An installed simulator: the interpreter of its environment, and its checkout."""

    name: str
    python: str
    checkout: str


def home() -> Path:
    """Where simulators are installed: VPP_SIMULATORS, else ~/.cache/vpp_jax/simulators."""
    return Path(os.environ.get("VPP_SIMULATORS") or Path.home() / ".cache" / "vpp_jax" / "simulators")


def write_installed(installed: Installed) -> Path:
    path = home() / f"{installed.name}.json"
    write_atomically(path, json.dumps(asdict(installed), indent=1) + "\n")
    return path


def worker_command(name: str, kwargs: Mapping[str, Any], expert: str, python: str, variables: Mapping[str, str]) -> WorkerCommand:
    """The worker of simulator `name`: one of SIMULATORS runs in its own environment, any other one in `python`.

    EvaluationError where one of SIMULATORS is not installed.
    """
    if name not in SIMULATORS:
        return WorkerCommand(name, kwargs, expert, python, variables)
    path = home() / f"{name}.json"
    if not path.is_file():
        raise EvaluationError(f"{name} is not installed (no {path}): run `vpp sim install {name} --checkout=DIR` first")
    installed = Installed(**json.loads(path.read_text()))
    return WorkerCommand(
        SIMULATORS[name].environment,
        {"checkout": installed.checkout, **kwargs},
        expert or (name if name in EXPERTS else ""),
        installed.python,
        variables,
        own_experts=True,
    )
