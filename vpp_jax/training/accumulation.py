"""Gradient accumulation: the gradients of a large batch from several micro-batches.

The loss is a mean over what its examples contain, so the gradient of a batch is the mean of the gradients of its parts, weighted by how
much each contains. Random numbers are drawn per example (`example_keys`), not per micro-batch: up to rounding, the result does not depend
on the number of micro-batches. Only dropout masks are drawn per micro-batch.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float

from vpp_jax.config import ConfigError
from vpp_jax.functional import Params

# (parameters, rows) -> (loss, (metrics, weight of these rows in the mean))
Objective = Callable[[Params, Any], tuple[Float[Array, ""], tuple[Params, Float[Array, ""]]]]


def check_micro_batches(batch_size: int, grad_accum_steps: int, mesh: Mesh | AbstractMesh) -> None:
    """ConfigError, with what to do, where the rows of a micro-batch do not divide over the devices that split it."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    multiple = ways * grad_accum_steps
    if batch_size % multiple:
        fewer = math.gcd(ways, batch_size // grad_accum_steps)
        smaller = f"take a slice of {fewer * mesh.shape['tensor']} chips, or " if fewer < ways else ""
        raise ConfigError(
            f"data.batch_size is {batch_size}, expected a multiple of {ways} (mesh data x fsdp)"
            + (f" times {grad_accum_steps} (train.grad_accum_steps)" if grad_accum_steps > 1 else "")
            + f": {smaller}data.batch_size={-(-batch_size // multiple) * multiple}"
        )


def loss_and_gradients(objective: Objective, params: Params, rows: Any, grad_accum_steps: int) -> tuple[Float[Array, ""], Params, Params]:
    """(loss, metrics, gradients) over all `rows`, a tree of arrays with one leading dimension. Metrics are means over micro-batches.

    Micro-batch i takes rows i, i + grad_accum_steps, ...: on a mesh that splits the rows into blocks, every device keeps its rows.
    """
    differentiate = jax.value_and_grad(objective, has_aux=True)
    if grad_accum_steps == 1:
        (loss, (metrics, _)), gradients = differentiate(params, rows)
        return loss, metrics, gradients
    parts = jax.tree.map(lambda value: jnp.swapaxes(value.reshape(-1, grad_accum_steps, *value.shape[1:]), 0, 1), rows)

    def contribution(part: Any):
        (loss, (metrics, weight)), gradients = differentiate(params, part)
        return weight, metrics, {"loss": weight * loss, "gradients": jax.tree.map(lambda value: weight * value, gradients)}

    def add(total: Any, part: Any):
        return jax.tree.map(jnp.add, total, contribution(part)), None

    one = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape[1:], value.dtype), parts)
    nothing = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), jax.eval_shape(contribution, one))
    (weight, metrics, sums), _ = jax.lax.scan(add, nothing, parts)
    means = jax.tree.map(lambda value: value / jnp.maximum(weight, 1e-30), sums)
    return means["loss"], {name: value / grad_accum_steps for name, value in metrics.items()}, means["gradients"]
