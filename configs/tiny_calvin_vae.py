"""Stage vae at size tiny on CALVIN-in-MuJoCo demonstrations.

vpp train --config=configs/tiny_calvin_vae.py --workdir=runs/demo/vae
"""

from ml_collections import ConfigDict

from configs.sizes import set_tiny
from vpp_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.stage = "vae"
    set_tiny(config)
    config.data.datasets = ({"path": "runs/demo/data", "name": "calvin_mujoco"},)
    # the decoder mixes each frame with both neighbours: from clips of two it would never learn what a frame between others looks like
    config.data.update(batch_size=4, clip_stride=4, clip_start_every=2)
    config.vae_training.update(clip_frames=3, kl_weight=1e-4)
    config.optimizer.update(learning_rate=4e-3, betas=(0.9, 0.99), schedule="cosine", warmup_ratio=0.05, final_scale=0.05)
    config.train.update(steps=600, log_every=50, eval_every=100_000, eval_batches=8, save_every=200, max_to_keep=1, ema_decay=0.98)
    return config
