"""Stage video at size tiny: text-guided prediction of 8 frames, 4 control steps apart, on CALVIN-in-MuJoCo demonstrations.

vpp train --config=configs/tiny_calvin_video.py --workdir=runs/demo/video --config.init.vae=runs/demo/vae
"""

from ml_collections import ConfigDict

from configs.sizes import set_tiny
from vpp_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.stage = "video"
    set_tiny(config)
    config.data.datasets = ({"path": "runs/demo/data", "name": "calvin_mujoco"},)
    config.data.update(batch_size=4, clip_stride=4, clip_start_every=2)
    # features come from sigma 700, which ln sigma ~ N(0.7, 1.6) hardly ever draws: a short training must see high noise more often
    config.video_diffusion.density.update(mean=4.0, std=2.0)
    # few levels: a short training predicts from pure noise better than it repairs its own samples in between, and more levels add speckle
    config.video_diffusion.noise_schedule.update(num_sampling_steps=3)
    # without text guidance an arm that moves far fades away: distant motion is uncertain, and its mean is the background
    config.video_diffusion.guidance_max = 5.0
    config.optimizer.update(learning_rate=2e-3, schedule="cosine", warmup_ratio=0.05, final_scale=0.05)
    config.train.update(steps=300, log_every=20, eval_every=100_000, eval_batches=4, save_every=100, max_to_keep=1, ema_decay=0.98)
    return config
