"""What a training stage is to the training loop: parameters, a loss, data, and pictures of what it does."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Float

from vpp_jax.config import ExperimentConfig
from vpp_jax.functional import Params


class StageSource(Protocol):
    """Random-access training examples: dicts of arrays, of the same shapes for every index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...

    def metadata(self) -> dict[str, Any]:
        """JSON that a checkpoint must carry to use what was trained on this: dataset names, statistics and their hash."""
        ...


class Stage(Protocol):
    """One of `vae`, `video`, `policy`. Stateless: parameters come in, losses go out.

    Trainable and frozen parameters are two flat dicts whose keys start with a group, e.g. `unet/down_blocks.0...`; gradient norms are
    reported per group. The loop shards both, updates the first, and saves the second once beside the checkpoints.
    """

    config: ExperimentConfig

    def abstract_trainable(self) -> Params:
        """ShapeDtypeStructs of what this stage trains."""
        ...

    def abstract_frozen(self) -> Params:
        """ShapeDtypeStructs of what the loss reads besides; {} if nothing."""
        ...

    def init_trainable(self, key: jax.Array) -> Params:
        """Fresh parameters; runs inside `jax.jit`."""
        ...

    def load_trainable(self, shardings: dict[str, Sharding]) -> Params | None:
        """Parameters to start from, from a checkpoint named in `config.init`, placed on `shardings`; None: fresh ones."""
        ...

    def load_frozen(self, shardings: dict[str, Sharding]) -> Params:
        """Frozen parameters from the checkpoints named in `config.init`, placed on `shardings`."""
        ...

    def source(self, split: str, frozen: Params, workdir: Path) -> StageSource:
        """Examples of split 'train' or 'val'. `frozen` and `workdir` serve sources that cache what frozen networks compute."""
        ...

    def loss(
        self, trainable: Params, frozen: Params, batch: dict[str, Array], key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Loss and further metrics, means over the batch. Pure; jitted and differentiated by the loop.

        `key`: one PRNG key, or one per row [b]; what is drawn for a row depends on its key alone (`vpp_jax.diffusion.per_example`).
        """
        ...

    def loss_weight(self, batch: dict[str, Array]) -> Float[Array, ""]:
        """How many things `loss` is a mean over, for means over several batches."""
        ...

    def plot_batch(self, batch: dict[str, np.ndarray], path: Path) -> None:
        """A PNG of the batch as the model sees it."""
        ...

    def plot_predictions(
        self, trainable: Params, frozen: Params, batch: dict[str, Array], key: jax.Array, path: Path | None
    ) -> dict[str, float]:
        """A PNG of what the model makes of `batch`, and figures of it for the log; called at evaluation steps with averaged parameters.

        All processes compute it; `path` is None where another one writes.
        """
        ...

    def final_metadata(self, trainable: Params, frozen: Params, batches: Iterable[dict[str, Array]]) -> dict[str, Any]:
        """JSON for the last checkpoint's metadata, e.g. the latent scaling factor, from the averaged parameters."""
        ...
