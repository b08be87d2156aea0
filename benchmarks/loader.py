"""Loader throughput compared with tf.data as used by Octo: windows per second, memory, time to the first batch.

    python benchmarks/loader.py [--only 256x256,480x640,720x1280,latents] [--workers N] [--json FILE]

A window is one observation frame, a clip of 16 frames of another camera, 10 actions with their mask, proprio and the instruction, with
frames resized to --image_size; for latents, the clip and the instruction. Both pipelines (`loading/windows.py`, `loading/tf_data.py`) read
the same synthetic shards from a warm file cache, one after the other, each in its own process, whose start and imports are included in the
time to the first batch. The row of latents is compared with tf.data on the images of 256x256. TensorFlow comes with requirements/dev.txt;
without it only ours is measured.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vpp_jax.cli.parser import Parser
from vpp_jax.common.files import write_atomically

PARTS = Path(__file__).resolve().parent / "loading"
EPISODES, STEPS = {"256x256": 64, "480x640": 32, "720x1280": 16, "latents": 64}, 60


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_names("--only", tuple(EPISODES), EPISODES, "cases, comma-separated")
    parser.add_number("--image_size", int, 256, "side of the images, pixels", at_least=1, at_most=4096)
    parser.add_number("--batch_size", int, 16, "examples per batch", at_least=1, at_most=65_536)
    parser.add_number("--threads", int, os.cpu_count() or 1, "reader threads", at_least=0, at_most=1024)
    parser.add_number("--workers", int, 0, "worker processes instead of threads (ours)", at_least=0, at_most=1024)
    parser.add_number("--shuffle_buffer", int, 1000, "windows in tf.data's shuffle buffer", at_least=1, at_most=1_000_000)
    parser.add_number("--seconds", float, 4.0, "per case and pipeline", more_than=0, at_most=86_400)
    parser.add_output("--json", metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    pipelines = ("tf_data", "windows") if importlib.util.find_spec("tensorflow") else ("windows",)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; image_size "
        f"{options.image_size}, batch {options.batch_size}, {options.workers or options.threads} "
        f"{'workers' if options.workers else 'threads'}, shuffle buffer {options.shuffle_buffer}"
    )
    print(f"{'case':<10} {'pipeline':<8} windows/s  cpu ms/window  cores  first batch s  memory MiB")
    results = {}
    for case in options.only:
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / "1.0.0"
            make(case, directory, options.image_size)
            rows = {name: run(name, directory, options) for name in (pipelines if case != "latents" else ("windows",))}
        for name, row in rows.items():
            print(
                f"{case:<10} {name:<8} {row['windows_per_s']:>9.1f} {row['cpu_ms']:>14.2f} {row['cores']:>6.2f} "
                f"{row['first_batch_s']:>14.2f} {row['memory_mib']:>11.0f}"
            )
        results[case] = rows
        other = rows.get("tf_data") or (results.get("256x256", {}).get("tf_data") if case == "latents" else None)
        if other:
            rows["ratio"] = {key: rows["windows"][key] / other[key] for key in ("windows_per_s", "memory_mib", "first_batch_s")}
            speed, memory, first = rows["ratio"].values()
            print(
                f"{'':<10} ours to tf.data: {speed:.2f} x the windows/s, {memory:.2f} x the memory, {first:.2f} x the time to the "
                "first batch"
            )
    if options.json:
        packages = ("numpy", "simplejpeg", "cykooz-resizer", "grain", "tensorflow-cpu")
        found = {distribution.metadata["Name"]: distribution.version for distribution in importlib.metadata.distributions()}
        write_atomically(options.json, json.dumps({"versions": {name: found.get(name) for name in packages}, "results": results}, indent=1))


def make(case: str, directory: Path, image_size: int) -> None:
    """Writes the shards of one case, in this process: the memory of the pipelines is measured without it."""
    sys.path.insert(0, str(PARTS))
    import shards

    if case == "latents":
        shards.write_latents(directory, EPISODES[case], STEPS, image_size)
    else:
        height, width = map(int, case.split("x"))
        size = shards.write_images(directory, EPISODES[case], STEPS, height, width)
        print(f"{case}: images of {size / 1000:.0f} kB")


def run(pipeline: str, directory: Path, options: argparse.Namespace) -> dict[str, float]:
    """Runs one pipeline in its own process; see `loading/measure.py`."""
    settings = {
        "image_size": options.image_size,
        "frames": 16,
        "stride": 2,
        "action_horizon": 10,
        "batch_size": options.batch_size,
        "threads": options.threads,
        "workers": options.workers,
        "shuffle_buffer": options.shuffle_buffer,
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, str(PARTS / "measure.py"), pipeline, str(directory), f"--seconds={options.seconds}", *flags]
    path = os.pathsep.join(filter(None, (str(PARTS.parents[1]), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [*command, f"--begun={time.time()}"], stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
