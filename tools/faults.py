"""Fault injection: kills `vpp train` at random moments and restarts it, many times.

    python tools/faults.py --out DIR [--kills 40] [--seed 0] [--steps 400] [--bucket]       re-run the command to add further kills

Each round lets `vpp train` (one process, or two over loopback) run until a random moment in a random phase and sends SIGKILL or SIGTERM to
one process:

    start    between the launch and the first step: imports, restoring, compilation
    step     while it trains
    save     while a checkpoint is being written
    restore  while the checkpoint to resume from is being read, once there is one (not in a bucket)

Then every other process must exit, every visible checkpoint must be complete and readable, and the same command must resume. A finished
run must equal the uninterrupted run of as many processes bit for bit: parameters, EMA, optimizer state, data position and logged metrics.
With --bucket the work directories are in a bucket, which an emulator serves from DIR/bucket; nothing may then appear in a local directory
called `gs:`. A table summarises the results; the exit code is 1 if any check failed. Results: DIR/faults.json.
"""

import argparse
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from data_pipelines import storage
from data_pipelines.storage import Location
from vpp_jax.cli.parser import Parser
from vpp_jax.common.files import write_atomically
from vpp_jax.common.provenance import device_name
from vpp_jax.training.checkpoint_writing import ITEMS, Checkpoints
from vpp_jax.training.checkpoints import absolute, complete_steps
from vpp_jax.training.metrics import JSON_LINES, TIMING, parse_entries

PROJECT = Path(__file__).resolve().parents[1]
MOMENTS, SIGNALS, COUNTS = ("start", "restore", "step", "save"), (signal.SIGKILL, signal.SIGTERM), (1, 2)
# (processes, which of them is killed, moment, signal); each kill is one of those that were made least often
PLAN = tuple(itertools.product(((1, 0), (2, 0), (2, 1)), MOMENTS, SIGNALS))
# Allowed exit codes of the killed process and of the others: 75 gives up, -6 is JAX aborting when process 0 is gone.
KILLED_CODES, OTHER_CODES = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15)}, (75, 143, -6)
ENDS_WITHIN_S = 240.0


@dataclass
class Kill:
    """One interruption. steps_lost: logged updates that had to be repeated; ended_s: until every process had exited."""

    processes: int
    moment: str
    signal: str
    victim: int
    codes: list[int] = field(default_factory=list)
    ended_s: float = 0.0
    steps_lost: int = 0
    problems: list[str] = field(default_factory=list)


