"""Stage video at the published size on a mixture of Open-X, by default the one of VPP's paper. Needs accelerators; not measured.

vpp train --config=configs/svd_openx_video.py --workdir=runs/openx/video --config.data.data_dir=gs://BUCKET/openx \\
    --config.init.vae=runs/published/vae --config.init.video=runs/published/video
"""

from ml_collections import ConfigDict

from configs.svd_calvin_video import get_config as calvin_config


def get_config() -> ConfigDict:
    config = calvin_config()
    config.data.datasets = ()
    config.data.update(mixture="vpp_paper", missing_datasets="skip")
    return config
