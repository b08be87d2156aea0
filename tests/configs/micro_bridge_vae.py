"""Stage vae of the micro model on a real shard of BridgeData V2."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from micro import micro


def get_config():
    config = micro("vae")
    config.model.views = ("primary",)
    config.data.datasets = ({"path": "", "name": "bridge_dataset", "val_split": "train"},)
    config.train.update(steps=40, log_every=1)
    return config
