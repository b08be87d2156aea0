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


def count_flops(function: Callable, *args) -> float:
    """FLOPs of function(*args); arguments may be ShapeDtypeStructs."""
    return _jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _jaxpr(jaxpr: Jaxpr | ClosedJaxpr) -> float:
    return sum(map(_equation, getattr(jaxpr, "jaxpr", jaxpr).eqns))


def _equation(eqn: JaxprEqn) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * math.prod(_shape(eqn.outvars[0])) * math.prod(_shape(eqn.invars[0])[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = _shape(eqn.invars[1]), params["dimension_numbers"]
        per_output = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
        dilated = math.prod(params["lhs_dilation"])  # zeros between the inputs of a transposed convolution cost nothing
        return 2.0 * math.prod(_shape(eqn.outvars[0])) * per_output / dilated
    if name == "cond":  # the default branch of `platform_dependent` is the last
        return _jaxpr(params["branches"][-1])
    if name == "scan":
        return params["length"] * _jaxpr(params["jaxpr"])
    inner = [value for value in params.values() if isinstance(value, Jaxpr | ClosedJaxpr)]
    return sum(map(_jaxpr, inner[:1]))


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
