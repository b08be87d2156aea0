"""Low-rank adapters (Hu et al. 2021): W + (alpha / rank) A B, with W frozen and A, B trained.

The adapters of `unet/NAME.kernel` [i o] are `lora/unet/NAME.down.kernel` A [i r] and `lora/unet/NAME.up.kernel` B [r o], entries of the
flat parameter dict like any other. The forward pass uses merged kernels, and `load_params` returns merged ones.
"""

import re
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from vpp_jax.config import ConfigError, LoRAConfig
from vpp_jax.functional import AbstractParams, Params

GROUP = "lora"
_DOWN, _UP = ".down.kernel", ".up.kernel"


def abstract_adapters(config: LoRAConfig, params: Params | AbstractParams) -> AbstractParams:
    """The adapters of every kernel that a `target` pattern matches, float32. ConfigError if a pattern matches none."""
    found: AbstractParams = {}
    for pattern in config.target:
        matched = [name for name in params if re.fullmatch(pattern, name)]
        unfit = [name for name in matched if not name.endswith(".kernel") or len(params[name].shape) != 2]
        if not matched:
            raise ConfigError(f"lora.target: '{pattern}' matches no parameter, e.g. {next(iter(params))}")
        if unfit:
            raise ConfigError(f"lora.target: '{pattern}' matches {unfit[0]} {params[unfit[0]].shape}, expected linear layers' kernels only")
        for name in matched:
            inputs, outputs = params[name].shape
            down, up = _names(name)
            found[down] = jax.ShapeDtypeStruct((inputs, config.rank), jnp.float32)
            found[up] = jax.ShapeDtypeStruct((config.rank, outputs), jnp.float32)
    return dict(sorted(found.items()))


def init_adapters(abstract: AbstractParams, key: jax.Array) -> Params:
    """A ~ N(0, 1 / inputs), B = 0: the first forward pass is that of W."""
    keys = jax.random.split(key, len(abstract))
    return {
        name: jnp.zeros(spec.shape) if name.endswith(_UP) else jax.random.normal(one, spec.shape) * spec.shape[0] ** -0.5
        for one, (name, spec) in zip(keys, abstract.items(), strict=True)
    }


def merge(params: Params, scale: float) -> Params:
    """`params` without its adapters, their products added to the kernels they belong to; sums in float32, types as they were."""
    merged = {name: value for name, value in params.items() if not name.startswith(f"{GROUP}/")}
    for name, (down, up) in adapters_of(params).items():
        delta = scale * params[down].astype(jnp.float32) @ params[up].astype(jnp.float32)
        merged[name] = (merged[name].astype(jnp.float32) + delta).astype(merged[name].dtype)
    return merged


def adapters_of(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Kernel -> names of its adapters, for every pair among `names`."""
    kernels = [name[len(GROUP) + 1 : -len(_DOWN)] + ".kernel" for name in names if name.startswith(f"{GROUP}/") and name.endswith(_DOWN)]
    return {name: _names(name) for name in kernels}


def _names(kernel: str) -> tuple[str, str]:
    stem = f"{GROUP}/{kernel.removesuffix('.kernel')}"
    return stem + _DOWN, stem + _UP
