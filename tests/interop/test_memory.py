"""Importing takes less memory than one and a half times the size of the weights."""

import subprocess
import sys

import pytest

from vpp_jax.functional import PureModule
from vpp_jax.interop.published_configs import text_config, unet_config, vae_config
from vpp_jax.models.text_encoder import CLIPTextEncoder
from vpp_jax.models.video_unet import SpatioTemporalUNet
from vpp_jax.models.video_vae import TemporalVAE

PROGRAM = """
import sys
from pathlib import Path
from vpp_jax.interop.importing import Request, import_published

folder = Path(sys.argv[1])
base = {"model": {"image_size": 64, "text_length": 12, "goal_length": 20}}
import_published(Request(folder / "out", base, unet=folder / "pipeline", text=folder / "clip"))
print(1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


@pytest.mark.medium
def test_memory_grows_with_less_than_one_and_a_half_times_the_size(fabricated, tmp_path):
    """Peaks of importing U-Nets of about 45 and 270 MB: the difference is free of what Python and the libraries need."""
    (small, small_peak), (large, large_peak) = (imported(fabricated, tmp_path / str(width), width) for width in (160, 384))
    assert large - small > 2e8
    assert large - small < large_peak - small_peak < 1.5 * (large - small), f"{(large_peak - small_peak) / (large - small):.2f} times"


def imported(fabricated, folder, width: int) -> tuple[int, int]:
    """Bytes of a fabricated U-Net, and of memory that a process had at most while it imported it."""
    tree = {**fabricated.UNET, "block_out_channels": [width], "num_attention_heads": [width // 32]}
    modules = {
        "unet": PureModule.of(lambda rngs: SpatioTemporalUNet(unet_config(tree, ""), rngs=rngs)),
        "vae": PureModule.of(lambda rngs: TemporalVAE(vae_config(fabricated.VAE, "")[0], rngs=rngs)),
        "text": PureModule.of(lambda rngs: CLIPTextEncoder(text_config(fabricated.CLIP, ""), rngs=rngs)),
    }
    arrays = {kind: fabricated.tensors(module, 0) for kind, module in modules.items()}
    size = sum(value.nbytes for value in arrays["unet"].values())
    fabricated.write_component(folder / "pipeline" / "unet", "diffusion_pytorch_model", arrays["unet"], tree)
    fabricated.write_component(folder / "pipeline" / "vae", "diffusion_pytorch_model", arrays["vae"], fabricated.VAE)
    fabricated.write_component(folder / "clip", "model", arrays["text"], fabricated.CLIP)
    del arrays
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return size, int(done.stdout)
