"""`vpp eval calvin`: closed-loop success of a policy, of the scripted expert, or of random actions."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks.calvin import CAMERAS, PARTIAL_NOTE, SCENES, TASKS, SingleTasks, summarize
from eval.benchmarks.calvin_chains import COMPLETE_STEPS, Chains, as_calvin_results, summarize_chains
from eval.benchmarks.calvin_sequences import dump
from eval.closed_loop import choose_video_episodes, evaluate
from eval.envs.calvin_mujoco.task_names import FIXTURE_TASKS
from eval.host_loop import LoopOptions
from eval.results import write_json
from eval.worker_process import WorkerCommand
from vpp_jax.cli.main import UsageError
from vpp_jax.cli.parser import Parser, words

SINGLE_TASK_STEPS = 120  # default control steps per episode


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.dump:
        return _dump(arguments)
    if not arguments.policy and not arguments.checkpoint:
        raise UsageError("nothing to evaluate: set --checkpoint DIR or --policy expert|random (or --dump FILE to write the chains)")
    if not arguments.out:
        raise UsageError("--out DIR is required: the results directory")
    protocol, description, summary, print_table = _chains(arguments) if arguments.sequences else _single_tasks(arguments)
    episodes = protocol.all_episodes()
    options = LoopOptions(
        workers=arguments.workers,
        batch_size=arguments.batch_size,
        n_action_steps=arguments.n_action_steps,
        max_steps=description["steps_per_task"],
        retries=arguments.retries,
        request_timeout=arguments.timeout,
        video_episodes=choose_video_episodes(episodes, arguments.num_videos),
        failure_videos=arguments.num_failure_videos,
        video_stride=arguments.video_stride,
    )
    print(description["note"], file=sys.stderr)
    results = evaluate(
        arguments.out,
        episodes=episodes,
        policy=arguments.policy or _load(arguments.checkpoint, arguments.policy_options),
        command=WorkerCommand(
            environment=arguments.environment,
            kwargs=_environment_kwargs(arguments, description["steps_per_task"]),
            expert=arguments.expert,
            python=arguments.python,
            variables={"PYTHONPATH": arguments.python_path} if arguments.python_path else {},
        ),
        options=options,
        protocol=description,
        summarize=summary,
        cameras=CAMERAS,
        argv=["vpp", "eval", *argv],
    )
    print(print_table(results))
    if ended := results["failures"]["ended_by_simulator"]:
        print(f"{ended} tasks were ended, unsolved, by the simulator before {description['steps_per_task']} steps", file=sys.stderr)
    print(f"wrote {arguments.out / 'results.json'}")
    if arguments.sequences:
        epoch = 0 if arguments.policy else results["config"]["policy"]["checkpoint_step"]
        path = write_json(arguments.out / "calvin_results.json", as_calvin_results(results["metrics"], epoch))
        print(f"wrote {path}, in the shape of CALVIN's own results.json")
    if not results["complete"]:
        unscored = results["failures"]["unscored"]
        print(f"{len(unscored)} episodes could not be scored; re-run the command to retry them", file=sys.stderr)
        return 1
    return 0


Choice = tuple[Any, dict[str, Any], Callable[[Any], dict[str, Any]], Callable[[dict[str, Any]], str]]


def _single_tasks(arguments: argparse.Namespace) -> Choice:
    known = {"fixtures": FIXTURE_TASKS, "all": TASKS}
    protocol = SingleTasks(
        scenes=arguments.scenes,
        tasks=known.get(arguments.tasks) or tuple(arguments.tasks.split(",")),
        episodes=arguments.episodes,
        seed=arguments.seed,
    )
    description = {
        "benchmark": "calvin",
        "kind": "single tasks",
        "partial": True,
        "note": PARTIAL_NOTE,
        "scenes": protocol.scenes,
        "tasks": protocol.tasks,
        "episodes_per_scene_and_task": protocol.episodes,
        "steps_per_task": arguments.max_steps or SINGLE_TASK_STEPS,
        "seed": protocol.seed,
        **_environment_choices(arguments),
    }
    return protocol, description, lambda records: summarize(records, protocol.scenes, protocol.tasks), table


def _chains(arguments: argparse.Namespace) -> Choice:
    protocol = Chains(arguments.sequences, arguments.max_steps or COMPLETE_STEPS, arguments.seed)
    description = {**protocol.describe(), **_environment_choices(arguments)}
    return protocol, description, summarize_chains, chain_table


def _environment_kwargs(arguments: argparse.Namespace, steps: int) -> dict[str, Any]:
    """Those given, and for our own simulator the steps of a task: it ends one after 360 otherwise."""
    given = arguments.environment_kwargs
    if given.get("max_steps", steps) < steps:
        raise UsageError(f"--environment_kwargs: the simulator ends a task after {given['max_steps']} steps, the protocol after {steps}")
    return {"max_steps": steps, **given} if arguments.environment == "calvin_mujoco" else given


def _environment_choices(arguments: argparse.Namespace) -> dict[str, Any]:
    """The simulator options that change what is measured."""
    return {name: arguments.environment_kwargs.get(name, default) for name, default in (("quality", "fast"), ("reset_version", "fixed"))}


def _dump(arguments: argparse.Namespace) -> int:
    """Writes chains and initial states; runs nothing."""
    if not arguments.sequences:
        raise UsageError("--dump needs --sequences N, the number of chains")
    write_json(arguments.dump, dump(arguments.sequences))
    print(f"wrote {arguments.sequences} chains to {arguments.dump}")
    return 0


def table(results: dict[str, Any]) -> str:
    """Success per scene and task as text."""
    metrics = results["metrics"]
    lines = [f"{'scene':5}  {'task':23}  solved       rate   95% interval"]
    for scene, cells in metrics["scenes"].items():
        for name, cell in [*cells["tasks"].items(), ("all", cells["overall"])]:
            lines.append(f"{scene:5}  {name:23}  {_rate(cell)}")
    return "\n".join(lines)


def chain_table(results: dict[str, Any]) -> str:
    """CALVIN's metrics as text."""
    metrics = results["metrics"]
    lines = [f"{'task':23}  solved       rate   95% interval"]
    lines += [f"{name:23}  {_rate(cell)}" for name, cell in metrics["tasks"].items()]
    lines += [f"{count + ' in a row':23}  {_rate(cell)}" for count, cell in metrics["in_a_row"].items()]
    error = metrics["average_length_error"]
    spread = "" if error is None else f" (standard error {error:.3f})"
    lines.append(f"average length {metrics['average_length']:.3f}{spread} over {metrics['chains']} chains")
    if metrics["failures"]:
        lines.append("ended by the simulation: " + ", ".join(f"{name} {count}" for name, count in metrics["failures"].items()))
    return "\n".join(lines)


