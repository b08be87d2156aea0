"""Figures of predicted motion: known values for clips whose motion is known."""

import numpy as np
import pytest

from vpp_jax.training.motion import motion_metrics


def clip(*columns: int, brightness: int = 200) -> np.ndarray:
    """A bright column on a dark ground that stands at `columns`, one per frame: uint8 [1 t 16 16 3]."""
    frames = np.full((1, len(columns), 16, 16, 3), 20, np.uint8)
    for frame, column in enumerate(columns):
        frames[0, frame, :, column] = brightness
    return frames


@pytest.mark.parametrize(
    ("predicted", "correlation", "error"),
    [
        (clip(2, 5, 9), 1.0, 0.0),
        (clip(2, 2, 2), 0.0, 1.0),  # the first frame, copied
        (clip(9, 5, 2), -1.0, 1.0),
        (clip(2, 5, 12), 0.5, 0.5),  # leaves the right place, arrives at a wrong one
        (clip(2, 5, 9, brightness=110), 1.0, 0.25),  # arrives at half the contrast
    ],
)
def test_known_motion(predicted, correlation, error):
    figures = motion_metrics(clip(2, 5, 9), predicted)
    assert figures["motion/correlation"] == pytest.approx(correlation, abs=1e-6)
    assert figures["motion/error"] == pytest.approx(error, abs=1e-6)


def test_clips_count_by_their_motion():
    """A clip in which nothing moves changes neither figure; a static video never gets more than chance."""
    true, still = np.concatenate([clip(2, 5, 9), clip(4, 4, 4)]), np.concatenate([clip(2, 2, 2), clip(4, 4, 4)])
    assert motion_metrics(true, true) == {"motion/correlation": pytest.approx(1.0), "motion/error": 0.0}
    assert motion_metrics(true, still) == {"motion/correlation": 0.0, "motion/error": 1.0}
    assert motion_metrics(still, still) == {"motion/correlation": 0.0, "motion/error": 1.0}


def test_a_tinted_decoder_keeps_its_correlation():
    tinted = (clip(2, 5, 9).astype(int) - 15).astype(np.uint8)
    assert motion_metrics(clip(2, 5, 9), tinted)["motion/correlation"] == pytest.approx(1.0)
