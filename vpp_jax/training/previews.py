"""Plots of batches and predictions: strips of frames with captions, and action traces."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from vpp_jax.common.files import atomic_path

PREVIEW_EXAMPLES = 8  # of a batch, that a preview predicts and shows
CAPTION_HEIGHT = 14
GAP = 2
BACKGROUND = (250, 250, 250)
INK = (30, 30, 30)


def strip_image(groups: Sequence[Sequence[tuple[str, UInt8[np.ndarray, "t h w 3"]]]], scale: int = 1) -> Image.Image:
    """One row of frames per (caption, clip); groups are separated by a gap.

    `scale` repeats pixels, so that a 64-pixel frame is visible.
    """
    enlarged = [[(caption, np.asarray(clip).repeat(scale, axis=1).repeat(scale, axis=2)) for caption, clip in group] for group in groups]
    rows = [row for group in enlarged for row in group]
    width = max(clip.shape[0] * (clip.shape[2] + GAP) for _, clip in rows)
    height = sum(clip.shape[1] + (CAPTION_HEIGHT if caption else 0) + GAP for caption, clip in rows) + 4 * GAP * len(groups)
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    draw, y = ImageDraw.Draw(canvas), 0
    for group in enlarged:
        for caption, clip in group:
            if caption:
                draw.text((2, y), caption, fill=INK)
                y += CAPTION_HEIGHT
            for index, frame in enumerate(clip):
                canvas.paste(Image.fromarray(frame), (index * (frame.shape[1] + GAP), y))
            y += clip.shape[1] + GAP
        y += 4 * GAP
    return canvas


def save_image(image: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def write_strips(path: Path, groups: Sequence[Sequence[tuple[str, UInt8[np.ndarray, "t h w 3"]]]]) -> None:
    """`strip_image` to a PNG file, small frames enlarged to at least 96 pixels."""
    height = max(np.asarray(clip).shape[1] for group in groups for _, clip in group)
    save_image(strip_image(groups, scale=max(1, -(-96 // height))), path)


def false_colours(latents: Float[np.ndarray, "n t h w c"]) -> UInt8[np.ndarray, "n t h w 3"]:
    """The first three channels as red, green and blue, each stretched over the clip; fewer channels are repeated."""
    channels = np.stack([latents[..., channel % latents.shape[-1]] for channel in range(3)], axis=-1).astype(np.float32)
    low, high = channels.min((1, 2, 3), keepdims=True), channels.max((1, 2, 3), keepdims=True)
    return np.round(255 * (channels - low) / np.maximum(high - low, 1e-6)).astype(np.uint8)


def write_observations(
    path: Path, images: Sequence[UInt8[np.ndarray, "v s s 3"]], actions: Float[np.ndarray, "n k a"], captions: Sequence[str]
) -> None:
    """One row per example: its views side by side, then its action chunk as lines, under its instruction."""
    from matplotlib.figure import Figure

    views = len(images[0])
    figure = Figure(figsize=(1.7 * views + 3.2, 1.9 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), views + 1, squeeze=False, width_ratios=[1.0] * views + [1.9])
    for row, frames, chunk, caption in zip(axes, images, actions, captions, strict=True):
        for axis, frame in zip(row, frames, strict=False):
            axis.imshow(frame, interpolation="nearest")
            axis.axis("off")
        row[0].set_title(caption, fontsize=8, loc="left")
        _draw_actions(row[-1], chunk, "-")
    _save_figure(figure, path)


def write_action_traces(
    path: Path, true: Float[np.ndarray, "n k a"], predicted: Float[np.ndarray, "n k a"], captions: Sequence[str]
) -> None:
    """Small multiples: one panel per sample, true actions as lines, predicted ones dashed, in the same colours."""
    from matplotlib.figure import Figure  # slow to import, and needed only for plots

    columns = min(4, len(true))
    rows = -(-len(true) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.2 * rows), layout="constrained")
    axes = np.asarray(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axis, truth, guess, caption in zip(axes, true, predicted, captions, strict=False):
        _draw_actions(axis, truth, "-")
        _draw_actions(axis, guess, "--")
        axis.set_title(caption, fontsize=7)
    for axis in axes[len(true) :]:
        axis.axis("off")
    _save_figure(figure, path)


def _draw_actions(axis, chunk: Float[np.ndarray, "k a"], linestyle: str) -> None:
    for dimension in range(chunk.shape[-1]):
        axis.plot(chunk[:, dimension], color=f"C{dimension}", linewidth=1.5 if linestyle == "-" else 1.0, linestyle=linestyle)
    axis.set_ylim(-1.2, 1.2)
    axis.tick_params(labelsize=6)


def _save_figure(figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
