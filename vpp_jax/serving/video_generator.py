"""A checkpoint of stage `video` as a host-side function: an image and a language instruction in, a video out."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from data_pipelines.transforms import resize
from vpp_jax.common.errors import VppError
from vpp_jax.config import ExperimentConfig, from_config_dict
from vpp_jax.functional import Params
from vpp_jax.models.tokenizer import CLIPTokenizer
from vpp_jax.parallel.mesh import compiler_options
from vpp_jax.training.checkpoints import load_params, read_metadata
from vpp_jax.training.stages.video import VideoStage
from vpp_jax.video_predictor import to_uint8_image


class VideoGenerator:
    """Text-conditioned video from one image (paper section 3.1), compiled once; the sampler is the checkpoint's `video_diffusion`."""

    def __init__(self, config: ExperimentConfig, params: Params):
        self.config, self.params = config, params
        self._tokenizer = CLIPTokenizer(config.model.text_length)
        predictor = VideoStage(config).predictor

        def generate(params: Params, image: jax.Array, ids: jax.Array, mask: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            frames = predictor.sample_frames(params, predictor.encode_images(params, image), ids, mask, key)
            return to_uint8_image(frames), jnp.isfinite(frames).all()

        self._generate = jax.jit(generate, compiler_options=compiler_options())

    def generate(self, image: UInt8[np.ndarray, "h w 3"], instruction: str, seed: int = 0) -> UInt8[np.ndarray, "t s s 3"]:
        """The predicted frames, RGB, s = `model.image_size`; frame 0 is the VAE's reconstruction of `image`.

        Raises:
          VppError: the instruction is empty, or the model's numbers are NaN or infinite.
        """
        if not instruction.strip():
            raise VppError("the instruction is empty; the video model needs a text such as 'open the drawer'")
        first = resize(image, self.config.model.image_size, self.config.data.antialias)
        ids, mask = self._tokenizer([instruction])
        video, finite = self._generate(self.params, first[None], ids, mask, jax.random.key(seed))
        if not finite:
            raise VppError("the predicted video has NaN or infinite values: the checkpoint's parameters are damaged, or overflow")
        return np.asarray(video)[0]


def load_video_generator(checkpoint: str | Path, *, item: str = "ema", step: int | str = "latest") -> VideoGenerator:
    """The video model of a work directory of stage `video`, trained or imported (or of one of its checkpoints).

    Args:
      item: 'ema' (moving average of the parameters) or 'params'.
    """
    metadata = read_metadata(checkpoint, step)
    if metadata["stage"] != "video":
        raise VppError(f"{checkpoint} holds stage {metadata['stage']}; videos are predicted from a checkpoint of stage video")
    config = from_config_dict(metadata["config"])
    stage = VideoStage(config)
    params = load_params(checkpoint, stage.abstract_trainable() | stage.abstract_frozen(), item=item, step=step, stage="video")
    return VideoGenerator(config, params)
