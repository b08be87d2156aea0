"""The VAE of stage video as an encoder of datasets, and the identity hash that ties stored latents to their VAE."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data_pipelines.errors import DataError
from data_pipelines.sources import ClipSource
from vpp_jax.common.errors import VppError
from vpp_jax.config import ExperimentConfig, MeshConfig, config_hash
from vpp_jax.functional import Params, with_prefix
from vpp_jax.models.video_vae import VideoVAEConfig
from vpp_jax.parallel.mesh import batch_sharding, compiler_options, make_mesh, replicated
from vpp_jax.training.checkpoints import load_params
from vpp_jax.training.compatibility import COMPUTATION, check_model_agrees
from vpp_jax.video_predictor import VideoPredictor

ENCODER = ("vae/encoder.", "vae/quant_conv.")  # the decoder does not affect latents


class LatentsMismatchError(VppError):
    """Latents of another VAE than the configured one."""


def vae_identity(config: VideoVAEConfig, params: Params) -> str:
    """16 hexadecimal digits of a hash over the encoder's architecture and parameters.

    Independent of sharding and device: checksums are integer sums, whose order does not matter.
    """
    encoder = {name: value for name, value in sorted(params.items()) if name.startswith(ENCODER)}
    sums = jax.device_get(_checksums(encoder))
    architecture = {name: value for name, value in dataclasses.asdict(config).items() if name not in COMPUTATION}
    tensors = {name: [list(encoder[name].shape), *map(int, sums[name])] for name in encoder}
    return config_hash([architecture, tensors])


@jax.jit
def _checksums(params: Params) -> dict[str, tuple[jax.Array, jax.Array]]:
    return {name: _checksum(value) for name, value in params.items()}


def _checksum(value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two sums modulo 2^32 over the bits of values rounded to bfloat16 (frozen ones may be stored so), each weighted by its position."""
    rounded = jax.lax.reduce_precision(value.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)
    bits = jax.lax.bitcast_convert_type(rounded, jnp.uint32).ravel()
    place = jnp.arange(bits.size, dtype=jnp.uint32)
    mixed = (bits ^ (bits >> 15)) * jnp.uint32(0x85EBCA6B)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32), jnp.sum(mixed ^ (place * jnp.uint32(0x9E3779B9)), dtype=jnp.uint32)


def check_latents(source: ClipSource, identity: str, vae: str) -> None:
    """LatentsMismatchError unless the latents of `source` are of the VAE `identity`, which checkpoint `vae` holds."""
    if source.latents is None or source.latents.vae == identity:
        return
    made_by = f"VAE {source.latents.vae}" if source.latents.vae else "a VAE that it does not name"
    raise LatentsMismatchError(
        f"{source.dataset.directory}: its latents are of {made_by}, but init.vae={vae} is VAE {identity}. Train with the VAE that encoded "
        "them, encode them again with `vpp data latents`, or, if this VAE encoded them elsewhere, convert them with --vae set to its "
        "identity"
    )


class DatasetEncoder:
    """Frames -> VAE posterior, on all devices of this process; compiled once, for one batch size.

    Attributes:
      identity: hash of the VAE.
      latent_shape: (h, w, c) of one frame.
    """

    def __init__(self, config: ExperimentConfig, batch: int):
        self._mesh = make_mesh(MeshConfig(), jax.local_devices())
        if batch % self._mesh.size:
            raise DataError(f"batch {batch} cannot be split over {self._mesh.size} devices; make it a multiple")
        predictor = VideoPredictor(config.model, config.video_diffusion)
        abstract = with_prefix("vae", predictor.vae.abstract)
        shardings = dict.fromkeys(abstract, replicated(self._mesh))
        self._params = load_params(config.init.vae, abstract, shardings, stage="vae")
        check_model_agrees(config, config.init.vae, ("vae",))
        self.identity = vae_identity(config.model.vae, self._params)
        side = config.model.image_size // config.model.vae.downscale
        self.latent_shape = (side, side, config.model.vae.latent_channels)
        self._encode = _encoder(predictor, self._mesh)

    def __call__(self, images: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """uint8 [n s s 3] -> (mean, log variance), float16 [n h w c], on the devices."""
        return self._encode(self._params, jax.device_put(images, batch_sharding(self._mesh)))


def _encoder(predictor: VideoPredictor, mesh: Mesh) -> Callable:
    rows = batch_sharding(mesh)

    @partial(jax.jit, out_shardings=(rows, rows), compiler_options=compiler_options())
    def encode(params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        posterior = predictor.posterior(params, images)
        return posterior.mean.astype(jnp.float16), posterior.logvar.astype(jnp.float16)

    return encode


def load_identity(config: ExperimentConfig) -> str:
    """Identity hash of the VAE in `init.vae`."""
    abstract = with_prefix("vae", VideoPredictor(config.model, config.video_diffusion).vae.abstract)
    params = load_params(config.init.vae, {name: spec for name, spec in abstract.items() if name.startswith(ENCODER)}, stage="vae")
    check_model_agrees(config, config.init.vae, ("vae",))
    return vae_identity(config.model.vae, params)
