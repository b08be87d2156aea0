"""Stage vae of a model of a few thousand parameters: a step takes milliseconds, so that many interruptions fit into a short time."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from micro import micro


def get_config():
    config = micro("vae")
    config.model.image_size = 8
    config.model.vae.update(block_out_channels=(8,), norm_groups=2)
    config.data.datasets = ({"path": "", "name": "calvin_mujoco", "val_split": "train"},)
    config.data.batch_size = 4
    config.vae_training.clip_frames = 2
    config.train.update(steps=400, log_every=10, eval_every=150, eval_batches=1, save_every=20, heartbeat_s=0.5, peer_timeout_s=30.0)
    return config
