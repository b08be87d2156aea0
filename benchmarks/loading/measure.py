"""One pipeline in a separate process: throughput and cost as one line of JSON.

python benchmarks/loading/measure.py PIPELINE DIR --begun SECONDS ...     (started by benchmarks/loader.py)
"""

import argparse
import importlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """What both pipelines produce per window: one frame of the second camera, a clip of the first, actions, state, instruction."""

    directory: str
    image_size: int
    frames: int
    stride: int
    action_horizon: int
    batch_size: int
    threads: int
    workers: int
    shuffle_buffer: int


@dataclass(frozen=True)
class Measured:
    """`cores`: processor time over wall time. `memory_mib`: the largest resident memory, of worker processes too."""

    windows_per_s: float
    cpu_ms: float
    cores: float
    first_batch_s: float
    memory_mib: float


def measure(batches: Iterator, request: Request, begun: float, seconds: float) -> Measured:
    """Measures for `seconds`, after the first batch and a warm-up of half a second. `begun`: time.time() before the process started."""
    next(batches)
    first = time.time() - begun
    warm = time.perf_counter() + 0.5
    while time.perf_counter() < warm:
        next(batches)
    start, cpu, count = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    wall, cpu, windows = time.perf_counter() - start, cpu_seconds() - cpu, count * request.batch_size
    return Measured(windows / wall, 1000 * cpu / windows, cpu / wall, first, peak_memory_mib())


def family() -> list[int]:
    """This process and its descendants."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    members, found = [os.getpid()], [os.getpid()]
    while found:
        found = [process for process, parent in parents.items() if parent in found]
        members += found
    return members


def cpu_seconds() -> float:
    """User and system time of the family so far."""
    total = 0
    for process in family():
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def peak_memory_mib() -> float:
    lines = [line for process in family() for line in Path(f"/proc/{process}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", choices=("windows", "tf_data"))
    parser.add_argument("directory")
    parser.add_argument("--begun", type=float, required=True)
    parser.add_argument("--seconds", type=float, default=5.0)
    for name in ("image_size", "frames", "stride", "action_horizon", "batch_size", "threads", "workers", "shuffle_buffer"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = vars(parser.parse_args())
    begun, seconds, pipeline = (options.pop(name) for name in ("begun", "seconds", "pipeline"))
    request = Request(**options)
    batches = importlib.import_module(pipeline).batches(request)  # only now: what a pipeline imports is part of its first batch
    print(json.dumps(asdict(measure(batches, request, begun, seconds))))


if __name__ == "__main__":
    main()
