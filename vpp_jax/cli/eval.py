"""`vpp eval calvin`: closed-loop success of a policy, of the scripted expert, or of random actions."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks.calvin import CAMERAS, PARTIAL_NOTE, SCENES, TASKS, SingleTasks, summarize
from eval.closed_loop import choose_recorded, evaluate
from eval.host_loop import LoopOptions
from eval.worker_process import WorkerCommand


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    protocol = SingleTasks(
        scenes=tuple(arguments.scenes.split(",")),
        tasks=TASKS if arguments.tasks == "all" else tuple(arguments.tasks.split(",")),
        episodes=arguments.episodes,
        seed=arguments.seed,
    )
    episodes = protocol.all_episodes()
    options = LoopOptions(
        workers=arguments.workers,
        batch_size=arguments.batch_size,
        execute=arguments.execute,
        max_steps=arguments.max_steps,
        retries=arguments.retries,
        request_timeout=arguments.timeout,
        record=choose_recorded(episodes, arguments.record * len(protocol.scenes) * len(protocol.tasks)),
        record_every=arguments.record_every,
    )
    print(PARTIAL_NOTE, file=sys.stderr)
    results = evaluate(
        arguments.out,
        episodes=episodes,
        actor=arguments.policy or _load(arguments.checkpoint, arguments.policy_options),
        command=WorkerCommand(arguments.environment, arguments.environment_kwargs, arguments.python),
        options=options,
        protocol={
            "benchmark": "calvin",
            "kind": "single tasks",
            "partial": True,
            "note": PARTIAL_NOTE,
            "scenes": protocol.scenes,
            "tasks": protocol.tasks,
            "episodes_per_scene_and_task": protocol.episodes,
            "seed": protocol.seed,
        },
        summarize=lambda records: summarize(records, protocol.scenes, protocol.tasks),
        cameras=CAMERAS,
        argv=["vpp", "eval", *argv],
    )
    print(table(results))
    print(f"wrote {arguments.out / 'results.json'}")
    if not results["complete"]:
        unscored = results["failures"]["unscored"]
        print(f"{len(unscored)} episodes could not be scored; the same command tries them again", file=sys.stderr)
        return 1
    return 0


def table(results: dict[str, Any]) -> str:
    """Success per scene and task as text."""
    metrics = results["metrics"]
    lines = [f"{'scene':5}  {'task':20}  solved       rate   95% interval"]
    for scene, cells in metrics["scenes"].items():
        for name, cell in [*cells["tasks"].items(), ("all", cells["overall"])]:
            rate = "     -" if cell["rate"] is None else f"{cell['rate']:6.1%}"
            interval = f"{cell['low']:.1%} to {cell['high']:.1%}"
            lines.append(f"{scene:5}  {name:20}  {cell['successes']:4d}/{cell['trials']:<4d}  {rate}   {interval}")
    return "\n".join(lines)


def _load(checkpoint: Path, options: dict[str, Any]) -> Any:
    from vpp_jax.serving.policy_runner import load_policy  # JAX starts here, and only for a policy

    return load_policy(checkpoint, **options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vpp eval", description=__doc__)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    calvin = benchmarks.add_parser(
        "calvin", help="single tasks on the CALVIN table", description=PARTIAL_NOTE, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    actor = calvin.add_mutually_exclusive_group(required=True)
    actor.add_argument("--checkpoint", type=Path, help="checkpoint directory of stage `policy`")
    actor.add_argument("--policy", choices=("expert", "random"), help="the scripted expert or random actions instead of a checkpoint")
    calvin.add_argument("--out", type=Path, required=True, help="directory of the results; the same command continues there")
    calvin.add_argument("--scenes", default="A,D", help=f"comma-separated, of {','.join(SCENES)}")
    calvin.add_argument("--tasks", default="all", help=f"'all' or comma-separated, of {','.join(TASKS)}")
    calvin.add_argument("--episodes", type=int, default=10, help="per scene and task")
    calvin.add_argument("--max_steps", type=int, default=120, help="control steps per episode (30 per second)")
    calvin.add_argument("--execute", type=int, default=0, help="control steps per predicted chunk; 0: what the policy says")
    calvin.add_argument("--seed", type=int, default=0, help="decides initial states and the policy's noise")
    calvin.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="simulator processes")
    calvin.add_argument("--batch_size", type=int, default=0, help="rows of the policy's batch; 0: as many as workers")
    calvin.add_argument("--record", type=int, default=0, help="write videos of the first N episodes of every scene and task")
    calvin.add_argument("--record_every", type=int, default=2, help="control steps per video frame")
    calvin.add_argument("--retries", type=int, default=2, help="further attempts at an episode whose simulator died")
    calvin.add_argument("--timeout", type=float, default=60.0, help="seconds a simulator may take for one answer")
    calvin.add_argument("--environment", default="calvin_mujoco", help="registered simulator, or module:Class")
    calvin.add_argument("--environment_kwargs", type=json.loads, default={}, help="JSON object for the simulator")
    calvin.add_argument("--policy_options", type=json.loads, default={}, help="JSON object for load_policy")
    calvin.add_argument("--python", default=sys.executable, help="interpreter of the simulator processes")
    return parser
