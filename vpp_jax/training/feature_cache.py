"""Predictive features of a whole dataset, computed once: stage `policy` then trains without the video model in its loop.

The published code draws fresh noise for every training step; here every observation gets a fixed number of draws (docs/differences.md).
Features are large, 41.9 MB per observation at size `svd`, so their bytes are printed and compared with a limit before anything is computed.

The cache is a directory of files of equally many rows. Each is written by one process, and the processes take turns: a killed run resumes
with the missing files, with any number of processes. Which rows a file has, and their keys, depend only on (seed, observation, draw).
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from data_pipelines.mixture_index import DatasetRange
from data_pipelines.sources import Source, WeightedSource
from vpp_jax.common.errors import VppError
from vpp_jax.common.files import atomic_path, write_atomically
from vpp_jax.common.progress import track
from vpp_jax.training.distributed import all_gather_string

INDEX = "index.json"
OTHERS_TIMEOUT_S = 600.0  # at the start and at the end; in between the processes run in lockstep


class FeatureCacheError(VppError):
    """A cache that would be larger than its limit."""


@dataclass(frozen=True)
class FeatureFiles:
    """Features float16 [rows, t n d] as files NNNNNN.npy of `rows_per_file` rows, the last one shorter; index i -> [t n d]."""

    directory: Path
    rows: int
    rows_per_file: int

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> np.ndarray:
        number, row = divmod(index, self.rows_per_file)
        return np.array(_opened(self.path(number))[row])

    def path(self, number: int) -> Path:
        return self.directory / f"{number:06d}.npy"

    def rows_of(self, number: int) -> range:
        return range(number * self.rows_per_file, min((number + 1) * self.rows_per_file, self.rows))

    def missing(self) -> list[int]:
        present = {path.name for path in self.directory.glob("*.npy")}
        return [number for number in range(-(-self.rows // self.rows_per_file)) if self.path(number).name not in present]


@lru_cache(maxsize=128)  # each open file takes a descriptor
def _opened(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


@runtime_checkable
class SkippingSource(Source, Protocol):
    """A source that lists the records it skipped."""

    @property
    def skipped(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class CachedFeatures:
    """Random-access source of policy examples whose images are replaced by `features` float16 [t n d].

    Index i is draw i // len(observations) of observation i % len(observations); `observation` int32 is that index, so that its images
    can be looked up.
    """

    observations: SkippingSource  # without images
    features: FeatureFiles

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        observation = index % len(self.observations)
        return self.observations[observation] | {"features": self.features[index], "observation": np.array(observation, np.int32)}

    def ranges(self) -> list[DatasetRange]:
        """A mixture of observations is sampled by its weights, with every draw of features equally often."""
        count, rows = len(self.observations), [DatasetRange(0, len(self))]
        parts = self.observations.ranges() if isinstance(self.observations, WeightedSource) else []
        if len(parts) > 1:
            starts = range(0, len(self), count)
            rows = [DatasetRange(start + part.start, part.length, part.weight / len(starts)) for part in parts for start in starts]
        return rows

    @property
    def skipped(self) -> dict[str, str]:
        return self.observations.skipped

    def metadata(self) -> dict:
        return self.observations.metadata()


def build_feature_cache(
    observations: Source,
    compute: Callable[[dict[str, np.ndarray], jax.Array], np.ndarray],
    directory: Path,
    *,
    shape: tuple[int, int, int],
    draws: int,
    batch_size: int,
    seed: int,
    identity: str,
    limit_gb: float,
    part: tuple[int, int] = (0, 1),
) -> FeatureFiles:
    """Computes the files that are missing in `directory`, features [draws * len(observations), *shape] in all.

    Args:
      compute: (batch, keys [b]) -> features [b t n d]. Every process calls it equally often, each with its own rows, of equal number.
      batch_size: rows per process and call, and per file.
      identity: names what features depend on (checkpoint, data, model): a cache of another identity is recomputed.
      limit_gb: FeatureCacheError where the cache would take more GB (1e9 bytes).
      part: (i, n): this process computes every n-th missing file. Of several processes with the same i, the first one writes.
    """
    primary, total = jax.process_index() == 0, draws * len(observations)
    _check_size(directory, len(observations), draws, shape, limit_gb)
    files = FeatureFiles(directory, total, batch_size)
    if primary:
        _discard_others(directory, {"identity": identity, "rows": total, "rows_per_file": batch_size})
    found = all_gather_string(f"{directory} begins", json.dumps(files.missing()) if primary else "", OTHERS_TIMEOUT_S)
    missing: list[int] = json.loads(found[0])
    index, parts = part
    owners = all_gather_string(f"{directory} parts", str(index), OTHERS_TIMEOUT_S)
    writes = owners.index(str(index)) == jax.process_index()
    root = jax.random.key(seed)
    noise_keys = jax.jit(jax.vmap(lambda row: jax.random.fold_in(root, row)))
    for first in track(range(0, len(missing), parts), "batches of predictive features", visible=primary):
        number = missing[min(first + index, len(missing) - 1)]  # in the last turn some compute a file that another one writes
        start = number * batch_size
        rows = np.minimum(np.arange(start, start + batch_size), total - 1)  # the last file is padded: one shape, one compilation
        examples = [observations[int(row) % len(observations)] for row in rows]
        batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
        features = compute(batch, noise_keys(rows))[: len(files.rows_of(number))]
        if writes and first + index < len(missing):
            with atomic_path(files.path(number)) as temporary, temporary.open("wb") as file:
                np.save(file, np.asarray(features, np.float16))
    all_gather_string(f"{directory} is complete", "", OTHERS_TIMEOUT_S)
    return files


def _check_size(directory: Path, observations: int, draws: int, shape: tuple[int, int, int], limit_gb: float) -> None:
    """Prints the size of the cache; FeatureCacheError where it is above the limit."""
    each = 2 * math.prod(shape)
    size_gb = 1e-9 * each * draws * observations
    size = f"{observations:,} observations x {draws} draw(s) x {1e-6 * each:,.3g} MB = {size_gb:,.4g} GB"
    if size_gb > limit_gb:
        raise FeatureCacheError(
            f"{directory}: cached features would take {size}, more than policy_diffusion.feature_cache_gb = {limit_gb:g}. Set "
            "policy_diffusion.feature_draws=0 to compute features in the training step, as published; raise data.observation_stride "
            "for fewer observations; or raise the limit if there is room"
        )
    if jax.process_index() == 0:
        print(f"cached features: {size} in {directory}", flush=True)


def _discard_others(directory: Path, expected: dict[str, str | int]) -> None:
    """Removes a cache of other features."""
    index = directory / INDEX
    if not index.exists() or json.loads(index.read_text()) != expected:
        for path in directory.glob("*.npy"):
            path.unlink()
        write_atomically(index, json.dumps(expected))
    _opened.cache_clear()
