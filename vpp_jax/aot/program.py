"""The programs of an experiment compiled for a TPU topology without the hardware: a stage's training step, or the policy's inference.

The caller must set the variables of `environment.py` before JAX is imported.
"""

import re
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from vpp_jax.aot.chips import Topology, TopologyError
from vpp_jax.aot.flops import count_flops
from vpp_jax.common.errors import VppError
from vpp_jax.config import ConfigError, ExperimentConfig, MeshConfig
from vpp_jax.functional import AbstractParams, Params
from vpp_jax.parallel.gather import on_mesh
from vpp_jax.parallel.mesh import batch_sharding, compiler_options, make_mesh
from vpp_jax.parallel.partition import partition
from vpp_jax.policy import InstructionEmbedding
from vpp_jax.training.loop import compile_step
from vpp_jax.training.optimizers import trained_names
from vpp_jax.training.stages.policy import PolicyStage
from vpp_jax.training.stages.registry import make_stage
from vpp_jax.training.stages.specs import example_spec
from vpp_jax.training.state import Trainer

STEPS = ("train", "act", "features")


# The compiler's messages for too many temporaries, and for too large a total.
OUT_OF_MEMORY = re.compile(r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)|Used ([\d.]+)G of ([\d.]+)G hbm")


class DoesNotFitError(VppError):
    """The program does not fit: it allocates at least `needed` GiB, the chip has `available`."""

    def __init__(self, needed: float, available: float):
        super().__init__(f"at least {needed:.2f} GiB per chip are needed, {available:.2f} are available")
        self.needed, self.available = needed, available


@dataclass(frozen=True)
class Compiled:
    """executable: from `jax.stages.Lowered.compile`. model_flops, flops: per step of all chips, see `flops.py`, without and with
    recomputation. parameters: shapes of all parameters, which may be gathered."""

    executable: jax.stages.Compiled
    examples: int
    model_flops: float
    flops: float
    parameters: frozenset[tuple[int, ...]]
    seconds: float


@dataclass(frozen=True)
class Program:
    """One step of an experiment on a slice. per_chip: examples per chip and step; mesh_sizes: None uses the configuration's."""

    config: ExperimentConfig
    topology: Topology
    step: str = "train"
    per_chip: float = 1
    mesh_sizes: MeshConfig | None = None

    @cached_property
    def mesh(self) -> Mesh:
        try:
            name, arguments = self.topology.compiler_name, self.topology.compiler_arguments
            devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **arguments).devices
        except Exception as error:  # the plugin raises its own exception types
            raise TopologyError(f"the compiler does not take topology {self.topology.name}: {error}") from None
        return make_mesh(self.mesh_sizes or self.config.mesh, devices)

    @cached_property
    def rows(self) -> int:
        """Global batch size."""
        rows = self.per_chip * self.topology.chips
        ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        if rows != int(rows) or int(rows) % ways:
            raise ConfigError(
                f"{self.per_chip:g} examples per chip on {self.topology.chips} chips are {rows:g} per step; expected a multiple of {ways} "
                "(mesh data x fsdp)"
            )
        return int(rows)

    def compile(self) -> Compiled:
        begin = time.perf_counter()
        try:
            executable = self._train_step() if self.step == "train" else self._pass()
        except jax.errors.JaxRuntimeError as error:
            found = OUT_OF_MEMORY.search(str(error))
            if not found:
                raise
            raise DoesNotFitError(*(float(size) for size in found.groups() if size)) from None
        seconds = time.perf_counter() - begin
        needed = model_flops(self.config, self.step)
        flops = _flops(self.config, self.step) if self.step == "train" and self.config.model.unet.remat != "none" else needed
        shapes = frozenset(value.shape for value in _all_parameters(self.config).values())
        return Compiled(executable, self.rows, self.rows * needed, self.rows * flops, shapes, seconds)

    def _train_step(self) -> jax.stages.Compiled:
        stage = make_stage(_with_batch(self.config, self.rows))
        example = {name: np.zeros(spec.shape, spec.dtype) for name, spec in example_spec(self.config).items()}
        trainer, frozen = Trainer(stage), self._placed(stage.abstract_frozen())
        _ = trainer.abstract  # creates a PRNG key, which needs real devices
        with on_mesh(self.mesh, self.config.mesh.min_size_to_shard):
            return compile_step(trainer, self.mesh, frozen, example)

    def _pass(self) -> jax.stages.Compiled:
        function, batch = _inference(self.config, self.step, self.rows)
        rows = batch_sharding(self.mesh)
        batch = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=rows), batch)
        params = self._placed(_all_parameters(self.config))
        with on_mesh(self.mesh, self.config.mesh.min_size_to_shard):
            return jax.jit(function, out_shardings=rows).lower(params, *batch).compile(compiler_options(list(self.mesh.devices.flat)))

    def _placed(self, params: AbstractParams) -> AbstractParams:
        shardings = partition(params, self.mesh, self.config.mesh.min_size_to_shard)
        return {name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=shardings[name]) for name, value in params.items()}


