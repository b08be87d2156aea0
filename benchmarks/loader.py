"""How fast training examples come: frames and windows per second, memory, and where the time goes.

    python benchmarks/loader.py [--data DIR --name calvin_mujoco] [--json FILE]

Without --data it writes a dataset of its own: photograph-like JPEG at --size pixels. Records are read from the file system, whose
cache is warm after writing; the frame cache is off unless asked for, so every frame is decoded and resized.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_pipelines import sources
from data_pipelines.builders import writer
from data_pipelines.config import DataConfig, DatasetConfig
from data_pipelines.loader import make_iterator
from data_pipelines.rlds import images
from data_pipelines.rlds.dataset import RLDSDataset
from data_pipelines.rlds.schema import Feature, Schema
from data_pipelines.rlds.tfrecord import write_records
from data_pipelines.transforms import resize


@dataclass(frozen=True)
class Rate:
    """One measured case. `cpu_ms`: processor time of all threads per window."""

    case: str
    windows_per_s: float
    frames_per_s: float
    cpu_ms: float
    first_batch_s: float


class Words:
    """A tokenizer that costs nothing."""

    def __call__(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(texts), 20), np.int32), np.ones((len(texts), 20), bool)


def synthetic_dataset(directory: Path, episodes: int, steps: int, size: int) -> None:
    """calvin_mujoco-like episodes with smooth noise as pictures: about as many bytes per pixel as a photograph."""
    rng = np.random.default_rng(0)
    camera = Feature("image", "uint8", (size, size, 3), "jpeg")
    schema = Schema(steps={"observation/rgb_static": camera, "observation/rgb_gripper": camera,
                           "observation/robot_obs": Feature("tensor", "float32", (15,)), "action": Feature("tensor", "float32", (7,)),
                           "is_first": Feature("tensor", "bool"), "language_instruction": Feature("text")})
    pictures = [images.encode_jpeg(_photograph(rng, size), 90) for _ in range(64)]
    lengths, size_on_disk = [], 0
    shards = 4
    for shard in range(shards):
        payloads = []
        for _ in range(episodes // shards):
            static, gripper = ([pictures[int(k)] for k in rng.integers(64, size=steps)] for _ in range(2))
            numbers = {name: rng.normal(size=(steps, width)).astype("f") for name, width in (("observation/robot_obs", 15), ("action", 7))}
            columns = {"observation/rgb_static": static, "observation/rgb_gripper": gripper, **numbers}
            columns |= {"is_first": np.arange(steps) == 0, "language_instruction": ["do something"] * steps}
            payloads.append(writer.encode_episode(schema, columns, {}))
        size_on_disk += write_records(directory / writer.shard_name("calvin_mujoco", "train", shard, shards), payloads)
        lengths.append(len(payloads))
    splits = {"train": writer.WrittenSplit(tuple(lengths), size_on_disk)}
    writer.write_metadata(directory, schema, "calvin_mujoco", "1.0.0", splits, "Synthetic pictures for benchmarks.")


def _photograph(rng: np.random.Generator, size: int) -> np.ndarray:
    coarse = rng.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
    return np.clip(resize(coarse, size).astype(int) + rng.normal(0, 6, (size, size, 3)), 0, 255).astype(np.uint8)


def measure(case: str, source: sources.Source, frames: int, batch_size: int, threads: int, seconds: float) -> Rate:
    """Reads batches for about `seconds` after a warm-up of one batch."""
    begin = time.perf_counter()
    iterator = make_iterator(source, batch_size, 0, threads=threads)
    next(iterator)
    first = time.perf_counter() - begin
    begin, cpu, batches = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begin < seconds:
        next(iterator)
        batches += 1
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    windows = batches * batch_size
    return Rate(case, windows / wall, windows * frames / wall, 1000 * cpu / windows, first)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="RLDS dataset (default: a synthetic one)")
    parser.add_argument("--name", default="calvin_mujoco", help="its row in the registry")
    parser.add_argument("--size", type=int, default=256, help="pixels of the synthetic pictures")
    parser.add_argument("--image_size", type=int, default=256, help="pixels of the examples")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=5.0, help="per case")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.data
        if path is None:
            path = Path(folder) / "data"
            path.mkdir()
            synthetic_dataset(path, episodes=64, steps=60, size=arguments.size)
        results = run(path, Path(folder) / "index", arguments)
    for name, value in results["environment"].items():
        print(f"{name:<16} {value}")
    for name, value in results["reading"].items():
        print(f"{name:<28} {value:.4g}")
    print(f"{'case':<36} windows/s  frames/s  cpu ms/window  first batch s")
    for rate in results["rates"]:
        numbers = f"{rate['windows_per_s']:>9.1f} {rate['frames_per_s']:>9.0f} {rate['cpu_ms']:>14.2f} {rate['first_batch_s']:>14.2f}"
        print(f"{rate['case']:<36} {numbers}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
        print(f"wrote {arguments.json}")
    return 0


def run(path: Path, index_dir: Path, arguments: argparse.Namespace) -> dict:
    def config(**changes) -> DataConfig:
        values = {"datasets": (DatasetConfig(str(path), arguments.name),), "clip_frames": arguments.frames, "chunk": arguments.chunk,
                  "index_dir": str(index_dir), "frame_cache_mb": 0, **changes}
        return DataConfig(**values)

    begin = time.perf_counter()
    dataset = RLDSDataset(path, index_dir=index_dir)
    built = time.perf_counter() - begin
    begin = time.perf_counter()
    RLDSDataset(path, index_dir=index_dir)
    loaded = time.perf_counter() - begin
    uncached = RLDSDataset(path, index_dir=index_dir, cache_bytes=0)
    begin, count = time.perf_counter(), min(len(uncached), 200)
    for number in range(count):
        uncached[number].column("action" if "action" in uncached.schema.steps else next(iter(uncached.schema.steps)))
    columns = (time.perf_counter() - begin) / count
    reading = {"index_build_s": built, "index_load_s": loaded, "episode_read_and_parse_ms": 1000 * columns, "episodes": len(dataset),
               "steps": dataset.num_steps, "shard_bytes": sum(shard.stat().st_size for shard in _shards(dataset))}
    size, tokenizer, threads = arguments.image_size, Words(), arguments.threads
    clip = lambda **changes: sources.clip_source(config(**changes), size, tokenizer, 20)  # noqa: E731
    policy = lambda **changes: sources.policy_source(config(**changes), size, tokenizer, 20)  # noqa: E731
    views = len(policy().sources[0].views)
    frames, shared = arguments.frames, (arguments.batch_size, threads, arguments.seconds)
    rates = [
        measure(f"clips of {frames}, {threads} threads", clip(), frames, *shared),
        measure(f"clips of {frames}, calling thread", clip(), frames, arguments.batch_size, 0, arguments.seconds),
        measure(f"clips of {frames}, records not cached", clip(cache_mb=0), frames, *shared),
        measure(f"clips of {frames}, frames cached", _warmed(clip(frame_cache_mb=2048), arguments.seconds), frames, *shared),
        measure(f"observation + {arguments.chunk} actions, {views} views", policy(), views, *shared),
    ]
    return {"environment": environment(arguments), "reading": reading, "rates": [asdict(rate) for rate in rates],
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _warmed(source: sources.Source, seconds: float) -> sources.Source:
    """Fills the frame cache, for at most four times the measuring time."""
    end = time.perf_counter() + 4 * seconds
    for index in range(len(source)):
        if time.perf_counter() > end:
            break
        source[index]
    return source


def _shards(dataset: RLDSDataset) -> list[Path]:
    return [dataset.directory / file for file in dataset.info.splits[dataset.split].present]


def environment(arguments: argparse.Namespace) -> dict[str, str]:
    """Machine, versions, settings."""
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("grain", "simplejpeg", "pillow", "numpy", "protobuf"))
    return {"device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            "python": platform.python_version(), "versions": versions,
            "settings": f"image_size {arguments.image_size}, batch {arguments.batch_size}, "
                        f"{arguments.data or f'synthetic {arguments.size} px'}"}


if __name__ == "__main__":
    sys.exit(main())
