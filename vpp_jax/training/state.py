"""The training state, and the pure function that updates it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from vpp_jax.config import TrainConfig
from vpp_jax.diffusion.per_example import example_keys
from vpp_jax.functional import Leaf, Params
from vpp_jax.parallel.mesh import replicated
from vpp_jax.parallel.partition import like_params, partition
from vpp_jax.training.accumulation import loss_and_gradients
from vpp_jax.training.optimizers import clip_by_norm, group_norms, make_optimizer, squared_norms, trained_names, used_learning_rate
from vpp_jax.training.random_streams import random_streams
from vpp_jax.training.stage import Stage


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState(Generic[Leaf]):
    """Arrays, their ShapeDtypeStructs (`Trainer.abstract`) or their shardings (`Trainer.shardings`).

    step: number of updates, skipped ones included (train.max_skipped_updates). ema: exponential moving average of params, {} if disabled.
    opt_state: of the trainable names only.
    """

    step: Leaf
    params: dict[str, Leaf]
    ema: dict[str, Leaf]
    opt_state: Any

    @property
    def eval_params(self) -> dict[str, Leaf]:
        """The parameters that evaluation uses: the EMA if there is one."""
        return self.ema or self.params


# (state, frozen, batch) -> (next state, metrics, sums of squared gradients per tensor)
StepFunction = Callable[[TrainState[jax.Array], Params, dict[str, jax.Array]], tuple[TrainState[jax.Array], Params, Params]]


@dataclass(frozen=True)
class Trainer:
    """Initial state and training step of a stage: both pure, neither jitted."""

    stage: Stage

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        return make_optimizer(self.stage.config.optimizer, self.stage.config.train.steps)

    def init(self, key: jax.Array) -> TrainState[jax.Array]:
        return self.init_from_params(self.stage.init_trainable(key))

    def init_from_params(self, params: Params) -> TrainState[jax.Array]:
        """The state before the first update of `params`."""
        trained = trained_names(self.stage.config.optimizer, params)
        ema = dict(params) if self.stage.config.train.ema_decay else {}
        return TrainState(jnp.zeros((), jnp.int32), params, ema, self.optimizer.init({name: params[name] for name in sorted(trained)}))

    @cached_property
    def abstract(self) -> TrainState[jax.ShapeDtypeStruct]:
        """Shapes and types of the state. Cached: building a U-Net abstractly takes seconds."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def shardings(self, mesh: Mesh) -> TrainState[NamedSharding]:
        """Parameters by the partition rules, EMA and optimizer state like their parameters."""
        state = self.abstract
        params = partition(state.params, mesh, self.stage.config.mesh.min_size_to_shard)
        ema = {name: params[name] for name in state.ema}
        return TrainState(replicated(mesh), params, ema, like_params(state.opt_state, params, mesh))

    def step(
        self, state: TrainState[jax.Array], frozen: Params, batch: dict[str, jax.Array]
    ) -> tuple[TrainState[jax.Array], Params, Params]:
        """One update. Randomness depends only on (seed, step), never on history."""
        config = self.stage.config
        keys = example_keys(jax.random.fold_in(random_streams(config.seed).steps, state.step), len(next(iter(batch.values()))))
        trained = trained_names(config.optimizer, state.params)
        fixed = {name: value for name, value in state.params.items() if name not in trained}
        trainable = {name: value for name, value in state.params.items() if name in trained}

        def objective(trainable: Params, rows: tuple[dict[str, jax.Array], jax.Array]):
            loss, metrics = self.stage.loss(trainable | fixed, frozen, *rows)
            return loss, (metrics, self.stage.loss_weight(rows[0]))

        loss, metrics, grads = loss_and_gradients(objective, trainable, (batch, keys), config.train.grad_accum_steps)
        with jax.named_scope("optimizer"):
            squares = squared_norms(grads)
            norms = group_norms(squares)
            grads = clip_by_norm(grads, norms["grad_norm"], config.optimizer.grad_clip)
            updates, opt_state = self.optimizer.update(grads, state.opt_state, trainable)
            params = dict(sorted((cast("Params", optax.apply_updates(trainable, updates)) | fixed).items()))
        with jax.named_scope("ema"):
            ema = _update_ema(state.ema, params, state.step, config.train)
        if config.train.max_skipped_updates:
            finite = jnp.isfinite(loss) & jnp.isfinite(norms["grad_norm"])
            updated, before = (params, ema, opt_state), (state.params, state.ema, state.opt_state)
            params, ema, opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, before)
        metrics = {"loss": loss, **metrics, "learning_rate": used_learning_rate(opt_state), **norms}
        metrics = {name: value.astype(jnp.float32) for name, value in metrics.items()}
        return TrainState(state.step + 1, params, ema, opt_state), metrics, squares


def ema_decay(updates: Int[Array, ""], config: TrainConfig) -> Float[Array, ""]:
    """Decay of update number `updates`: with warm-up (1 + n) / (10 + n) until that exceeds the configured value."""
    if not config.ema_warmup:
        return jnp.float32(config.ema_decay)
    count = updates.astype(jnp.float32)
    return jnp.minimum(config.ema_decay, (1.0 + count) / (10.0 + count))


def _update_ema(ema: Params, params: Params, updates: jax.Array, config: TrainConfig) -> Params:
    decay = ema_decay(updates, config)
    return {name: value + (1.0 - decay) * (params[name] - value) for name, value in ema.items()}
