"""The denominator of model FLOPs utilization (MFU): the time that a training step would take if nothing but its arithmetic counted."""

from collections.abc import Sequence
from typing import Any

from vpp_jax.aot.chips import PEAK_BY_DEVICE_KIND
from vpp_jax.aot.program import model_flops
from vpp_jax.config import ExperimentConfig


def ideal_step_s(config: ExperimentConfig, devices: Sequence[Any]) -> float | None:
    """Seconds of a training step at the bf16 peak of all `devices`; None where the peak of one is not known.

    Counting traces the loss and its gradient: about 10 s of one core at size `svd`.
    """
    peaks = [PEAK_BY_DEVICE_KIND.get(device.device_kind) for device in devices]
    known = [peak for peak in peaks if peak is not None]
    if len(known) < len(peaks):
        return None
    return config.data.batch_size * model_flops(config, "train") / (1e12 * sum(known))
