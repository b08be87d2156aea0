"""Learning rate as a function of the number of updates already made."""

import jax.numpy as jnp
import numpy as np
import optax

from vpp_jax.config import ConfigError, ExperimentConfig, OptimizerConfig


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Update count -> learning rate, float32; a run of `steps` updates.

    Linear warm-up from `initial_scale`, then constant; or a hold (tri_stage) and a cosine to `final_scale` at the schedule's end; or
    constant and a linear decay to it (wsd; Hu et al. 2024). Flat afterwards.
    """
    peak, length = config.learning_rate, config.schedule_steps or steps
    warmup = config.warmup_steps or round(config.warmup_ratio * length)
    hold = {"tri_stage": round(config.hold_ratio * length), "wsd": length - warmup - config.decay_steps}.get(config.schedule, 0)
    if warmup + hold > length or hold < 0:
        raise ConfigError(f"warm-up, hold and decay of the learning rate take more than its schedule of {length} updates")
    decay = max(length - warmup - hold, 1)

    def schedule(count):
        count = jnp.asarray(count, jnp.float32)
        rising = config.initial_scale + (1.0 - config.initial_scale) * count / max(warmup, 1)
        if config.schedule == "constant":
            falling = jnp.ones(())
        else:
            progress = jnp.clip((count - warmup - hold) / decay, 0.0, 1.0)
            left = 1.0 - progress if config.schedule == "wsd" else 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
            falling = config.final_scale + (1.0 - config.final_scale) * left
        return peak * jnp.where(count < warmup, rising, falling)

    return schedule


def check_same_past(old: ExperimentConfig, new: ExperimentConfig, updates: int) -> None:
    """ConfigError unless the first `updates` learning rates of both are the same: a run cannot change those it was trained with."""
    counts = np.arange(updates)
    before, now = (np.asarray(make_schedule(config.optimizer, config.train.steps)(counts)) for config in (old, new))
    differ = np.flatnonzero(~np.isclose(before, now, rtol=1e-5, atol=0.0))
    if differ.size:
        first, last = int(differ[0]), int(differ[-1])
        raise ConfigError(
            f"with this configuration the learning rate of update {first} would have been {now[first]:.4g}, it was {before[first]:.4g} (of "
            f"update {last}: {now[last]:.4g}, it was {before[last]:.4g}). If train.steps grew, "
            f"--config.optimizer.schedule_steps={old.optimizer.schedule_steps or old.train.steps} keeps the old curve; the schedules "
            "constant and wsd can be extended before their decay. Else use the old values, or a new --workdir"
        )
