"""How well a run uses its machine: model FLOPs utilization, memory of the devices, goodput."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vpp_jax.training.phases import PhaseClock

GIB = 2**30


@dataclass(frozen=True)
class Utilization:
    """Metrics of the machine for an entry of the log.

    phases: of this process. devices: `jax.local_devices()`. ideal_step_s: seconds that the arithmetic of one step takes at the peak of
    all devices; None where the peak is not known, and then there is no MFU.
    """

    phases: PhaseClock
    devices: Sequence[Any]
    ideal_step_s: float | None = None

    def metrics(self, step_s: float) -> dict[str, float]:
        """`mfu` of steps that took `step_s` each; `hbm_peak_gib`, of the fullest device; `share_PHASE` of the wall time.

        The share of phase "step" is the goodput of this process since its start.
        """
        mfu = {"mfu": self.ideal_step_s / step_s} if self.ideal_step_s else {}
        peaks = [stats["peak_bytes_in_use"] for device in self.devices if "peak_bytes_in_use" in (stats := device.memory_stats() or {})]
        memory = {"hbm_peak_gib": max(peaks) / GIB} if peaks else {}
        return mfu | memory | {f"share_{phase}": share for phase, share in self.phases.shares().items()}
