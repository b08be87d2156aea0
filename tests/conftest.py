"""Fixtures every test may use, and the reasons for which a test may be skipped."""

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from jaxtyping import install_import_hook

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).parent))  # `malicious`, which several folders import

# Most of the suite's time is compilation, and what it compiles runs for seconds: half the optimisation, twice the speed. Set before JAX
# starts, and inherited by the commands that tests run.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

# Arguments and results of every annotated function are checked against its signature, shapes included. Before the first import of ours. The
# environments of PyTorch, Beam and libtpu have no type checker.
if importlib.util.find_spec("beartype"):
    install_import_hook(["vpp_jax", "data_pipelines", "eval"], "shape_checking.checker")

# Everything that a test may lack. What `make test` installs, and what lies in tests/data, is never a reason to skip.
SKIP_REASONS = (
    r"(PyTorch|diffusers|transformers|OmegaConf|open_clip_torch) is not installed",  # `make parity`
    r"Apache Beam is not installed",  # `make beam`
    r"libtpu is not installed",  # `make tpu`
    r"no chromium on this machine",  # the report's browser test
)


def _refuse_unknown_skip(report) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        path, line, message = report.longrepr
        reason = message.removeprefix("Skipped: ")
        if not any(re.search(known, reason) for known in SKIP_REASONS):
            report.outcome = "failed"
            report.longrepr = f"{path}:{line}: {reason!r} is no reason to skip a test: expected one of SKIP_REASONS (tests/conftest.py)"


def pytest_collection_modifyitems(items):
    """Files with long tests come first: processes that share the suite end together."""
    long = {item.path for item in items if item.get_closest_marker("medium") or item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    report = yield
    _refuse_unknown_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    report = yield
    _refuse_unknown_skip(report)
    return report


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def project() -> Path:
    """Root of the checkout."""
    return PROJECT


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """`tests/data`: recorded vectors, published lists, small real recordings. Read only; its README says where each comes from."""
    return PROJECT / "tests" / "data"


@pytest.fixture(scope="session")
def bridge_dataset(reference_data, tmp_path_factory) -> Path:
    """A copy of the real Open-X shard: whoever opens a dataset writes an index into its directory."""
    return Path(shutil.copytree(reference_data / "openx" / "bridge_dataset", tmp_path_factory.mktemp("openx") / "bridge_dataset"))


@pytest.fixture(scope="session")
def bucket(tmp_path_factory) -> Iterator[str]:
    """gs://bucket, empty at first, for this process and those it starts."""
    from tools.bucket_emulator import emulated_bucket

    with emulated_bucket(tmp_path_factory.mktemp("bucket")) as url:
        yield url
    assert not Path("gs:").exists()  # what a URL becomes where it is taken for a path


@pytest.fixture(scope="session")
def fabricated():
    """The module tests/interop/fabricated.py: writes published checkpoints, and any other file of PyTorch."""
    return load_module(PROJECT / "tests" / "interop" / "fabricated.py")


@pytest.fixture
def archive(fabricated):
    return fabricated.Archive()


@pytest.fixture(scope="session")
def micro_config() -> Callable:
    """stage -> ExperimentConfig of the smallest model that has every part."""
    from vpp_jax.config import from_config_dict

    module = load_module(PROJECT / "tests" / "configs" / "micro.py")
    return lambda stage: from_config_dict(module.micro(stage))


def pytest_addoption(parser):
    parser.addoption("--command_lines", type=int, default=300, help="command lines and configurations of tests/cli/test_command_lines.py")
