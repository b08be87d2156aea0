"""`vpp eval BENCHMARK`: closed-loop success of a policy, of the scripted expert, or of random actions.

BENCHMARK is `calvin`, a name that an installed package registers, or module:attribute of a benchmark of your own.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

from data_pipelines.storage import Location, location
from eval.benchmarks.registry import benchmarks, get_benchmark
from eval.closed_loop import choose_video_episodes, evaluate
from eval.conditions import conditions_text
from eval.host_loop import LoopOptions
from eval.simulators import worker_command
from vpp_jax.cli.main import UsageError
from vpp_jax.cli.parser import Parser, json_object


def main(argv: Sequence[str]) -> int:
    arguments = _parser(argv).parse_args(argv)
    benchmark = get_benchmark(arguments.benchmark)
    if arguments.checkpoint:
        arguments.recorded_in = _recorded_in(arguments.checkpoint, arguments.robot, arguments.policy_options)
    plan = benchmark.plan(arguments)
    if plan is None:
        return 0
    if not arguments.policy and not arguments.checkpoint:
        raise UsageError("nothing to evaluate: set --checkpoint DIR or --policy expert|random")
    if not arguments.out:
        raise UsageError("--out DIR is required: the results directory")
    options = LoopOptions(
        workers=arguments.workers,
        batch_size=arguments.batch_size,
        n_action_steps=arguments.n_action_steps,
        max_steps=plan.max_steps,
        retries=arguments.retries,
        request_timeout=arguments.timeout,
        video_episodes=choose_video_episodes(plan.episodes, arguments.num_videos),
        failure_videos=arguments.num_failure_videos,
        video_stride=arguments.video_stride,
    )
    print(plan.description["note"], file=sys.stderr)
    results = evaluate(
        arguments.out,
        episodes=plan.episodes,
        policy=arguments.policy or _load(arguments.checkpoint, arguments.robot, arguments.policy_options),
        command=worker_command(
            arguments.environment or benchmark.environment,
            kwargs={**plan.environment_kwargs, **arguments.environment_kwargs},
            expert=arguments.expert,
            python=arguments.python,
            variables={"PYTHONPATH": arguments.python_path} if arguments.python_path else {},
        ),
        options=options,
        protocol=plan.description,
        summarize=plan.summarize,
        interface=benchmark.interface,
        published=plan.published,
        argv=["vpp", "eval", *argv],
    )
    print(f"{plan.table(results)}\nmeasured in {conditions_text(results)}")
    if ended := results["failures"]["ended_by_simulator"]:
        print(f"{ended} tasks were ended, unsolved, by the simulator before {plan.max_steps} steps", file=sys.stderr)
    for path in (arguments.out / "results.json", *plan.write_more(arguments.out, results)):
        print(f"wrote {path}")
    if not results["complete"]:
        unscored = results["failures"]["unscored"]
        print(f"{len(unscored)} episodes could not be scored; re-run the command to retry them", file=sys.stderr)
        return 1
    return 0


def _recorded_in(checkpoint: Location, robot: str, options: dict[str, Any]) -> dict[str, Any]:
    """The conditions that the policy's data was recorded under; from the checkpoint's metadata alone."""
    from vpp_jax.serving.policy_runner import recorded_in

    return recorded_in(checkpoint, robot=robot, **options)


def _load(checkpoint: Location, robot: str, options: dict[str, Any]) -> Any:
    from vpp_jax.serving.policy_runner import load_policy  # imports JAX, which experts and random actions do not need

    return load_policy(checkpoint, robot=robot, **options)


def _parser(argv: Sequence[str]) -> Parser:
    parser = Parser(prog="vpp eval", description=__doc__)
    chosen = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    asked = argv[0] if argv and not argv[0].startswith("-") else ""
    for name in [*sorted(benchmarks()), *([asked] if ":" in asked else [])]:
        # others than the one asked for are not imported: they may be of packages that are slow or broken
        benchmark = get_benchmark(name) if name == asked or not asked else None
        one = chosen.add_parser(name, help=benchmark.help if benchmark else None, description=benchmark.help if benchmark else None)
        if benchmark is not None:
            one.set_defaults(recorded_in={})
            _add_flags(one, benchmark.environment)
            benchmark.add_flags(one)
    return parser


def _add_flags(parser: Parser, environment: str) -> None:
    """The flags that all benchmarks share."""
    policy = parser.add_mutually_exclusive_group()
    policy.add_argument("--checkpoint", type=location, help="checkpoint directory of stage `policy`; a path or a bucket URL")
    parser.add_argument("--robot", default="", help="the robot that acts, where the checkpoint was trained on several")
    policy.add_argument("--policy", choices=("expert", "random"), help="run the scripted expert or random actions instead of a checkpoint")
    parser.add_output("--out", metavar="DIR", help="results directory; re-run the command to resume")
    parser.add_number("--max_steps", int, 0, "control steps per task; 0: those of the benchmark", at_least=0, at_most=1_000_000)
    text = "control steps executed per predicted action chunk; 0: the policy's n_action_steps"
    parser.add_number("--n_action_steps", int, 0, text, at_least=0)
    parser.add_number("--seed", int, 0, "seed of the initial states and of the policy's noise", at_least=0)
    parser.add_number("--workers", int, os.cpu_count() or 1, "simulator processes", at_least=1, at_most=1024)
    parser.add_number("--batch_size", int, 0, "batch size of the policy; 0: number of workers", at_least=0)
    text = "videos of the first N episodes; they cover every scene and task before any is repeated"
    parser.add_number("--num_videos", int, 0, text, at_least=0)
    text = "videos of the first N episodes that are not solved; until there are N, all episodes are recorded, which takes time"
    parser.add_number("--num_failure_videos", int, 0, text, at_least=0)
    parser.add_number("--video_stride", int, 2, "control steps per video frame", at_least=1, at_most=1_000_000)
    parser.add_number("--retries", int, 2, "retries of an episode whose simulator process failed", at_least=0)
    parser.add_number("--timeout", float, 60.0, "timeout of one simulator request, in seconds", more_than=0, at_most=86_400)
    parser.add_argument("--environment", default="", help=f"name of a registered simulator, or module:Class (default: {environment})")
    parser.add_argument("--environment_kwargs", type=json_object, default={}, help="keyword arguments of the simulator, as a JSON object")
    parser.add_argument("--expert", default="", help="name of a registered expert, or module:function; empty: the simulator's own")
    parser.add_argument("--policy_options", type=json_object, default={}, help="keyword arguments of load_policy, as a JSON object")
    parser.add_argument("--python", default=sys.executable, help="Python interpreter of the simulator processes")
    parser.add_argument("--python_path", default="", help="PYTHONPATH of the simulator processes, e.g. the directory of module:Class")
