"""Stage vae at size tiny on BridgeData V2 as distributed with Open-X (RLDS, TFRecord).

vpp train --config=configs/tiny_bridge_vae.py --workdir=runs/bridge/vae --config.data.index_dir=runs/bridge/index
"""

from ml_collections import ConfigDict

from configs.tiny_bridge_video import bridge_data
from configs.tiny_calvin_vae import get_config as calvin_config


def get_config() -> ConfigDict:
    config = calvin_config()
    bridge_data(config)
    return config
