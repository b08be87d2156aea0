"""Stage video at size tiny on BridgeData V2 as distributed with Open-X: real robot, real instructions, each episode as one clip.

vpp train --config=configs/tiny_bridge_video.py --workdir=runs/bridge/video --config.init.vae=runs/bridge/vae \
    --config.data.index_dir=runs/bridge/index

`data/bridge_dataset/1.0.0` is a TFDS directory (a local copy or a part of one); its split train is enough. `index_dir` stores the record
index if the local copy is read-only.
"""

from ml_collections import ConfigDict

from configs.tiny_calvin_video import get_config as calvin_config


def bridge_data(config: ConfigDict) -> None:
    """One camera, clips that span the episode as in VPP for Bridge; the partial local copy has no validation split."""
    config.data.datasets = ({"path": "data/bridge_dataset/1.0.0", "name": "bridge_dataset", "val_split": "train"},)
    config.model.views = ("primary",)


def get_config() -> ConfigDict:
    config = calvin_config()
    bridge_data(config)
    config.train.eval_every = 200
    return config
