"""Columns of VAE latents that replace images, and their description in metadata.json.

The latents of camera C are the posterior of the VAE encoder, per frame and unscaled: step features `C_latent_mean` and, optionally,
`C_latent_logvar`, float16 [h w c] with encoding 'bytes' (two bytes per number; a float_list would take four).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.rlds.dataset import Episode
from data_pipelines.rlds.schema import Schema

LATENTS = "latents"  # key in metadata.json
MEAN, LOGVAR = "_latent_mean", "_latent_logvar"
# log variance of recorded latents, which have none: the minimum of the VAE
NO_VARIANCE = -30.0
# exponent bits of a float16: all set only in infinities and NaN. This check is ten times as fast as np.isfinite
EXPONENT = np.uint16(0x7C00)


def mean_of(camera: str) -> str:
    return f"{camera}{MEAN}"


def logvar_of(camera: str) -> str:
    return f"{camera}{LOGVAR}"


def latent_cameras(schema: Schema) -> tuple[str, ...]:
    """Cameras with latents."""
    packed = [name for name, feature in schema.steps.items() if feature.encoding == "bytes" and None not in feature.shape]
    return tuple(name.removesuffix(MEAN) for name in packed if name.endswith(MEAN))


def read_latents(episode: Episode, schema: Schema, camera: str, steps: Sequence[int]) -> dict[str, np.ndarray]:
    """{latent_mean, latent_logvar}, float16 [t h w c], of some steps."""
    mean = episode.rows(mean_of(camera), steps)
    if ((mean.view(np.uint16) & EXPONENT) == EXPONENT).any():
        raise episode.bad(mean_of(camera), "NaN or infinite values")
    if logvar_of(camera) in schema.steps:
        logvar = episode.rows(logvar_of(camera), steps)
    else:
        logvar = np.full_like(mean, NO_VARIANCE)
    return {"latent_mean": mean, "latent_logvar": logvar}


@dataclass(frozen=True)
class LatentsInfo:
    """Description of the latents of a dataset.

    Attributes:
      vae: identity of the VAE that made them (`vpp_jax.training.latents.vae_identity`), "" if unknown.
      image_size: size in pixels of the square frames that were encoded.
      cameras: names of the image features that they replace.
    """

    vae: str
    image_size: int
    cameras: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"vae": self.vae, "image_size": self.image_size, "cameras": list(self.cameras)}

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any], where: str) -> "LatentsInfo":
        """From a parsed metadata.json; DataError if it does not describe latents."""
        try:
            tree = metadata[LATENTS]
            return cls(str(tree["vae"]), int(tree["image_size"]), tuple(map(str, tree["cameras"])))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{where}: metadata.json does not describe latents; encode them with `vpp data latents`, or "
                "set data.datasets[...].latents=False to read images"
            ) from error
