"""AdamW on the trainable parameters, and gradient norms."""

import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vpp_jax.common.errors import ConfigError
from vpp_jax.config import OptimizerConfig
from vpp_jax.functional import Params
from vpp_jax.training.schedules import make_schedule


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) under the configured schedule. Clipping happens before, in the training step.

    The learning rate is part of the optimizer's state, so that the logged value is the one that was used.
    """
    scale = optax.inject_hyperparams(optax.scale_by_learning_rate)(learning_rate=make_schedule(config, steps))
    decay = (optax.add_decayed_weights(config.weight_decay),) if config.weight_decay else ()
    return optax.chain(optax.scale_by_adam(b1=config.betas[0], b2=config.betas[1], eps=config.eps), *decay, scale)


def used_learning_rate(state: Any) -> Float[Array, ""]:
    """The learning rate of the update that gave this state, one of `make_optimizer`."""
    return state[-1].hyperparams["learning_rate"]


def trained_names(config: OptimizerConfig, names: Iterable[str]) -> frozenset[str]:
    """Names that a `trainable` pattern fully matches and no `frozen` pattern does. ConfigError for a pattern that matches nothing."""
    names = tuple(names)
    found = _matched("optimizer.trainable", config.trainable, names) - _matched("optimizer.frozen", config.frozen, names)
    if not found:
        raise ConfigError(
            f"optimizer.frozen {config.frozen} excludes all of optimizer.trainable {config.trainable}: nothing is left to train"
        )
    return found


def _matched(field: str, patterns: tuple[str, ...], names: tuple[str, ...]) -> frozenset[str]:
    found: set[str] = set()
    for pattern in patterns:
        try:
            matched = [name for name in names if re.fullmatch(pattern, name)]
        except re.error as error:
            raise ConfigError(f"{field}: '{pattern}' is not a regular expression: {error}") from None
        if not matched:
            groups = sorted({name.split("/")[0] for name in names})
            raise ConfigError(f"{field}: '{pattern}' matches none of {', '.join(groups)}/..., e.g. {names[0]}")
        found.update(matched)
    return frozenset(found)


def squared_norms(grads: Params) -> Params:
    """Sum of squares per tensor, float32."""
    return {name: jnp.sum(jnp.square(value.astype(jnp.float32))) for name, value in grads.items()}


def group_norms(squares: Params) -> Params:
    """Norms over all tensors ('grad_norm') and per group, the part of a name before '/' ('grad_norm/GROUP')."""
    groups: dict[str, list[jax.Array]] = {}
    for name, value in squares.items():
        groups.setdefault(name.split("/")[0], []).append(value)
    total = {"grad_norm": jnp.sqrt(sum(squares.values()))}
    return total | {f"grad_norm/{group}": jnp.sqrt(sum(values)) for group, values in groups.items()}


def clip_by_norm(grads: Params, norm: Float[Array, ""], limit: float) -> Params:
    """Gradients scaled down to the global norm `limit`; 0 disables clipping."""
    if not limit:
        return grads
    scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-30))
    return {name: value * scale.astype(value.dtype) for name, value in grads.items()}
