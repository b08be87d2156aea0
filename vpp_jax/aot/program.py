"""The programs of an experiment compiled for a TPU topology without the hardware: all that a run puts on its chips, and the policy's
inference.

The caller must set the variables of `environment.py` before JAX is imported.
"""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
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
from vpp_jax.parallel.mesh import batch_sharding, compiler_options, make_mesh, replicated
from vpp_jax.parallel.partition import partition
from vpp_jax.policy import InstructionEmbedding
from vpp_jax.training.accumulation import check_micro_batches
from vpp_jax.training.loop import compile_step
from vpp_jax.training.optimizers import trained_names
from vpp_jax.training.previews import PREVIEW_EXAMPLES
from vpp_jax.training.stage import ActionStage, Stage
from vpp_jax.training.stages.policy import PolicyStage
from vpp_jax.training.stages.registry import make_stage
from vpp_jax.training.stages.specs import example_spec
from vpp_jax.training.state import Trainer

# name -> what it is. `restore` is no program: arrays are read onto their places.
STEPS = {
    "train": "the training step",
    "evaluation": "the loss of a held-out batch",
    "action_mse": "errors of actions sampled for a held-out batch",
    "preview": "the predictions that an evaluation shows",
    "features": "the video model alone, as the feature cache runs it",
    "act": "images to actions",
    "init": "random initialisation",
    "restore": "the state of a checkpoint",
}
OF_POLICY = ("action_mse", "features", "act")


def steps_of(stage: str) -> list[str]:
    """The steps of a stage's runs, and of serving it."""
    return [step for step in STEPS if stage == "policy" or step not in OF_POLICY]


# The compiler's messages for too many temporaries, and for too large a total.
OUT_OF_MEMORY = re.compile(r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)|Used ([\d.]+)G of ([\d.]+)G hbm")
# Its message for a memory inside the chip; and what to try, by the memory.
OUT_OF_CHIP_MEMORY = re.compile(r"Ran out of memory in memory space (sflag|smem|vmem)\. Used ([\d.]+[KM]?) of ([\d.]+[KM]?) \1")
TO_TRY = {
    "sflag": "it holds a semaphore for each transfer under way, and every sum of a gradient over slices is one: use one slice",
    "smem": "it holds the scalars of the program's kernels: try another --per_chip",
    "vmem": "it holds the operands of what the chip computes: try another --per_chip",
}


class DoesNotFitError(VppError):
    """The program does not fit: it allocates at least `needed` GiB, the chip has `available`."""

    def __init__(self, needed: float, available: float):
        super().__init__(f"at least {needed:.2f} GiB per chip are needed, {available:.2f} are available")
        self.needed, self.available = needed, available


class ChipMemoryError(VppError):
    """A memory inside the chip, not its HBM, is too small for the program."""


@dataclass(frozen=True)
class Compiled:
    """executable: from `jax.stages.Lowered.compile`. model_flops, flops: per step of all chips, see `flops.py`, without and with
    recomputation; padded_flops: what the chip's matrix units are busy for. parameters: shapes of all parameters, which may be gathered."""

    executable: jax.stages.Compiled
    examples: int
    model_flops: float
    flops: float
    padded_flops: float
    parameters: frozenset[tuple[int, ...]]
    seconds: float


