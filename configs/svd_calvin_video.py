"""Stage video at the published size: Stable Video Diffusion fine-tuned on CALVIN ABC in RLDS form. Needs accelerators; not measured.

vpp train --config=configs/svd_calvin_video.py --workdir=runs/svd/video \\
    --config.init.vae=runs/published/vae --config.init.video=runs/published/video
"""

from ml_collections import ConfigDict

from vpp_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.stage = "video"
    config.data.datasets = ({"path": "data/calvin_abc", "name": "calvin"},)
    config.data.update(batch_size=256, clip_stride=2, clip_start_every=2)
    for module in ("unet", "vae", "text"):
        config.model[module].dtype = "bfloat16"
    config.model.unet.remat = "blocks"
    config.optimizer.update(learning_rate=5e-6, betas=(0.9, 0.999), weight_decay=0.0, grad_clip=1.0)
    config.train.update(steps=100_000, ema_decay=0.999)
    config.mesh.update(data=-1, fsdp=16)
    return config
