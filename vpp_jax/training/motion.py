"""Motion metrics of predicted clips: does the prediction move what the true clip moves? A static prediction scores 0 and 1."""

import numpy as np
from jaxtyping import UInt8

MOVED = 25  # a pixel has moved if one of its colours differs by more between first and last frame, of 255


def motion_metrics(true: UInt8[np.ndarray, "n t h w 3"], predicted: UInt8[np.ndarray, "n t h w 3"]) -> dict[str, float]:
    """Metrics over all clips together.

    motion/correlation: of the change in brightness from first to last frame, predicted against true, each clip's own first frame taken
        (so that a blurred or tinted decoder costs little): 1 the same change, 0 none or an unrelated one, -1 the opposite.
    motion/error: mean absolute error of the last frame where the true clip has moved, divided by the error of repeating the first
        frame: 0 exact, 1 no better than a static video.
    """
    true, predicted = true.astype(np.float32), predicted.astype(np.float32)
    change, guess = (np.mean(clips[:, -1] - clips[:, 0], axis=-1) for clips in (true, predicted))
    size = float(np.sqrt(np.sum(change**2) * np.sum(guess**2)))
    moved = np.max(np.abs(true[:, -1] - true[:, 0]), axis=-1) > MOVED
    still = np.abs(true[:, 0] - true[:, -1])[moved].sum()
    wrong = np.abs(predicted[:, -1] - true[:, -1])[moved].sum()
    return {
        "motion/correlation": float(np.sum(change * guess)) / size if size else 0.0,
        "motion/error": float(wrong / still) if still else 1.0,
    }
