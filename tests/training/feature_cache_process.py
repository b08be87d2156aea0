"""Fills a feature cache with the smallest policy: python feature_cache_process.py DIR COORDINATOR PROCESS COUNT."""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from tests.configs.micro import micro
from vpp_jax.config import from_config_dict
from vpp_jax.parallel.gather import on_mesh
from vpp_jax.parallel.mesh import MeshConfig, make_mesh
from vpp_jax.parallel.partition import partition
from vpp_jax.training.distributed import process_shard, start
from vpp_jax.training.feature_cache import build_feature_cache
from vpp_jax.training.stages.policy import PolicyStage
from vpp_jax.training.stages.specs import example_spec, feature_shape


class Observations:
    """Eleven observations of random images."""

    def __init__(self, spec):
        self.spec = spec

    def __len__(self):
        return 11

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        return {name: rng.integers(0, 2 if spec.dtype == bool else 200, spec.shape).astype(spec.dtype) for name, spec in self.spec.items()}


def main(directory: str, coordinator: str, process: str, count: str) -> None:
    if int(count) > 1:
        start(coordinator, int(process), int(count))
    config = from_config_dict(micro("policy"))
    config = replace(config, policy_diffusion=replace(config.policy_diffusion, feature_draws=0))
    stage, mesh = PolicyStage(config), make_mesh(MeshConfig(data=-1, fsdp=int(count)))
    abstract = stage.abstract_frozen()
    shardings = partition(abstract, mesh, 256)
    rng = np.random.default_rng(0)
    values = {name: 0.1 * rng.normal(size=spec.shape).astype(spec.dtype) for name, spec in sorted(abstract.items())}
    with on_mesh(mesh, 256):
        build_feature_cache(
            Observations(example_spec(config)),
            stage.compute_features({name: jax.device_put(value, shardings[name]) for name, value in values.items()}),
            Path(directory),
            shape=feature_shape(config.model),
            draws=1,
            batch_size=4,
            seed=1,
            identity="test",
            limit_gb=1.0,
            part=process_shard(mesh),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
