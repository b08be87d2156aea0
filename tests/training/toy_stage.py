"""A stage small enough to train in a second, driven by the real loop; also a command, so that tests can kill it.

python toy_stage.py WORKDIR [--name=value ...]
"""

import json
import sys
import time
from contextlib import closing
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import storage
from vpp_jax.config import ExperimentConfig, MeshConfig, OptimizerConfig, TrainConfig
from vpp_jax.diffusion.per_example import example_keys, normal_per_example
from vpp_jax.training.loop import train
from vpp_jax.training.workdir import Workdir

# 520 x 520 is more than what checkpoints pack, so both ways of saving are exercised.
SHAPES = {
    "net/first.kernel": (16, 520),
    "net/first.bias": (520,),
    "net/hidden.kernel": (520, 520),
    "net/hidden.bias": (520,),
    "head/last.kernel": (520, 4),
    "head/last.bias": (4,),
}
FROZEN = {"vae/lift.kernel": (16, 16), "latents/scaling_factor": ()}


class ToySource:
    """Example i is a function of i: x [16] and a nonlinear function y [4] of it."""

    def __init__(self, size: int = 64, delay: float = 0.0, statistics: str = "abc", poison: int = -1):
        self.size, self.delay, self.statistics, self.poison = size, delay, statistics, poison
        self.mixing = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        time.sleep(self.delay)
        x = np.random.default_rng(index).normal(size=16).astype(np.float32)
        y = np.tanh(x @ self.mixing)
        return {"x": x, "y": np.full_like(y, np.nan) if index == self.poison else y, "number": np.int32(index)}

    def metadata(self) -> dict:
        return {"datasets": [{"name": "toy", "statistics_hash": self.statistics}]}


class ToyStage:
    def __init__(self, config: ExperimentConfig, **source):
        self.config, self.source_options = config, source
        self.drawn: list[str] = []

    def abstract_trainable(self):
        return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}

    def abstract_frozen(self):
        return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in FROZEN.items()}

    def init_trainable(self, key):
        keys = jax.random.split(key, len(SHAPES))
        return {name: 0.1 * jax.random.normal(k, shape) for k, (name, shape) in zip(keys, SHAPES.items(), strict=True)}

    def load_trainable(self, shardings):
        return None

    def load_frozen(self, shardings):
        return {"vae/lift.kernel": jax.device_put(jnp.eye(16), shardings["vae/lift.kernel"]), "latents/scaling_factor": jnp.float32(2.0)}

    def source(self, split, frozen, workdir, dataset=""):
        return ToySource(**self.source_options)

    def loss(self, trainable, frozen, batch, key, training=True):
        x = batch["x"] @ frozen["vae/lift.kernel"] + 0.1 * normal_per_example(example_keys(key, len(batch["x"])), (16,))
        hidden = jax.nn.tanh(x @ trainable["net/first.kernel"] + trainable["net/first.bias"])
        hidden = jax.nn.tanh(hidden @ trainable["net/hidden.kernel"] + trainable["net/hidden.bias"])
        error = hidden @ trainable["head/last.kernel"] + trainable["head/last.bias"] - batch["y"]
        return jnp.mean(error**2), {"mean_number": jnp.mean(batch["number"].astype(jnp.float32))}

    def loss_weight(self, batch):
        return jnp.float32(len(batch["x"]))

    def plot_batch(self, batch, path):
        path.write_bytes(json.dumps(batch["number"].tolist()).encode())

    def preview(self, trainable, frozen, batch, key):
        return {"rows": batch["x"]}

    def plot_predictions(self, trainable, frozen, batch, key, path):
        self.drawn.append(path.name)
        return {"rows_shown": float(len(batch["x"]))}

    def final_metadata(self, trainable, frozen, batches):
        return {"latent_scaling_factor": float(frozen["latents/scaling_factor"]), "seen": [int(b["number"].sum()) for b in batches]}


def toy_config(**train) -> ExperimentConfig:
    settings = {
        "steps": 12,
        "log_every": 3,
        "eval_every": 5,
        "eval_batches": 2,
        "save_every": 4,
        "max_to_keep": 2,
        "ema_decay": 0.9,
    } | train
    config = ExperimentConfig(stage="vae", seed=3, train=TrainConfig(**settings), mesh=MeshConfig(min_size_to_shard=1000))
    optimizer = OptimizerConfig(learning_rate=3e-4, schedule="cosine", warmup_ratio=0.25, weight_decay=0.01)
    return replace(config, optimizer=optimizer, data=replace(config.data, batch_size=8, threads=1))


def main(arguments: list[str]) -> int:
    options = dict(argument.removeprefix("--").split("=") for argument in arguments[1:])
    delay = float(options.pop("delay", 0.0))
    stage = ToyStage(toy_config(**{name: int(value) for name, value in options.items()}), delay=delay)
    with closing(Workdir(storage.location(arguments[0]))) as workdir:
        return train(stage, workdir).exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
