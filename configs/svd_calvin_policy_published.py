"""Stage policy as VPP's released CALVIN configuration trains it, where `svd_calvin_policy` differs on purpose. Not measured.

Four devices, as published; docs/differences.md has what differs. 50 epochs of 696,473 windows; the authors stop where `action_mse` on
environment D is about 0.06.

vpp train --config=configs/svd_calvin_policy_published.py --workdir=runs/svd_published/policy --config.init.video=runs/svd_published/video
"""

from ml_collections import ConfigDict

from configs.svd_calvin_policy import get_config as svd_calvin_policy

EPOCH = 696_473 // 112


def get_config() -> ConfigDict:
    config = svd_calvin_policy()
    config.data.batch_size = 112  # 28 observations per device
    config.train.update(steps=50 * EPOCH, ema_decay=0.0, eval_every=EPOCH, save_every=EPOCH)
    config.mesh.update(data=-1, fsdp=4)
    return config
