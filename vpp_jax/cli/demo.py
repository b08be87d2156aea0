"""`vpp demo`: demonstrations -> VAE -> video model -> policy -> closed loop -> report, at a small size.

Every step is an ordinary `vpp` command in its own process, printed before it runs. A finished step is not run again and an interrupted one
resumes: re-run `vpp demo` to continue.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from vpp_jax.cli.parser import Parser
from vpp_jax.common.files import write_atomically
from vpp_jax.common.text_files import read_json

REFERENCE_MINUTES = 15
TRAINING_SCENES = "A,B,C"
EVALUATED_SCENES = "A,D"
VIDEOS_PER_EVALUATION = 16  # one per scene and task
SEED = 0


@dataclass(frozen=True)
class Step:
    """One command of the demo; `name` is the key of its time in `timing.json`."""

    name: str
    title: str
    arguments: tuple[str, ...]


def demo_steps(workdir: Path, minutes: float) -> list[Step]:
    """The commands for a budget: step counts and sample counts grow with `minutes`, nothing else changes."""
    share = minutes / REFERENCE_MINUTES
    data, workers = workdir / "data", min(2, os.cpu_count() or 1)

    def scaled(count: int, least: int = 1) -> int:
        return max(least, round(count * share))

    def train(stage: str, steps: int, *overrides: str) -> Step:
        arguments = ("train", f"--config=configs/tiny_calvin_{stage}.py", f"--workdir={workdir / stage}")
        fixed = (f"--config.data.datasets[0].path={data}", f"--config.train.steps={steps}", f"--config.seed={SEED}")
        return Step(stage, f"training stage {stage}, {steps} steps", arguments + fixed + overrides)

    def evaluate(policy: str, *choice: str) -> Step:
        arguments = ("eval", "calvin", *choice, f"--out={workdir / 'eval' / policy}", f"--scenes={EVALUATED_SCENES}")
        budget = (
            f"--episodes={scaled(EPISODES_PER_TASK)}",
            "--max_steps=120",
            f"--workers={2 * workers}",
            f"--num_videos={VIDEOS_PER_EVALUATION}",
        )
        cameras = f"--environment_kwargs={json.dumps(CAMERA_SIZES | {'blocks': False})}"
        return Step(f"eval_{policy}", f"closed loop, {policy}", (*arguments, *budget, cameras))

    demonstrations = (f"--episodes={scaled(DEMONSTRATIONS_PER_TASK, 2)}", f"--val_episodes={scaled(VALIDATION_PER_TASK)}")
    build = ("data", "build", "calvin_mujoco", f"--out={data}", f"--scenes={TRAINING_SCENES}", *demonstrations)
    return [
        Step("data", "expert demonstrations in scenes " + TRAINING_SCENES, (*build, f"--workers={workers}", f"--seed={SEED}", *CAMERAS)),
        train("vae", scaled(VAE_STEPS, 10)),
        train("video", scaled(VIDEO_STEPS, 10), f"--config.init.vae={workdir / 'vae'}"),
        train("policy", scaled(POLICY_STEPS, 10), f"--config.init.video={workdir / 'video'}"),
        evaluate("random", "--policy=random"),
        evaluate("expert", "--policy=expert"),
        evaluate("policy", f"--checkpoint={workdir / 'policy'}"),
        Step("report", "report", ("report", str(workdir))),
    ]


# Compilation is half the work of so short a training. At LLVM's level 1 the video step compiles in 67 instead of 115 s of processor time
# and takes 7 % longer (2 cores, 2026-11-25); at level 0 it compiles in 57 s and takes twice as long.
COMPILE_CHEAPLY = "--xla_backend_optimization_level=1"

# Meant to leave a fifth of the 15 minutes free on two cores; README.md says what was measured.
CAMERA_SIZES = {"static_size": 128, "gripper_size": 84}
CAMERAS = tuple(f"--{name}={size}" for name, size in CAMERA_SIZES.items())
DEMONSTRATIONS_PER_TASK = 20
VALIDATION_PER_TASK = 1
VAE_STEPS = 500
VIDEO_STEPS = 700
POLICY_STEPS = 600
EPISODES_PER_TASK = 6


def read_timing(path: Path) -> dict[str, dict]:
    return read_json(path) if path.exists() else {}


def write_timing(path: Path, timing: dict[str, dict]) -> None:
    write_atomically(path, json.dumps(timing, indent=2))


def _environment() -> dict[str, str]:
    """This process's environment with cheaper compilation; flags in the caller's XLA_FLAGS come later and win."""
    flags = f"{COMPILE_CHEAPLY} {os.environ.get('XLA_FLAGS', '')}".strip()
    return os.environ | {"XLA_FLAGS": flags}


def run_step(step: Step, timing_path: Path) -> int:
    """Runs one command, adds its seconds to earlier, interrupted attempts, and marks it done when it exits with 0."""
    timing = read_timing(timing_path)
    before = timing.get(step.name, {})
    command = [sys.executable, "-m", "vpp_jax", *step.arguments]
    start = time.monotonic()
    code = subprocess.call(command, env=_environment())
    spent = before.get("seconds", 0.0) + time.monotonic() - start
    timing[step.name] = {"seconds": round(spent, 1), "done": code == 0, "command": ["vpp", *step.arguments]}
    write_timing(timing_path, timing)
    return code


def main(argv: list[str]) -> int:
    parser = Parser(prog="vpp demo", description=__doc__)
    parser.add_output("--workdir", metavar="DIR", default=Path("runs/demo"), help="directory for datasets, stages, results and the report")
    text = "budget on two cores; scales steps and samples"
    parser.add_number("--minutes", float, REFERENCE_MINUTES, text, more_than=0, at_most=10_000)
    options = parser.parse_args(argv)
    options.workdir.mkdir(parents=True, exist_ok=True)
    timing_path = options.workdir / "timing.json"
    steps = demo_steps(options.workdir, options.minutes)
    for number, step in enumerate(steps, 1):
        known = read_timing(timing_path).get(step.name, {})
        if known.get("done") and known["command"] == ["vpp", *step.arguments] and step.name != "report":
            print(f"[{number}/{len(steps)}] {step.title}: done before, {known['seconds']:.0f} s", flush=True)
            continue
        print(f"\n[{number}/{len(steps)}] {step.title}\n$ vpp {shlex.join(step.arguments)}", flush=True)
        code = run_step(step, timing_path)
        if code:
            print(f"vpp demo: stopped in step '{step.name}' (exit {code}); re-run the command to resume", file=sys.stderr)
            return code
    seconds = sum(entry["seconds"] for entry in read_timing(timing_path).values())
    print(f"\nAll of it took {seconds / 60:.1f} minutes. Open {options.workdir / 'report' / 'index.html'} in a browser.")
    return 0
