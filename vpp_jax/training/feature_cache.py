"""Predictive features of a whole dataset, computed once: stage `policy` then trains without the U-Net in its loop.

The published code draws fresh noise for every training step; here every observation gets a fixed number of draws (docs/differences.md).
The cache is one memory-mapped float16 file, filled in blocks; a journal records how many examples are complete, so that a killed run
resumes there. Keys depend only on (seed, observation, draw): a resumed file equals one written in a single run. With several processes
all compute and process 0 writes.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from data_pipelines.sources import Source
from vpp_jax.common.files import write_atomically
from vpp_jax.common.progress import track
from vpp_jax.training.distributed import all_gather_string

FILE_NAME = "features.npy"
FLUSH_EVERY = 16  # blocks
OTHERS_TIMEOUT_S = 600.0  # at the start and at the end; in between the processes run in lockstep


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
    features: np.ndarray

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        observation = index % len(self.observations)
        return self.observations[observation] | {"features": self.features[index], "observation": np.array(observation, np.int32)}

    @property
    def skipped(self) -> dict[str, str]:
        return self.observations.skipped

    def metadata(self) -> dict:
        return self.observations.metadata()


def build_feature_cache(
    observations: Source,
    compute: Callable[[dict[str, np.ndarray], jax.Array], jax.Array],
    directory: Path,
    *,
    draws: int,
    batch_size: int,
    seed: int,
    identity: str,
) -> np.ndarray:
    """Fills or completes `directory/features.npy`, float16 [draws * len(observations), t n d], and opens it read-only.

    `compute(batch, keys [b])` returns features [b t n d], unsharded on every process; `identity` names what they depend on (checkpoint,
    data, model): a cache of another identity is recomputed. Blocks are flushed before the journal counts them.
    """
    primary = jax.process_index() == 0
    directory.mkdir(parents=True, exist_ok=True)
    journal, total = directory / "journal.json", draws * len(observations)
    state = json.loads(journal.read_text()) if journal.exists() else {}
    done = state.get("done", 0) if state.get("identity") == identity and state.get("total") == total else 0
    done = int(all_gather_string(f"{directory} begins", str(done), OTHERS_TIMEOUT_S)[0])
    features = np.lib.format.open_memmap(directory / FILE_NAME, mode="r+") if done and primary else None
    root = jax.random.key(seed)
    observation_keys = jax.jit(jax.vmap(lambda index: jax.random.fold_in(root, index)))
    for start in track(range(done, total, batch_size), "batches of predictive features", visible=primary):
        rows = np.minimum(np.arange(start, start + batch_size), total - 1)  # the last block is padded: one shape, one compilation
        examples = [observations[int(row) % len(observations)] for row in rows]
        batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
        block = np.asarray(compute(batch, observation_keys(rows))).astype(np.float16)[: total - start]
        if not primary:
            continue
        if features is None:
            features = np.lib.format.open_memmap(directory / FILE_NAME, "w+", np.float16, (total, *block.shape[1:]))
        features[start : start + len(block)] = block
        if (start // batch_size + 1) % FLUSH_EVERY == 0 or start + batch_size >= total:
            features.flush()
            write_atomically(journal, json.dumps({"identity": identity, "total": total, "done": start + len(block)}))
    all_gather_string(f"{directory} is complete", "", OTHERS_TIMEOUT_S)
    return np.load(directory / FILE_NAME, mmap_mode="r")
