"""Comparing a PyTorch module with one of ours: random weights on both sides, recorded calls, and errors as shares of the largest value.

`check` also remembers every error, and the suite ends with a table of the largest one per file.
"""

import inspect
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from vpp_jax.functional import PureModule
from vpp_jax.interop.tensors import import_tensors, published_name, to_published

FORWARD, GRADIENT, BFLOAT16, FLOAT64 = 2e-5, 1e-4, 3e-2, 1e-9  # of the largest magnitude of the array
torch.set_num_threads(1)  # small arrays: threads that wait for each other cost more than they give, most of all on a busy machine
SEEN: dict[tuple[str, float], list[float]] = {}  # (file, tolerance) -> errors


def check(got: Any, want: torch.Tensor | np.ndarray, tolerance: float = FORWARD, what: str = "") -> None:
    """Fails unless `got` is `want` up to `tolerance` times the largest magnitude of `want`."""
    got, want = (np.asarray(to_numpy(value), np.float64) for value in (got, want))
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    assert np.abs(want).max() > 0, f"{what}: the reference is zero everywhere"
    error = float(np.abs(got - want).max() / np.abs(want).max())
    SEEN.setdefault((os.environ["PYTEST_CURRENT_TEST"].split("::")[0].rpartition("/")[2], tolerance), []).append(error)
    assert error <= tolerance, f"{what}: off by {error:.2e} of the largest magnitude, tolerance {tolerance:g}"


def to_numpy(value: torch.Tensor | np.ndarray) -> np.ndarray:
    """float32 where `value` is a tensor; float64 if that is."""
    return value.detach().to(torch.promote_types(value.dtype, torch.float32)).numpy() if isinstance(value, torch.Tensor) else value


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` in evaluation mode with every parameter random, so that no zero or one it starts from hides a path.

    Matrices and kernels ~ N(0, 1/fan-in), scales ~ 1 + 0.1 N, everything else ~ 0.1 N; mixing factors ~ N.
    """
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.from_numpy(rng.standard_normal(tuple(parameter.shape), dtype=np.float32))
            if name.endswith("mix_factor"):
                parameter.copy_(noise)
            elif parameter.ndim > 1:
                parameter.copy_(noise / np.sqrt(parameter[0].numel()))
            else:
                parameter.copy_(0.1 * noise + name.endswith("weight"))
    return module.eval()


def load(pure: PureModule, module: nn.Module, prefix: str = "") -> dict[str, jax.Array]:
    """The weights of `module` under our names."""
    published = {name: value.numpy() for name, value in module.state_dict().items()}
    return {name: jnp.asarray(value) for name, value in import_tensors(pure.abstract, published, prefix).items()}


def check_gradients(ours: dict[str, jax.Array], module: nn.Module, prefix: str = "", tolerance: float = GRADIENT) -> None:
    """Gradients of all parameters, each against its own largest magnitude.

    The mixing factors, one number each, are compared as one array: such a gradient is a sum over a whole video of terms that cancel.
    A gradient that is zero but for rounding needs to be so here, too.
    """
    theirs = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert {prefix + published_name(name) for name in ours} == theirs.keys()
    pairs = {name: (to_published(name, np.asarray(value)), to_numpy(theirs[prefix + published_name(name)])) for name, value in ours.items()}
    factors = [name for name in pairs if name.endswith("mix_factor")]
    if factors:
        pairs["mixing factors"] = tuple(np.concatenate(parts) for parts in zip(*map(pairs.pop, factors), strict=True))
    largest = max(np.abs(want).max() for _, want in pairs.values())
    for name, (got, want) in pairs.items():
        if np.abs(want).max() < 1e-6 * largest:
            assert np.abs(got).max() < 1e-5 * largest, f"gradient of {name}: {np.abs(got).max():.2e}, expected none"
        else:
            check(got, want, tolerance, f"gradient of {name}")


class Call(NamedTuple):
    """One recorded call: the arguments by name, and the output."""

    arguments: dict[str, Any]
    output: Any


def record(module: nn.Module, paths: Iterable[str], run: Callable[[], Any]) -> dict[str, Call]:
    """Runs `run` without gradients and returns the (last) call of each submodule in `paths`."""
    calls: dict[str, Call] = {}

    def hook(path: str):
        def keep(submodule: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            calls[path] = Call(dict(inspect.signature(submodule.forward).bind(*args, **kwargs).arguments), output)

        return keep

    handles = [module.get_submodule(path).register_forward_hook(hook(path), with_kwargs=True) for path in paths]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return calls


def submodule(module: Any, path: str) -> Any:
    """`submodule(unet, "down_blocks.0.resnets.1")` of one of our modules."""
    for part in path.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, part)
    return module


def images(x: torch.Tensor) -> np.ndarray:
    """[n c h w] -> [n h w c]."""
    return np.moveaxis(to_numpy(x), 1, -1)


def videos(x: torch.Tensor, frames: int) -> np.ndarray:
    """[b·t c h w] -> [b t h w c]."""
    return images(x).reshape(-1, frames, *x.shape[2:], x.shape[1])


def first_frame(x: torch.Tensor, frames: int) -> np.ndarray:
    """What is repeated for every frame, [b·t …] -> [b …]."""
    return to_numpy(x).reshape(-1, frames, *x.shape[1:])[:, 0]
