"""Stage video as VPP's released CALVIN configuration trains it, where `svd_calvin_video` differs on purpose. Not measured.

Eight devices, as published; docs/differences.md has what differs. `data_dir` holds the four datasets of the mixture.

vpp train --config=configs/svd_calvin_video_published.py --workdir=runs/svd_published/video --config.data.data_dir=data \\
    --config.init.vae=runs/published/vae --config.init.video=runs/published/video
"""

from ml_collections import ConfigDict

from configs.svd_calvin_video import get_config as svd_calvin_video


def get_config() -> ConfigDict:
    config = svd_calvin_video()
    config.data.datasets = ()
    config.data.update(mixture="vpp_released", batch_size=48, antialias=False)  # 6 clips per device
    config.video_diffusion.preview_guidance_max = 7.5
    config.train.update(ema_decay=0.0, eval_every=2_000, eval_batches=32, save_every=20_000)
    config.mesh.update(data=-1, fsdp=8)
    return config
