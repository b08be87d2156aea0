"""The interface of benchmarks: which episodes are run in which simulator, and how their results are counted.

A benchmark is any object with the attributes of `Benchmark`. `eval.benchmarks.registry` finds it by name, by an entry point, or as
module:attribute. `SingleTaskBenchmark` (`eval.benchmarks.single_tasks`) is one that needs a few lines only.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from eval.host_loop import Episode, Interface

Records = Sequence[Mapping[str, Any]]  # lines of the journal


@dataclass(frozen=True)
class Plan:
    """What one command runs.

    Attributes:
      max_steps: control steps per task.
      description: JSON that identifies the protocol in the results; `note` says in words what kind of number they hold.
      summarize: journal lines -> metrics.
      table: results.json -> text for a terminal.
      environment_kwargs: of the simulator, unless the command line gives others.
      published: whether the result of all episodes may stand beside published ones.
      write_more: (directory, results) -> further files, e.g. results in the format of other tools.
    """

    episodes: Sequence[Episode]
    max_steps: int
    description: Mapping[str, Any]
    summarize: Callable[[Records], Mapping[str, Any]]
    table: Callable[[Mapping[str, Any]], str]
    environment_kwargs: Mapping[str, Any] = field(default_factory=dict)
    published: bool = False
    write_more: Callable[[Path, Mapping[str, Any]], Sequence[Path]] = lambda directory, results: ()


@runtime_checkable
class Benchmark(Protocol):
    """One benchmark, as `vpp eval NAME` runs it."""

    @property
    def help(self) -> str:
        """One line for `vpp eval --help`."""
        ...

    @property
    def environment(self) -> str:
        """The simulator: a name of `eval.envs.registry`, or module:Class. The command line may give another one with the same tasks."""
        ...

    @property
    def interface(self) -> Interface:
        """How the simulator's observations are named, and its control rate."""
        ...

    def add_flags(self, parser: Any) -> None:
        """Adds the benchmark's own flags to those that all share (a `vpp_jax.cli.parser.Parser`)."""
        ...

    def plan(self, arguments: argparse.Namespace) -> Plan | None:
        """What the parsed flags ask for. EvaluationError for what does not exist. None: nothing is left to run, a file was written.

        `arguments.recorded_in` tells the simulator and the settings that the policy's data was recorded with, for the defaults of what
        the flags leave open; {} where that is unknown.
        """
        ...
