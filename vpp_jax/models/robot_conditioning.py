"""What a policy of several robots knows of each: a learnt prompt, and weights that are added to the projections of actions and state.

All robots share one array per parameter; the rows of the robots in a batch are gathered. New rows start as zeros (projections) or small
(prompts), so that a robot begins with what the others share.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vpp_jax.models.action_transformer import ActionTransformerConfig, RobotAffine

PROMPT_STD = 0.02


class RobotTokens(NamedTuple):
    """The rows of a batch. Each is None where it is not configured; biases and kernels are added to those that all robots share.

    prompt: tokens in front of the context. The others: (kernel [b i o], bias [b o]).
    """

    prompt: Float[Array, "b p w"] | None
    action_in: RobotAffine | None
    action_out: RobotAffine | None
    proprio_in: RobotAffine | None


class RobotConditioning(nnx.Module):
    """Number of the robot of each example -> its rows."""

    def __init__(self, config: ActionTransformerConfig, *, rngs: nnx.Rngs):
        width, count = config.width, config.robots
        if config.prompt_tokens:
            self.prompt = nnx.Param(PROMPT_STD * jax.random.normal(rngs.params(), (count, config.prompt_tokens, width)))
        if config.robot_projections:
            self.action_in = _Affines(count, config.action_dim, width)
            self.action_out = _Affines(count, width, config.action_dim)
            if config.proprio_dim:
                self.proprio_in = _Affines(count, config.proprio_dim, width)

    def __call__(self, robot: Int[Array, "b"]) -> RobotTokens:
        def rows(name: str):
            return getattr(self, name)(robot) if hasattr(self, name) else None

        prompt = self.prompt[...][robot] if hasattr(self, "prompt") else None
        return RobotTokens(prompt, rows("action_in"), rows("action_out"), rows("proprio_in"))


class _Affines(nnx.Module):
    """One affine map per robot, zero at first."""

    def __init__(self, count: int, inputs: int, outputs: int):
        self.kernel = nnx.Param(jnp.zeros((count, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((count, outputs)))

    def __call__(self, robot: Int[Array, "b"]) -> tuple[Float[Array, "b i o"], Float[Array, "b o"]]:
        return self.kernel[...][robot], self.bias[...][robot]
