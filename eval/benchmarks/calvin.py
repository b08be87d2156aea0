"""CALVIN: its own protocols, chains of five tasks in scene D and single tasks from recorded states; and single tasks from random ones.

Single tasks are a *partial* protocol. The published CALVIN numbers are average lengths over 1000 chains of five tasks out of 34 in scene D;
success rates of single tasks are a different quantity, and every result says so.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.benchmarks import single_tasks
from eval.benchmarks.base import Plan
from eval.benchmarks.calvin_chains import COMPLETE_STEPS, ORIGINAL, Chains, plan_chains
from eval.benchmarks.calvin_sequences import TASK_NAMES, dump
from eval.benchmarks.recorded_states import plan_states
from eval.benchmarks.single_tasks import SingleTasks, chosen_names
from eval.calvin.task_names import EVALUATION_INSTRUCTIONS, FIXTURE_TASKS
from eval.envs.calvin_mujoco.limits import QUALITIES, SCENES
from eval.errors import EvaluationError
from eval.host_loop import Interface
from eval.results import write_json

TASKS = TASK_NAMES  # all 34
SINGLE_TASK_STEPS = 120  # default control steps per episode
INTERFACE = Interface(
    cameras={"primary": "rgb_static", "wrist": "rgb_gripper"},
    proprio_key="robot_obs",
    control_hz=30.0,
    instructions=EVALUATION_INSTRUCTIONS,
)
PARTIAL_NOTE = (
    "Partial protocol: success of single tasks from random initial states. "
    "Not comparable with CALVIN's average length over 1000 chains of five tasks."
)
OUR_SIMULATOR = "calvin_mujoco"
IMAGE_SIZES = {"static_size": 200, "gripper_size": 84}  # pixels, the original's


@dataclass(frozen=True)
class CalvinBenchmark:
    """`vpp eval calvin`."""

    help: str = "CALVIN: chains of five tasks, or single tasks"
    environment: str = OUR_SIMULATOR
    interface: Interface = INTERFACE

    def add_flags(self, parser: Any) -> None:
        parser.description = (
            "With --sequences: CALVIN's chains of five tasks in scene D. With --states: single tasks from recorded initial states. Without "
            "both: single tasks from random ones. Success rates of single tasks are not comparable with CALVIN's average length."
        )
        parser.add_number(
            "--sequences", int, 0, "chains of five tasks in scene D; 1000 is the published protocol", at_least=0, at_most=100_000
        )
        parser.add_output(
            "--dump", metavar="FILE", help="write the chains of --sequences and their initial states to this JSON file and exit"
        )
        parser.add_argument(
            "--states",
            metavar="FILE",
            type=Path,
            help="single tasks from the recorded initial states of this .json or .npz file, see eval/benchmarks/recorded_states.py; "
            "--scenes and --episodes do not matter",
        )
        known = "'fixtures' (the eight without blocks), 'all' or comma-separated; empty: fixtures, with --states all of the file"
        single_tasks.add_flags(parser, ("A", "D"), SCENES, "", known)

    def plan(self, arguments: argparse.Namespace) -> Plan | None:
        if arguments.dump:
            _dump(arguments.dump, arguments.sequences)
            return None
        if arguments.sequences and arguments.states:
            raise EvaluationError("--sequences and --states are two protocols: give one of them")
        run = _chains if arguments.sequences else _recorded if arguments.states else _single_tasks
        chosen = run(arguments)
        kwargs = _environment_kwargs(arguments, chosen.max_steps)
        return replace(chosen, environment_kwargs={**chosen.environment_kwargs, **kwargs})


CALVIN = CalvinBenchmark()


def _single_tasks(arguments: argparse.Namespace) -> Plan:
    if _original(arguments):
        raise EvaluationError(f"{ORIGINAL} starts from given states: give --sequences N or --states FILE")
    scenes = chosen_names("scene", arguments.scenes, SCENES)
    chosen = SingleTasks(scenes, _tasks(arguments.tasks or "fixtures"), arguments.episodes, arguments.seed)
    steps = arguments.max_steps or SINGLE_TASK_STEPS
    return single_tasks.plan(
        chosen, "calvin", steps, PARTIAL_NOTE, partial=True, simulator=_simulator(arguments), **_environment_choices(arguments)
    )


def _recorded(arguments: argparse.Namespace) -> Plan:
    tasks = _tasks(arguments.tasks or "all")
    choices = {"simulator": _simulator(arguments), **_environment_choices(arguments)}
    chosen = plan_states(arguments.states, tasks, arguments.max_steps, arguments.seed, **choices)
    ours = _simulator(arguments) == OUR_SIMULATOR
    return replace(chosen, environment_kwargs={"block_order": "original"}) if ours else chosen


def _tasks(names: str) -> tuple[str, ...]:
    known = {"fixtures": FIXTURE_TASKS, "all": TASKS}
    return chosen_names("task", known.get(names) or tuple(names.split(",")), TASKS)


def _chains(arguments: argparse.Namespace) -> Plan:
    chains = Chains(arguments.sequences, arguments.max_steps or COMPLETE_STEPS, arguments.seed)
    of_policy = not arguments.policy
    return plan_chains(chains, _simulator(arguments), of_policy=of_policy, **_environment_choices(arguments))


def _environment_choices(arguments: argparse.Namespace) -> dict[str, Any]:
    """The simulator options that change what is measured; by default as the policy's data was recorded."""
    trained = arguments.recorded_in
    if _original(arguments):
        defaults = {"renderer": "egl", "reset_version": "original"}
    elif _simulator(arguments) == OUR_SIMULATOR:
        defaults = {"quality": QUALITIES[0], "reset_version": "fixed", **IMAGE_SIZES}
        if trained.get("simulator") == OUR_SIMULATOR:
            defaults |= {name: value for name, value in trained.items() if name in defaults}
        elif trained.get("simulator") == ORIGINAL:
            defaults["quality"] = "faithful"  # the closest to its images
    else:
        return {}
    return {name: arguments.environment_kwargs.get(name, default) for name, default in defaults.items()}


def _simulator(arguments: argparse.Namespace) -> str:
    return arguments.environment or OUR_SIMULATOR


def _original(arguments: argparse.Namespace) -> bool:
    """Whether the episodes run in the original simulator."""
    return arguments.environment == ORIGINAL


def _environment_kwargs(arguments: argparse.Namespace, steps: int) -> dict[str, Any]:
    """The options above, and the steps of a task: both simulators end one after 360 otherwise."""
    if _simulator(arguments) not in (OUR_SIMULATOR, ORIGINAL):
        return {}
    given = arguments.environment_kwargs.get("max_steps", steps)
    if given < steps:
        raise EvaluationError(f"--environment_kwargs: the simulator ends a task after {given} steps, the protocol after {steps}")
    return {**_environment_choices(arguments), "max_steps": given}


def _dump(path: Path, sequences: int) -> None:
    """Writes chains and initial states; runs nothing."""
    if not sequences:
        raise EvaluationError("--dump needs --sequences N, the number of chains")
    write_json(path, dump(sequences))
    print(f"wrote {sequences} chains to {path}")
