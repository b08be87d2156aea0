"""The cost of a dataset with very many shards before the first batch: building the record index, its size, opening it, memory, one read.

    vpp bench index [--shards 1000,50000] [--episodes 50] [--shard_mb 100] [--json FILE]

Small shards (links to one file of tiny episodes) show the cost per shard and per episode; one shard of `--shard_mb` with images of
random bytes shows the cost per byte. All files are in the page cache; a disk or a network adds to these times. No image is decoded.
"""

import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from data_pipelines import storage
from data_pipelines.builders import writer
from data_pipelines.config import DataConfig, DatasetConfig
from data_pipelines.loader import clip_source, make_iterator
from data_pipelines.rlds import examples, tfrecord
from data_pipelines.rlds.dataset import DatasetInfo, RLDSDataset, build_index
from data_pipelines.rlds.schema import Feature, Schema
from vpp_jax.cli.parser import Parser
from vpp_jax.common.files import write_atomically
from vpp_jax.common.provenance import device_name, library_versions

MODES = (
    ("record headers only, 1 thread", {"counted": False, "workers": 1}),
    ("with steps, 1 thread", {"workers": 1}),
    ("with steps, 8 threads", {"workers": 8}),
)
FEW = 2000  # shards; with more, the index is built in the last mode only
CAMERAS = ("observation/rgb_static", "observation/rgb_gripper")
SCHEMA = Schema(
    steps={
        **{camera: Feature("image", "uint8", (None, None, 3), "jpeg") for camera in CAMERAS},
        "is_first": Feature("tensor", "bool"),
        "observation/robot_obs": Feature("tensor", "float32", (15,)),
        "action": Feature("tensor", "float32", (7,)),
        "language_instruction": Feature("text"),
    }
)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_numbers("--shards", int, "1000,50000", "numbers of small shards (links to one file)", at_least=1, at_most=60_000)
    parser.add_number("--episodes", int, 50, "episodes per shard", at_least=1, at_most=1_000_000)
    parser.add_number("--shard_mb", int, 100, "megabytes of the large shard; 0: none", at_least=0, at_most=1_000_000)
    parser.add_output("--json", metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    results = {"device": device_name(), "versions": library_versions(), "episodes_per_shard": options.episodes}
    with tempfile.TemporaryDirectory() as folder:
        for shards in options.shards:
            results[f"{shards} small shards"] = many_shards(Path(folder) / str(shards), shards, options.episodes)
        if options.shard_mb:
            results[f"a shard of {options.shard_mb} MB"] = large_shard(Path(folder) / "large", options.shard_mb << 20, options.episodes)
    for title, rows in results.items():
        if isinstance(rows, dict) and title != "versions":
            print(title)
            for name, value in rows.items():
                print(f"  {name:<58s} {value:12.4g}")
    print(f"{results['device']}, {' '.join(f'{name} {version}' for name, version in results['versions'].items())}")
    if options.json:
        write_atomically(options.json, json.dumps(results, indent=1))


def many_shards(directory: Path, shards: int, episodes: int) -> dict[str, float]:
    """Costs per shard and per episode."""
    make_dataset(directory, shards, [episode(2, 8) for _ in range(episodes)])
    rows = {}
    info, schema = DatasetInfo.read(directory), Schema.read(directory)
    for name, options in MODES if shards <= FEW else MODES[-1:]:
        store = directory.parent / f"{shards} index {name}"
        seconds, _ = timed(lambda store=store, options=options: build_index(info, schema, "train", index_dir=store, **options))
        rows[f"index, {name}: ms per shard"] = 1e3 * seconds / shards
    (file,) = (path for path in store.iterdir() if path.is_file())
    rows["index file: bytes per shard"] = file.stat().st_size / shards
    rows["index file: bytes per episode"] = file.stat().st_size / (shards * episodes)
    rows["listing with sizes and times: ms"] = 1e3 * timed(lambda: storage.list_files(directory))[0]
    before = resident()
    rows["open the dataset, index there: s"], dataset = timed(lambda: RLDSDataset(directory, index_dir=store))
    rows["memory of the open dataset: MB"] = (resident() - before) / 1e6
    del dataset
    config = DataConfig(datasets=(DatasetConfig(str(directory), clip_sampling="strided"),), index_dir=str(store), clip_frames=2)
    rows["start of the loader (source and iterator): s"], _ = timed(
        lambda: make_iterator(clip_source(config, 8, lambda texts: (np.ones((len(texts), 4), np.int32),) * 2, 4), 16, seed=0, threads=2)
    )
    return rows


def large_shard(directory: Path, size: int, episodes: int) -> dict[str, float]:
    """Costs per byte."""
    steps = 50
    make_dataset(directory, 1, [episode(steps, size // (episodes * steps * len(CAMERAS))) for _ in range(episodes)])
    info, schema = DatasetInfo.read(directory), Schema.read(directory)
    (name,) = info.splits["train"].present
    file_info, rows = info.files[name], {}
    rows["index, record headers only: ms"] = 1e3 * timed(lambda: tfrecord.scan(directory / name, file_info, None))[0]
    seconds, _ = timed(lambda: tfrecord.scan(directory / name, file_info, lambda payload: examples.count_steps(payload, schema)))
    rows["index, with steps: ms"] = 1e3 * seconds
    rows["index, with steps: MB per s and thread"] = file_info.size / 1e6 / seconds
    shard_files = 4
    make_dataset(directory.parent / "threads", shard_files, source=directory / name, lengths=episodes)
    threaded = DatasetInfo.read(directory.parent / "threads")
    seconds, _ = timed(lambda: build_index(threaded, schema, "train", index_dir=directory.parent / "threads index", workers=shard_files))
    rows[f"index, with steps: MB per s, {shard_files} threads"] = shard_files * file_info.size / 1e6 / seconds
    dataset = RLDSDataset(directory, index_dir=directory / "index", cache_bytes=0)
    order = np.random.default_rng(0).integers(0, len(dataset), 200).tolist()
    rows["one episode: MB"] = file_info.size / 1e6 / episodes
    rows["read and parse one episode: ms"] = 1e3 * timed(lambda: [dataset[index] for index in order])[0] / len(order)
    with_actions = timed(lambda: [dataset[index].column("action") for index in order])[0]
    rows["read and parse it, and its actions: ms"] = 1e3 * with_actions / len(order)
    return rows


def episode(steps: int, image_bytes: int) -> bytes:
    """A record with images of random bytes."""
    columns = {f"steps/{camera}": [os.urandom(image_bytes) for _ in range(steps)] for camera in CAMERAS}
    numbers = {
        f"steps/{name}": np.zeros((steps, *feature.shape), feature.dtype)
        for name, feature in SCHEMA.steps.items()
        if feature.kind == "tensor"
    }
    return examples.encode({**columns, **numbers, "steps/language_instruction": [b"push the slider"] * steps})


def make_dataset(directory: Path, shards: int, payloads: list[bytes] | None = None, source: Path | None = None, lengths: int = 0) -> None:
    """A directory whose shards are links to one file: of `payloads`, or `source` with `lengths` records."""
    directory.mkdir(parents=True)
    names = [writer.shard_name("calvin_mujoco", "train", shard, shards) for shard in range(shards)]
    if source is None:
        source = directory / names.pop(0)
        tfrecord.write_records(source, payloads)
    for name in names:
        os.link(source, directory / name)
    split = writer.WrittenSplit((lengths or len(payloads),) * shards, source.stat().st_size * shards)
    writer.write_metadata(directory, SCHEMA, "calvin_mujoco", "1.0.0", {"train": split}, "benchmark")


def timed(action):
    """Seconds and result."""
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def resident() -> int:
    """Bytes of memory this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
