"""Errors of the evaluator that the person who started it can act on."""

from vpp_jax.common.errors import VppError


class EvaluationError(VppError, ValueError):
    """The evaluation cannot start or continue; finished episodes stay in the journal."""


class WorkerFailure(VppError, RuntimeError):
    """A simulator process died, hung, or answered with an error; its episode has no result."""