class Run:
    """A work directory and the command that trains in it."""

    def __init__(self, root: Path, bucket: str, name: str, processes: int, steps: int):
        self.workdir: Location = storage.join(bucket or root, name)
        self.name, self.processes, self.steps, self._root, self._bucket = name, processes, steps, root, bucket
        self._running: list[subprocess.Popen] = []

    def launch(self) -> list[subprocess.Popen]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "vpp_jax",
            "train",
            "--config=tests/configs/faults_vae.py",
            f"--workdir={self.workdir}",
            f"--config.data.datasets[0].path={self._root / 'data'}",
            f"--config.train.steps={self.steps}",
        ]
        variables = {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(self._root / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self._running = []
        for index in range(self.processes):
            several = (f"--coordinator=127.0.0.1:{port}", f"--shard_index={index}", f"--num_shards={self.processes}")
            log = (self._root / f"{self.name}.{index}.log").open("ab")
            self._running.append(
                subprocess.Popen(
                    command + list(several if self.processes > 1 else ()), cwd=PROJECT, env=os.environ | variables, stdout=log, stderr=log
                )
            )
            log.close()
        return self._running

    def through(self) -> list[int]:
        """Launches and lets it end -> exit codes."""
        self.launch()
        return self.wait(1800)

    def wait(self, seconds: float = ENDS_WITHIN_S) -> list[int]:
        """Exit codes; a process that takes longer is killed. Time in which this program is suspended does not count."""
        for _ in range(round(seconds / 0.05)):
            if self.ended:
                break
            time.sleep(0.05)
        for process in self._running:
            process.kill()
        return [process.wait() for process in self._running]

    @property
    def ended(self) -> bool:
        return all(process.poll() is not None for process in self._running)

    @property
    def starts(self) -> int:
        return len(self.lines("runs.jsonl"))

    def lines(self, name: str) -> list[dict]:
        """The entries of a journal in the work directory."""
        try:
            return parse_entries(storage.read(storage.join(self.workdir, name)).decode())
        except FileNotFoundError:
            return []

    @property
    def checkpoints(self) -> epath.Path:
        return absolute(storage.join(self.workdir, "checkpoints"))

    @property
    def saves(self) -> bool:
        """Whether a checkpoint is being written."""
        names = [entry.name for entry in self.checkpoints.iterdir()] if self.checkpoints.exists() else []
        unfinished = {name for name in names if name.isdigit()} - {str(step) for step in complete_steps(self.checkpoints)}
        return bool(unfinished) or any("orbax-checkpoint-tmp" in name for name in names)

    def reference(self) -> "Run":
        """The uninterrupted run of as many processes."""
        return Run(self._root, self._bucket, f"reference_{self.processes}", self.processes, self.steps)

    @property
    def logged(self) -> int:
        return max((entry["step"] for entry in self.lines(JSON_LINES)), default=0)

    @property
    def finished(self) -> bool:
        """The last step is saved and, which comes after it, evaluated."""
        evaluated = {entry["step"] for entry in self.lines(JSON_LINES) if entry["kind"] == "eval"}
        return self.steps in complete_steps(self.checkpoints) and self.steps in evaluated


def wait_for(run: Run, condition: Callable[[], bool]) -> None:
    while not condition() and not run.ended:
        time.sleep(0.002 if isinstance(run.workdir, Path) else 0.02)


def interrupt(run: Run, moment: str, number: signal.Signals, victim: int, draw: random.Random) -> Kill | None:
    """Launches `run` and kills its process `victim`; None if the run finished before."""
    begun, processes = run.starts, run.launch()
    launched = time.monotonic()
    if moment == "start":  # at most as long as the previous run took to start
        until = launched + draw.uniform(0.0, interrupt.start_s)
        wait_for(run, lambda: time.monotonic() > until or run.starts > begun)
    elif moment == "restore":
        wait_for(run, lambda: reads(processes[victim], run.checkpoints) or run.starts > begun)
        time.sleep(draw.uniform(0.0, 0.2))
    else:
        wait_for(run, lambda: run.starts > begun)
        interrupt.start_s = 0.5 * (interrupt.start_s + time.monotonic() - launched)
        until = time.monotonic() + draw.uniform(0.0, 2.5)
        wait_for(run, lambda: time.monotonic() > until)
    if moment == "save":
        wait_for(run, lambda: run.saves)
        time.sleep(draw.uniform(0.0, 0.03))
    if run.ended:
        return None
    kill = Kill(run.processes, moment, number.name, victim)
    processes[victim].send_signal(number)
    begin = time.monotonic()
    kill.codes = run.wait()
    kill.ended_s = round(time.monotonic() - begin, 1)
    for index, code in enumerate(kill.codes):
        if code not in (KILLED_CODES[number] if index == victim else OTHER_CODES) and not run.finished:
            kill.problems.append(f"process {index} ended with {code}")
    kill.problems += unreadable(run)
    kill.steps_lost = max(run.logged - max(complete_steps(run.checkpoints), default=0), 0)
    if kill.codes[victim] == 143 and kill.steps_lost:
        kill.problems.append(f"SIGTERM lost {kill.steps_lost} steps")
    return kill


interrupt.start_s = 10.0


def reads(process: subprocess.Popen, folder: epath.Path) -> bool:
    """Whether the process has a file below `folder` open."""
    try:
        return any(os.readlink(entry).startswith(f"{folder}/") for entry in Path(f"/proc/{process.pid}/fd").iterdir())
    except OSError:  # closed in the meantime, or the process is gone
        return False


def unreadable(run: Run) -> list[str]:
    """Visible checkpoints that are incomplete or cannot be read."""
    problems = []
    renamed = isinstance(run.workdir, Path)  # a local directory has its name when it is complete; in a bucket it has a mark
    present = [int(entry.name) for entry in run.checkpoints.iterdir() if entry.name.isdigit()] if run.checkpoints.exists() else []
    for step in present if renamed else complete_steps(run.checkpoints):
        try:
            load_tensors(run, step)
        except Exception as error:
            problems.append(f"checkpoint {step}: {type(error).__name__}: {str(error)[:200]}")
    return problems


def load_tensors(run: Run, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, and its documents."""
    path, found = run.checkpoints / str(step), {}
    for item in ITEMS:
        tree = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(path / item)
        found |= {f"{item}{name}": np.asarray(value) for name, value in flat(tree)}
    reader = Checkpoints(run.checkpoints, max_to_keep=1 << 30)
    metadata, reported = reader.metadata(step), ("step", "finished", "window", "latent_scaling_factor")
    found["data"] = np.asarray(json.dumps(reader.data_state(step), sort_keys=True))
    found["metadata"] = np.asarray(json.dumps({name: metadata[name] for name in reported if name in metadata}))
    return found


def flat(tree, prefix: str = ""):
    for name, value in tree.items():
        yield from flat(value, f"{prefix}/{name}") if isinstance(value, dict) else [(f"{prefix}/{name}", value)]


def tensor_diff(run: Run, reference: Run, step: int) -> list[str]:
    """The tensors and files in which an interrupted run differs from an uninterrupted one."""
    one, other = load_tensors(run, step), load_tensors(reference, step)
    differ = sorted(one.keys() ^ other.keys()) + [name for name in one.keys() & other.keys() if not np.array_equal(one[name], other[name])]
    return differ + (["metrics.jsonl"] if untimed_metrics(run) != untimed_metrics(reference) else [])


def untimed_metrics(run: Run) -> list[dict]:
    entries = run.lines(JSON_LINES)
    return [{name: value for name, value in entry.items() if not name.startswith(TIMING)} for entry in entries]


def table(kills: list[Kill]) -> str:
    titles = (
        "processes",
        "killed",
        "moment",
        "signal",
        "kills",
        "exit codes (killed / others)",
        "all ended within",
        "steps repeated",
        "problems",
    )
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for (processes, victim), moment, number in PLAN:
        here = [k for k in kills if (k.processes, k.victim, k.moment, k.signal) == (processes, victim, moment, number.name)]
        if not here:
            continue
        killed = sorted({k.codes[victim] for k in here})
        others = sorted({code for k in here for index, code in enumerate(k.codes) if index != victim})
        codes = " ".join(map(str, killed)) + (" / " + " ".join(map(str, others)) if others else "")
        lines.append(
            f"| {processes} | {victim} | {moment} | {number.name} | {len(here)} | {codes} | {max(k.ended_s for k in here):.1f} s | "
            f"{max(k.steps_lost for k in here)} | {sum(len(k.problems) for k in here)} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_output("--out", required=True, help="output directory; existing runs in it are resumed")
    parser.add_argument("--kills", type=int, default=40, help="number of further kills")
    parser.add_argument("--finish", action=argparse.BooleanOptionalAction, default=True, help="let unfinished runs finish")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--processes", type=int, nargs="+", choices=COUNTS, default=COUNTS, help="sizes of the runs")
    parser.add_argument("--bucket", action="store_true", help="put the work directories into an emulated bucket")
    options = parser.parse_args()
    from bucket_emulator import emulated_bucket

    with emulated_bucket(options.out / "bucket") if options.bucket else nullcontext("") as bucket:
        return inject(options, bucket)


def inject(options: argparse.Namespace, bucket: str) -> int:
    from synthetic_episodes import write_episodes

    if not (options.out / "data").exists():
        write_episodes(options.out / "data")

    def run_of(name: str, count: int) -> Run:
        return Run(options.out, bucket, name, count, options.steps)

    for count in options.processes:
        reference = run_of("", count).reference()
        if not reference.finished:
            begin = time.monotonic()
            codes = reference.through()
            assert codes == [0] * count, f"the uninterrupted run of {count} process(es) failed, see {options.out}/*.log"
            print(f"uninterrupted, {count} process(es): {time.monotonic() - begin:.1f} s", flush=True)

    journal = Journal(options.out / "faults.json")
    for _ in range(options.kills):
        number = len(journal.kills)
        made = Counter((k["processes"], k["victim"], k["moment"], k["signal"]) for k in journal.kills)
        runs = {count: run_of(f"run_{count}_{journal.ended.get(str(count), 0)}", count) for count in options.processes}
        # which objects of a bucket a process reads cannot be seen from outside
        restoring = {count for count, run in runs.items() if not bucket and complete_steps(run.checkpoints)}
        plan = [entry for entry in PLAN if entry[0][0] in (restoring if entry[1] == "restore" else runs)]
        (count, victim), moment, sent = min(plan, key=lambda entry: made[(*entry[0], entry[1], entry[2].name)])
        run, draw = runs[count], random.Random(f"{options.seed} {number}")
        kill = interrupt(run, moment, sent, victim, draw)
        if kill is not None:
            journal.kills.append(asdict(kill))
            print(f"{number + 1}: {asdict(kill)} -> checkpoints {complete_steps(run.checkpoints)}", flush=True)
        compare(run, journal, must_be_finished=kill is None)
        journal.write()
    if options.finish:
        for count in options.processes:
            run = run_of(f"run_{count}_{journal.ended.get(str(count), 0)}", count)
            if run.starts:
                run.through()
                compare(run, journal, must_be_finished=True)
                journal.write()
    problems = journal.problems + [problem for kill in journal.kills for problem in kill["problems"]]
    problems += [f"a local directory {path}" for path in (PROJECT / "gs:", options.out / "gs:") if path.exists()]
    runs = sum(journal.ended.values())
    print(f"\n{table([Kill(**kill) for kill in journal.kills])}\n")
    print(f"{len(journal.kills)} kills, {runs} finished runs, {len(problems)} problems; {device_name()}", *problems, sep="\n")
    return 1 if problems else 0


class Journal:
    """DIR/faults.json: every kill, the number of finished runs per number of processes, and all problems."""

    def __init__(self, path: Path):
        self._path = path
        known = json.loads(path.read_text()) if path.exists() else {"kills": [], "ended": {}, "problems": []}
        self.kills, self.ended, self.problems = known["kills"], known["ended"], known["problems"]

    def write(self) -> None:
        write_atomically(self._path, json.dumps({"kills": self.kills, "ended": self.ended, "problems": self.problems}, indent=1))


def compare(run: Run, journal: Journal, must_be_finished: bool) -> None:
    """Compares a finished run with the uninterrupted one, and deletes it."""
    if run.finished:
        differ = tensor_diff(run, run.reference(), run.steps)
        print(f"{run.name} finished after {run.starts} starts; {differ or 'equal, bit for bit'}", flush=True)
        journal.problems += [f"{run.name}: {name}" for name in differ]
        journal.ended[str(run.processes)] = journal.ended.get(str(run.processes), 0) + 1
        absolute(run.workdir).rmtree()
    elif must_be_finished:
        journal.problems.append(f"{run.name} ended early, see its logs")


if __name__ == "__main__":
    sys.exit(main())
