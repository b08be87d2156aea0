"""The interface between a training stage and the training loop: parameters, a loss, data, and plots."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Float

from vpp_jax.config import ExperimentConfig
from vpp_jax.functional import AbstractParams, Params


@runtime_checkable
class StageSource(Protocol):
    """Random-access training examples: dicts of arrays, of the same shapes for every index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...

    def metadata(self) -> dict[str, Any]:
        """JSON for the checkpoint that inference needs: dataset names, normalisation statistics and their hash."""
        ...


@runtime_checkable
class Stage(Protocol):
    """One of `vae`, `video`, `policy`. Stateless: methods take parameters and return values.

    Trainable and frozen parameters are two flat dicts whose keys start with a group, e.g. `unet/down_blocks.0...`; gradient norms are
    reported per group. The loop shards both, updates the first, and saves the second once next to the checkpoints.
    """

    @property
    def config(self) -> ExperimentConfig: ...

    def abstract_trainable(self) -> AbstractParams:
        """What this stage trains."""
        ...

    def abstract_frozen(self) -> AbstractParams:
        """The other parameters that the loss reads; {} if none."""
        ...

    def init_trainable(self, key: jax.Array) -> Params:
        """Fresh parameters; runs inside `jax.jit`."""
        ...

    def load_trainable(self, shardings: Mapping[str, Sharding]) -> Params | None:
        """Initial parameters from a checkpoint named in `config.init`, placed on `shardings`; None for random initialisation."""
        ...

    def load_frozen(self, shardings: Mapping[str, Sharding]) -> Params:
        """Frozen parameters from the checkpoints named in `config.init`, placed on `shardings`."""
        ...

    def source(self, split: str, frozen: Params, workdir: Path, dataset: str = "") -> StageSource:
        """Examples of split 'train' or 'val', of all datasets or of the one named `dataset`.

        `frozen` and `workdir` are for sources that cache the outputs of frozen networks.
        """
        ...

    def loss(
        self, trainable: Params, frozen: Params, batch: dict[str, Array], key: jax.Array, training: bool = True
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Loss and further metrics, means over the batch. Pure; jitted and differentiated by the loop.

        `training`: off, there is neither dropout nor dropped conditioning. `key`: one PRNG key, or one per example [b]; what is drawn for
        an example depends only on its key (`vpp_jax.diffusion.per_example`).
        """
        ...

    def loss_weight(self, batch: dict[str, Array]) -> Float[Array, ""]:
        """The number of elements that `loss` is a mean over, the weight of a batch in means over several batches."""
        ...

    def plot_batch(self, batch: dict[str, np.ndarray], path: Path) -> None:
        """A PNG of the batch as the model sees it."""
        ...

    def preview(self, trainable: Params, frozen: Params, batch: dict[str, Array], key: jax.Array) -> dict[str, Array]:
        """What `plot_predictions` shows: the first `PREVIEW_EXAMPLES` examples of `batch` and predictions for them, on every device. Pure.

        Neither memory nor FLOPs of a device grow with the batch (`vpp_jax.parallel.first_examples`).
        """
        ...

    def plot_predictions(
        self, trainable: Params, frozen: Params, batch: dict[str, Array], key: jax.Array, path: Path | None
    ) -> dict[str, float]:
        """A PNG of the model's `preview` of `batch`, and metrics of it for the log; called at evaluation steps with the EMA.

        All processes compute it; `path` is None on all but the one that writes the file.
        """
        ...

    def final_metadata(self, trainable: Params, frozen: Params, batches: Iterable[dict[str, Array]]) -> dict[str, Any]:
        """JSON for the last checkpoint's metadata, e.g. the latent scaling factor, computed with the EMA."""
        ...


@runtime_checkable
class ActionStage(Stage, Protocol):
    """A stage whose model samples actions: `policy`."""

    def sampling_errors(
        self, trainable: Params, frozen: Params, batch: dict[str, Array], key: jax.Array
    ) -> tuple[dict[str, Float[Array, ""]], Float[Array, ""]]:
        """Sums over the batch of the squared errors of sampled actions, by metric, and the number of values in them. Pure."""
        ...
