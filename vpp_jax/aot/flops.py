"""Multiplications and additions of a function, counted on its jaxpr: products of matrices and convolutions, 2 per multiply-add.

The compiler's own count ignores Pallas kernels and counts loop bodies once. This count uses the default branch wherever an operation has a
device-specific one, and depends on neither compiler nor device. What a rematerialised block computes twice is counted
twice.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def count_flops(function: Callable, *args, tile: int = 1) -> float:
    """FLOPs of function(*args); arguments may be ShapeDtypeStructs.

    `tile`: side of a matrix unit. The sums and the outputs of a product are then counted as multiples of it: the FLOPs for which the unit
    is busy. A model of the unit, not of the compiler, which may fold narrow dimensions together.
    """
    return _jaxpr(jax.make_jaxpr(function)(*args).jaxpr, tile)


def _jaxpr(jaxpr: Jaxpr | ClosedJaxpr, tile: int) -> float:
    return sum(_equation(eqn, tile) for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _equation(eqn: JaxprEqn, tile: int) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, other), (batched, _) = params["dimension_numbers"]
        left, right = (_shape(variable) for variable in eqn.invars)
        sums, batch = math.prod(left[axis] for axis in contracted), math.prod(left[axis] for axis in batched)
        outputs = math.prod(right) // math.prod(right[axis] for axis in other) // batch
        return 2.0 * (math.prod(left) // sums) * _padded(sums, tile) * _padded(outputs, tile)
    if name == "conv_general_dilated":
        kernel, numbers = _shape(eqn.invars[1]), params["dimension_numbers"]
        outputs, inputs = (kernel[axis] for axis in numbers.rhs_spec[:2])
        taps, positions = math.prod(kernel) // outputs // inputs, math.prod(_shape(eqn.outvars[0])) // outputs
        dilated = math.prod(params["lhs_dilation"])  # zeros between the inputs of a transposed convolution cost nothing
        # the gradient of a kernel sums over positions, in one go; everything else over the channels, which are last, tap by tap
        by_tap = numbers.lhs_spec[1] == len(numbers.lhs_spec) - 1
        sums = taps * _padded(inputs, tile) if by_tap else _padded(taps * inputs, tile)
        return 2.0 * positions * sums * _padded(outputs, tile) / dilated
    if name == "cond":  # the default branch of `platform_dependent` is the last
        return _jaxpr(params["branches"][-1], tile)
    if name == "scan":
        return params["length"] * _jaxpr(params["jaxpr"], tile)
    inner = [value for value in params.values() if isinstance(value, Jaxpr | ClosedJaxpr)]
    return sum(_jaxpr(value, tile) for value in inner[:1])


def _padded(size: int, tile: int) -> int:
    return -(-size // tile) * tile


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