def _with_batch(config: ExperimentConfig, rows: int) -> ExperimentConfig:
    return replace(config, data=replace(config.data, batch_size=rows))


def _all_parameters(config: ExperimentConfig) -> AbstractParams:
    stage = make_stage(config)
    return stage.abstract_trainable() | stage.abstract_frozen()


def _inference(config: ExperimentConfig, step: str, rows: int):
    """A function of (parameters, *batch) and the batch's ShapeDtypeStructs: `act` computes actions from images, `features` the features."""
    if config.stage != "policy":
        raise ConfigError(f"step {step} belongs to stage policy, the configuration is of stage {config.stage}")
    model, policy = config.model, PolicyStage(config).policy
    shape: Any = jax.ShapeDtypeStruct  # in place of arrays
    images = {view: shape((rows, model.image_size, model.image_size, 3), jnp.uint8) for view in model.views}
    states = shape((rows, model.text_length, model.unet.cross_attention_dim), jnp.float32)
    keys = shape((rows, 2), jnp.uint32)
    if step == "features":
        return lambda params, images, states, keys: policy.features(params, images, states, jax.random.wrap_key_data(keys)), (
            images,
            states,
            keys,
        )
    instruction = InstructionEmbedding(states, shape((rows, model.action.goal_dim), jnp.float32))
    proprio = shape((rows, model.action.proprio_dim), jnp.float32)
    return lambda params, images, instruction, proprio, keys: policy.act(
        params, images, instruction, proprio, jax.random.wrap_key_data(keys)
    ), (images, instruction, proprio, keys)


def model_flops(config: ExperimentConfig, step: str) -> float:
    """FLOPs of a step per example, without what rematerialised blocks compute again: those that MFU counts."""
    return _flops(replace(config, model=replace(config.model, unet=replace(config.model.unet, remat="none"))), step)


def _flops(config: ExperimentConfig, step: str) -> float:
    """FLOPs of a step per example, counted on its jaxpr for one device."""
    if step != "train":
        function, batch = _inference(config, step, 1)
        return count_flops(function, _all_parameters(config), *batch)
    stage = make_stage(_with_batch(replace(config, train=replace(config.train, grad_accum_steps=1)), 1))
    batch = {name: jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype) for name, spec in example_spec(config).items()}

    def loss(trained: Params, fixed: Params, batch: dict[str, jax.Array]):
        params = trained | fixed
        trainable = {name: params.pop(name) for name in abstract}
        return stage.loss(trainable, params, batch, jax.random.key(0))[0]

    abstract = stage.abstract_trainable()
    trained = {name: abstract[name] for name in sorted(trained_names(config.optimizer, abstract))}
    fixed = {name: value for name, value in abstract.items() if name not in trained} | stage.abstract_frozen()
    return count_flops(jax.grad(loss), trained, fixed, batch)
