"""Which code, which libraries, which device: written into checkpoints and printed by benchmarks."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]  # the checkout, or the directory that packages are installed into
REVISION_VARIABLE = "VPP_GIT_REVISION"  # set in the image of launch/, which has no .git
LIBRARIES = ("vpp_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a training run depends on."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def git_revision(project: Path = PROJECT) -> str:
    """Commit of the checkout this code runs from, with '-dirty' if tracked files differ; outside one, what VPP_GIT_REVISION says, or ''.

    An installed package may be in a virtual environment inside another repository, whose commit is not this project's.
    """
    return _revision_of_checkout(project) or os.environ.get(REVISION_VARIABLE, "")


def _revision_of_checkout(project: Path) -> str:
    try:
        top, commit = _git(project, "rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top).resolve() != project.resolve():
            return ""
        return commit + ("-dirty" if _git(project, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def device_name() -> str:
    """Accelerators of this process, or the CPU model with its cores if there are none."""
    import jax  # imported here: listing devices starts the backend

    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    return f"cpu: {cpu_model()}, {cpu_cores()} cores, {jax.device_count()} device(s)"


def cpu_model() -> str:
    """The CPU model, as far as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
