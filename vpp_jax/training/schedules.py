"""Learning rate as a function of the number of updates already made."""

import jax.numpy as jnp
import optax

from vpp_jax.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Update count -> learning rate, float32.

    Linear warm-up from `initial_scale`, then constant; or a hold (tri_stage) and a cosine to `final_scale` at `steps`, flat afterwards.
    """
    peak = config.learning_rate
    warmup = round(config.warmup_ratio * steps)
    hold = round(config.hold_ratio * steps) if config.schedule == "tri_stage" else 0
    decay = max(steps - warmup - hold, 1)

    def schedule(count):
        count = jnp.asarray(count, jnp.float32)
        rising = config.initial_scale + (1.0 - config.initial_scale) * count / max(warmup, 1)
        if config.schedule == "constant":
            falling = jnp.ones(())
        else:
            progress = jnp.clip((count - warmup - hold) / decay, 0.0, 1.0)
            falling = config.final_scale + (1.0 - config.final_scale) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return peak * jnp.where(count < warmup, rising, falling)

    return schedule
