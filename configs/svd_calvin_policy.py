"""Stage policy at the published size on CALVIN ABC in RLDS form. Needs accelerators; not measured (paper: average length 4.33 on ABC->D).

vpp train --config=configs/svd_calvin_policy.py --workdir=runs/svd/policy --config.init.video=runs/svd/video
"""

from ml_collections import ConfigDict

from vpp_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.stage = "policy"
    config.data.datasets = ({"path": "data/calvin_abc", "name": "calvin"},)
    config.data.batch_size = 128
    for module in ("unet", "vae", "text"):
        config.model[module].dtype = "bfloat16"
    config.optimizer.update(learning_rate=1e-4, betas=(0.9, 0.9), weight_decay=0.05, grad_clip=0.0)
    config.train.update(steps=65_000, ema_decay=0.9999)
    config.mesh.update(data=-1, fsdp=8)
    return config
