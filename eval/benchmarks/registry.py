"""Benchmarks by name. A package adds its own with an entry point of the group `vpp_jax.benchmarks`; without one, module:attribute works."""

import importlib
import importlib.metadata

from eval.benchmarks.base import Benchmark
from eval.errors import EvaluationError
from vpp_jax.common.errors import nearest

GROUP = "vpp_jax.benchmarks"
# name -> module:attribute
BENCHMARKS = {"calvin": "eval.benchmarks.calvin:CALVIN"}


def benchmarks() -> dict[str, str]:
    """name -> module:attribute of the benchmarks of this project, and of installed packages. A package cannot replace one of ours."""
    return {entry.name: entry.value for entry in importlib.metadata.entry_points(group=GROUP)} | BENCHMARKS


def get_benchmark(name: str) -> Benchmark:
    """The benchmark called `name`, or at `name` = module:attribute. EvaluationError if there is none, or if it is no benchmark."""
    place = name if ":" in name else benchmarks().get(name)
    if place is None:
        known = sorted(benchmarks())
        raise EvaluationError(f"unknown benchmark '{name}'{nearest(name, known)}: there are {', '.join(known)}, or give module:attribute")
    module, attribute = place.split(":", 1)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise EvaluationError(f"benchmark '{name}' cannot be imported: {error}. Is its package installed, or on PYTHONPATH?") from error
    if not isinstance(found, Benchmark):
        raise EvaluationError(f"'{place}' is a {type(found).__name__}, not a benchmark: it lacks what eval.benchmarks.base.Benchmark has")
    return found