@dataclass(frozen=True)
class Program:
    """One step of an experiment on a slice.

    step: one of `STEPS`. per_chip: examples per chip and step; None uses the configuration's global batch size, or for `act` and `features`
    one per chip. mesh_sizes: None uses the configuration's.
    """

    config: ExperimentConfig
    topology: Topology
    step: str = "train"
    per_chip: float | None = None
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
        if self.per_chip is None and self.step not in ("act", "features"):
            check_micro_batches(self.config.data.batch_size, self.config.train.grad_accum_steps, self.mesh)
            return self.config.data.batch_size
        per_chip = self.per_chip or 1.0
        rows = per_chip * self.topology.chips
        ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        if rows != int(rows) or int(rows) % ways:
            raise ConfigError(
                f"{per_chip:g} examples per chip on {self.topology.chips} chips are {rows:g} per step; expected a multiple of {ways} "
                "(mesh data x fsdp)"
            )
        return int(rows)

    @property
    def examples(self) -> int:
        """Of the global batch, those that the step computes."""
        match self.step:
            case "init" | "restore":
                return 0
            case "preview":
                return min(PREVIEW_EXAMPLES, self.rows)
        return self.rows

    @cached_property
    def resident(self) -> float:
        """Bytes per chip that the run holds while this step runs, and that are not among its arguments: of the training state, or of the
        frozen parameters. What `restore` reads is all of that."""
        trainer = self._trainer
        state, shardings, frozen = trainer.abstract, trainer.shardings(self.mesh), self._placed(trainer.stage.abstract_frozen())
        match self.step:
            case "evaluation" | "action_mse" | "preview" | "features":
                return _bytes(state, shardings) - _bytes(state.eval_params, shardings.eval_params)
            case "init":
                return _bytes(frozen, {name: value.sharding for name, value in frozen.items()})
            case "restore":
                return _bytes(state, shardings) + _bytes(frozen, {name: value.sharding for name, value in frozen.items()})
        return 0.0

    def compile(self) -> Compiled:
        begin = time.perf_counter()
        try:
            executable = self._executable()
        except jax.errors.JaxRuntimeError as error:
            if inside := OUT_OF_CHIP_MEMORY.search(str(error)):
                space, needed, available = inside.groups()
                raise ChipMemoryError(
                    f"step {self.step} for {self.topology.name} does not compile: it needs {needed}iB of the chip's memory {space}, "
                    f"{available}iB are there; {TO_TRY[space]}"
                ) from None
            found = OUT_OF_MEMORY.search(str(error))
            if not found:
                raise
            raise DoesNotFitError(*(float(size) for size in found.groups() if size)) from None
        seconds = time.perf_counter() - begin
        needed = model_flops(self.config, self.step)
        flops, padded = (_flops(self.config, self.step, tile) for tile in (1, self.topology.chip.matrix))
        shapes = frozenset(value.shape for value in _all_parameters(self.config).values())
        ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        computed = ways * -(-self.examples // ways)  # a preview computes some examples several times
        return Compiled(executable, self.examples, self.examples * needed, computed * flops, computed * padded, shapes, seconds)

    def _executable(self) -> jax.stages.Compiled:
        _ = self._trainer.abstract  # creates a PRNG key, which needs real devices
        with on_mesh(self.mesh, self.config.mesh.min_size_to_shard):
            match self.step:
                case "train":
                    example = {name: np.zeros(spec.shape, spec.dtype) for name, spec in example_spec(self.config).items()}
                    return compile_step(self._trainer, self.mesh, self._placed(self._trainer.stage.abstract_frozen()), example)
                case "init":
                    key = jax.eval_shape(lambda: jax.random.key(0))
                    return jax.jit(self._trainer.init, out_shardings=self._trainer.shardings(self.mesh)).lower(key).compile()
                case "evaluation" | "action_mse" | "preview":
                    return self._evaluation()
            return self._pass()

    @cached_property
    def _trainer(self) -> Trainer:
        rows = self.config.data.batch_size if self.step in ("init", "restore") else self.rows
        return Trainer(make_stage(_with_batch(self.config, rows)))

    def _evaluation(self) -> jax.stages.Compiled:
        stage, rows = self._trainer.stage, batch_sharding(self.mesh)
        function = _evaluator(stage, self.step)
        batch = {
            name: jax.ShapeDtypeStruct((self.rows, *spec.shape), spec.dtype, sharding=rows)
            for name, spec in example_spec(self.config).items()
        }
        params = self._placed(stage.abstract_trainable()), self._placed(stage.abstract_frozen())
        lowered = jax.jit(function, out_shardings=replicated(self.mesh)).lower(*params, batch, jax.eval_shape(lambda: jax.random.key(0)))
        return lowered.compile(compiler_options(list(self.mesh.devices.flat)))

    def _pass(self) -> jax.stages.Compiled:
        function, batch = _inference(self.config, self.step, self.rows)
        rows = batch_sharding(self.mesh)
        batch = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=rows), batch)
        params = self._placed(_all_parameters(self.config))
        return jax.jit(function, out_shardings=rows).lower(params, *batch).compile(compiler_options(list(self.mesh.devices.flat)))

    def _placed(self, params: AbstractParams) -> AbstractParams:
        shardings = partition(params, self.mesh, self.config.mesh.min_size_to_shard)
        return {name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=shardings[name]) for name, value in params.items()}


def _bytes(abstract: Any, shardings: Any) -> float:
    """Of one chip's shards of all arrays."""
    sizes = jax.tree.map(
        lambda value, sharding: math.prod(sharding.shard_shape(value.shape)) * np.dtype(value.dtype).itemsize, abstract, shardings
    )
    return float(sum(jax.tree.leaves(sizes)))


def _with_batch(config: ExperimentConfig, rows: int) -> ExperimentConfig:
    return replace(config, data=replace(config.data, batch_size=rows))


def _evaluator(stage: Stage, step: str) -> Callable:
    """The function of (trainable, frozen, batch, key) that an evaluator of the training loop runs (`vpp_jax/training/evaluation.py`)."""
    if step == "action_mse":
        assert isinstance(stage, ActionStage)  # `steps_of`
        return stage.sampling_errors
    return stage.preview if step == "preview" else partial(stage.loss, training=False)


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


def _flops(config: ExperimentConfig, step: str, tile: int = 1) -> float:
    """FLOPs of a step per example, counted on its jaxpr for one device with matrix units of side `tile`."""
    if step in ("act", "features"):
        function, batch = _inference(config, step, 1)
        return count_flops(function, _all_parameters(config), *batch, tile=tile)
    if step == "init":
        return 0.0
    stage = make_stage(_with_batch(replace(config, train=replace(config.train, grad_accum_steps=1)), 1))
    batch = {name: jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype) for name, spec in example_spec(config).items()}
    if step != "train":
        function = _evaluator(stage, step)
        arguments = stage.abstract_trainable(), stage.abstract_frozen(), batch
        return count_flops(lambda *arguments: function(*arguments, jax.random.key(0)), *arguments, tile=tile)

    def loss(trained: Params, fixed: Params, batch: dict[str, jax.Array]):
        params = trained | fixed
        trainable = {name: params.pop(name) for name in abstract}
        return stage.loss(trainable, params, batch, jax.random.key(0))[0]

    abstract = stage.abstract_trainable()
    trained = {name: abstract[name] for name in sorted(trained_names(config.optimizer, abstract))}
    fixed = {name: value for name, value in abstract.items() if name not in trained} | stage.abstract_frozen()
    return count_flops(jax.grad(loss), trained, fixed, batch, tile=tile)