def _rate(cell: dict[str, Any]) -> str:
    rate = "     -" if cell["rate"] is None else f"{cell['rate']:6.1%}"
    return f"{cell['successes']:4d}/{cell['trials']:<4d}  {rate}   {cell['low']:.1%} to {cell['high']:.1%}"


def _load(checkpoint: Path, options: dict[str, Any]) -> Any:
    from vpp_jax.serving.policy_runner import load_policy  # imports JAX, which experts and random actions do not need

    return load_policy(checkpoint, **options)


DESCRIPTION = (
    "With --sequences: CALVIN's chains of five tasks in scene D. Without: single tasks from random initial states, a partial protocol "
    "whose success rates are not comparable with CALVIN's average length."
)


def _parser() -> Parser:
    parser = Parser(prog="vpp eval", description=__doc__)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    calvin = benchmarks.add_parser(
        "calvin",
        help="CALVIN: chains of five tasks, or single tasks",
        description=DESCRIPTION,
    )
    policy = calvin.add_mutually_exclusive_group()
    policy.add_argument("--checkpoint", type=Path, help="checkpoint directory of stage `policy`")
    policy.add_argument("--policy", choices=("expert", "random"), help="run the scripted expert or random actions instead of a checkpoint")
    calvin.add_output("--out", metavar="DIR", help="results directory; re-run the command to resume")
    calvin.add_argument("--sequences", type=int, default=0, help="chains of five tasks in scene D; 1000 is the published protocol")
    calvin.add_output("--dump", metavar="FILE", help="write the chains of --sequences and their initial states to this JSON file and exit")
    calvin.add_argument("--scenes", type=words, default="A,D", help=f"single tasks: comma-separated, of {','.join(SCENES)}")
    calvin.add_argument("--tasks", default="fixtures", help="single tasks: 'fixtures' (the eight without blocks), 'all' or comma-separated")
    calvin.add_argument("--episodes", type=int, default=10, help="single tasks: episodes per scene and task")
    steps = f"control steps per task, 30 per second; 0: {COMPLETE_STEPS} in chains, {SINGLE_TASK_STEPS} for single tasks"
    calvin.add_argument("--max_steps", type=int, default=0, help=steps)
    calvin.add_argument(
        "--n_action_steps", type=int, default=0, help="control steps executed per predicted action chunk; 0: the policy's n_action_steps"
    )
    calvin.add_argument("--seed", type=int, default=0, help="seed of the initial states and of the policy's noise")
    calvin.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="simulator processes")
    calvin.add_argument("--batch_size", type=int, default=0, help="batch size of the policy; 0: number of workers")
    calvin.add_argument(
        "--num_videos", type=int, default=0, help="videos of the first N episodes; they cover every scene and task before any is repeated"
    )
    calvin.add_argument(
        "--num_failure_videos",
        type=int,
        default=0,
        help="videos of the first N episodes that are not solved; until there are N, all episodes are recorded, which takes time",
    )
    calvin.add_argument("--video_stride", type=int, default=2, help="control steps per video frame")
    calvin.add_argument("--retries", type=int, default=2, help="retries of an episode whose simulator process failed")
    calvin.add_argument("--timeout", type=float, default=60.0, help="timeout of one simulator request, in seconds")
    calvin.add_argument("--environment", default="calvin_mujoco", help="name of a registered simulator, or module:Class")
    calvin.add_argument("--environment_kwargs", type=json.loads, default={}, help="keyword arguments of the simulator, as a JSON object")
    calvin.add_argument("--expert", default="", help="name of a registered expert, or module:function; empty: the simulator's own")
    calvin.add_argument("--policy_options", type=json.loads, default={}, help="keyword arguments of load_policy, as a JSON object")
    calvin.add_argument("--python", default=sys.executable, help="Python interpreter of the simulator processes")
    calvin.add_argument("--python_path", default="", help="PYTHONPATH of the simulator processes, e.g. the directory of module:Class")
    return parser
