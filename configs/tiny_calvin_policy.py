"""Stage policy at size tiny: Video Former and diffusion transformer on cached features of the frozen video model.

vpp train --config=configs/tiny_calvin_policy.py --workdir=runs/demo/policy --config.init.video=runs/demo/video
"""

from ml_collections import ConfigDict

from configs.sizes import set_tiny
from vpp_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.stage = "policy"
    set_tiny(config)
    config.data.datasets = ({"path": "runs/demo/data", "name": "calvin_mujoco"},)
    config.data.update(batch_size=48, observation_stride=5, cache_mb=512)
    config.policy_diffusion.update(feature_draws=1, feature_batch=32)
    # sampling walks from 80 to 1; at the published density (around 0.5) the noisy chunk itself gives its direction away, and a short
    # training hardly learns to look at anything else
    config.policy_diffusion.density.update(loc=3.0, scale=1.0)
    config.optimizer.update(learning_rate=2e-3, schedule="cosine", warmup_ratio=0.05, final_scale=0.05, weight_decay=0.01)
    config.train.update(steps=600, log_every=50, eval_every=100_000, eval_batches=2, save_every=300, max_to_keep=1, ema_decay=0.995)
    return config
